"""Exports load where they are for, with equal codes; the card says what is known and no more."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from published import golden_file
from safetensors.torch import load_file

from cytosae import CytosaeError, SparseAutoencoder, load_sae
from cytosae._errors import UsageError
from cytosae.cli._main import run
from cytosae.sae import KIND, VERSION, save_sae
from cytosae.sae.formats import export_sae, import_sae, read_foreign
from cytosae.storage import commit_folder

FILES = Path(__file__).parent / "formats_files"
INFO: dict[str, Any] = {
    "recipe": "default", "semantics": "default", "seed": 3, "token_kinds": ["patch"], "layer": -2, "precision": "float32",
    "backbone": {"name": "dinov2-s", "sha256": "ab" * 32}, "preprocessing": {"side": 224}, "n_cells_train": 12_345,
    "hyperparameters": {"lr": 1e-3},
    "metrics": {"explained_variance": 0.81234, "l0": 31.7, "dead_share": 0.011, "n_tokens": 1_000_000, "pca_fvu": 0.3},
}  # fmt: skip


def trained(folder: Path, activation: str, d: int = 9, n: int = 30, **changes: Any) -> SparseAutoencoder:
    """A dictionary whose codes are sparse, as an artifact."""
    g = torch.Generator().manual_seed(1)
    W = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)
    extra: dict[str, Any] = {"threshold": {"threshold": torch.rand(n, generator=g) * 2 - 0.5}, "topk": {"k": 4}}.get(
        activation, {}
    )
    sae = SparseAutoencoder(
        W.T.contiguous(), 0.1 * torch.randn(n, generator=g), W, torch.randn(d, generator=g), activation, **extra
    )
    with commit_folder(folder, kind=KIND, version=VERSION, inputs={}, config={}) as (path, _):
        save_sae(path, sae, {**INFO, **changes})
    return load_sae(folder)


def tokens(d: int = 9, n: int = 200) -> torch.Tensor:
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("to", ["saelens", "huggingface"])
@pytest.mark.parametrize("activation", ["relu", "threshold", "topk"])
def test_an_export_comes_back_the_same(to: str, activation: str, tmp_path: Path) -> None:
    sae = trained(tmp_path / "sae", activation)
    export_sae(tmp_path / "sae", tmp_path / "out", to, licence="apache-2.0")
    again = import_sae(tmp_path / "out", tmp_path / "again")
    assert torch.equal(again.encode(tokens()), sae.encode(tokens()))
    assert torch.equal(again.W_dec, sae.W_dec)
    assert (again.activation, again.k) == (sae.activation, sae.k)
    for key in ("recipe", "semantics", "seed", "token_kinds", "layer", "precision", "backbone", "preprocessing"):
        assert again.info[key] == INFO[key]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "out", "sae"]


@pytest.mark.parametrize(
    ("activation", "architecture"), [("relu", "standard"), ("threshold", "jumprelu"), ("topk", "topk")]
)
def test_a_saelens_folder_has_the_layout_that_saelens_writes(
    activation: str, architecture: str, tmp_path: Path
) -> None:
    trained(tmp_path / "sae", activation)
    export_sae(tmp_path / "sae", tmp_path / "out", "saelens")
    ours = json.loads((tmp_path / "out" / "cfg.json").read_text("utf-8"))
    theirs = json.loads((FILES / f"lens-{architecture}" / "cfg.json").read_text("utf-8"))
    assert ours["architecture"] == architecture
    assert set(ours) == set(theirs)
    for key in set(theirs) - {"d_in", "d_sae", "k", "metadata", "rescale_acts_by_decoder_norm"}:
        assert ours[key] == theirs[key]
    mine = load_file(tmp_path / "out" / "sae_weights.safetensors")
    other = load_file(FILES / f"lens-{architecture}" / "sae_weights.safetensors")
    assert {key: (value.ndim, value.dtype) for key, value in mine.items()} == {
        key: (value.ndim, value.dtype) for key, value in other.items()
    }


@pytest.mark.parametrize("activation", ["relu", "threshold", "topk"])
def test_saelens_loads_an_export_with_equal_codes(
    activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lens = pytest.importorskip("sae_lens", reason="wants sae-lens")
    sae = trained(tmp_path / "sae", activation)
    export_sae(tmp_path / "sae", tmp_path / "out", "saelens")
    theirs = lens.SAE.load_from_disk(tmp_path / "out")
    codes = theirs.encode(tokens())
    assert float((codes > 0).float().mean()) > 0.02
    assert float((codes - sae.encode(tokens())).abs().max()) <= 1e-5
    assert float((theirs.decode(codes) - sae.decode(sae.encode(tokens()))).abs().max()) <= 1e-5
    assert theirs.cfg.metadata.cytosae["layer"] == -2


def test_golden_export_loads_in_saelens_with_equal_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lens = pytest.importorskip("sae_lens", reason="wants sae-lens")
    sae = import_sae(golden_file(), tmp_path / "sae")
    export_sae(sae, tmp_path / "out", "saelens")
    x = tokens(sae.d_in)
    codes = lens.SAE.load_from_disk(tmp_path / "out").encode(x)
    assert float((codes - sae.encode(x)).abs().max()) <= 1e-5


def test_saelens_itself_reads_the_old_spelling_as_this_program_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lens = pytest.importorskip("sae_lens", reason="wants sae-lens")
    old = {"d_in": 6, "d_sae": 16, "dtype": "torch.float32", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3},
           "normalize_activations": False, "hook_point": "blocks.10.hook_resid_post", "apply_b_dec_to_input": False}  # fmt: skip
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(old), "utf-8")
    (folder / "sae_weights.safetensors").write_bytes((FILES / "lens-topk" / "sae_weights.safetensors").read_bytes())
    x = tokens(6)
    assert float((lens.SAE.load_from_disk(folder).encode(x) - read_foreign(folder).encode(x)).abs().max()) <= 1e-5


def front_matter(card: str) -> tuple[dict[str, Any], str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_says_what_is_known(tmp_path: Path) -> None:
    trained(tmp_path / "sae", "threshold")
    export_sae(tmp_path / "sae", tmp_path / "out", "huggingface", licence="cc-by-4.0", title="Granules")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "manifest.json",
        "sae.json",
        "sae.safetensors",
    ]
    head, body = front_matter((tmp_path / "out" / "README.md").read_text("utf-8"))
    assert head["license"] == "cc-by-4.0"
    assert head["library_name"] == "cytosae"
    assert {"sparse-autoencoder", "hematology"} <= set(head["tags"])
    assert body.startswith("\n# Granules\n")
    assert "Research use only" in body
    for line in ("| explained variance of held-out tokens | 0.8123 |", "| active latents a token | 31.7 |",
                 "| tokens measured on | 1,000,000 |", "| backbone | dinov2-s |", "| block | -2 |", "| cells trained on | 12,345 |",
                 "| activation | `pre` where `pre > threshold`, else 0 |"):  # fmt: skip
        assert line in body
    assert torch.equal(load_sae(tmp_path / "out").encode(tokens()), load_sae(tmp_path / "sae").encode(tokens()))


def test_the_card_of_an_import_claims_no_metrics(tmp_path: Path) -> None:
    import_sae(FILES / "dl-topk", tmp_path / "sae")
    export_sae(tmp_path / "sae", tmp_path / "out", "huggingface")
    head, body = front_matter((tmp_path / "out" / "README.md").read_text("utf-8"))
    assert head["license"] == "unknown"
    assert "None are recorded" in body
    assert "| backbone | not known |" in body
    assert "the 3 largest positive" in body


def test_names_from_elsewhere_do_not_change_the_card(tmp_path: Path) -> None:
    evil = "x|y\n---\nlicense: mit\n<script>alert(1)</script> [a](javascript:b)"
    trained(tmp_path / "sae", "relu", recipe=evil, backbone={"name": evil, "sha256": "0" * 64})
    export_sae(tmp_path / "sae", tmp_path / "out", "huggingface", title=evil)
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    head, body = front_matter(text)
    assert head["license"] == "unknown"
    assert "<script>" not in body
    assert "](javascript" not in body
    assert all(line.count("|") == 3 for line in body.splitlines() if line.startswith("|"))


def test_a_card_may_be_edited_but_weights_may_not(tmp_path: Path) -> None:
    trained(tmp_path / "sae", "relu")
    export_sae(tmp_path / "sae", tmp_path / "out", "huggingface")
    with (tmp_path / "out" / "README.md").open("a", encoding="utf-8") as file:
        file.write("\nOur own words.\n")
    assert import_sae(tmp_path / "out", tmp_path / "again").info["metrics"] == INFO["metrics"]
    weights = tmp_path / "out" / "sae.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(CytosaeError, match="has changed since it was written"):
        import_sae(tmp_path / "out", tmp_path / "third")
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "sae.json").write_text('{"activation": "softmax", "d_in": 9, "n_latents": 30}', "utf-8")
    with pytest.raises(CytosaeError, match="softmax"):
        import_sae(tmp_path / "out", tmp_path / "third")


def test_a_backbone_that_is_no_record_is_not_believed(tmp_path: Path) -> None:
    for number, record in enumerate(
        (
            3,
            {"name": "x"},
            {"name": "dinov2", "sha256": "0" * 64, "options": {"precision": "x"}},
            {"name": "x", "sha256": "../" * 9},
        )
    ):
        trained(tmp_path / "sae", "relu", backbone=record if isinstance(record, dict) else {"name": record})
        export_sae(tmp_path / "sae", tmp_path / "out", "huggingface")
        assert import_sae(tmp_path / "out", tmp_path / f"again{number}").info["backbone"] is None


def test_a_wrong_target_licence_or_place_writes_nothing(tmp_path: Path) -> None:
    trained(tmp_path / "sae", "relu")
    for options, says in (
        ({"to": "sealens"}, "did you mean 'saelens'"),
        ({"to": "huggingface", "licence": "my own\nx: y"}, "licence"),
    ):
        with pytest.raises(UsageError, match=says):
            export_sae(tmp_path / "sae", tmp_path / "out", **options)
    with pytest.raises(UsageError, match="the dictionary itself"):
        export_sae(tmp_path / "sae", tmp_path / "sae", "huggingface")
    assert [p.name for p in tmp_path.iterdir()] == ["sae"]


# ------------------------------------------------------------------ the command line


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> SimpleNamespace:
    """The command line in this process."""
    status = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return SimpleNamespace(returncode=status, stdout=out, stderr=err)


def test_the_verbs_say_what_they_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "import", "sae", FILES / "dl-jumprelu", "--out", tmp_path / "sae", "--layer", -2)
    assert done.returncode == 0, done.stderr
    assert (
        "16 latents of 6 numbers, threshold, from dictionary_learning JumpReluAutoEncoder; the encoder did not"
        in done.stdout
    )
    assert "backbone not known" in done.stdout
    assert "block -2" in done.stdout
    done = call(
        capsys, "export", tmp_path / "sae", "--to", "huggingface", "--license", "mit", "--out", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    assert "README.md, manifest.json, sae.json, sae.safetensors" in done.stdout


def test_the_verbs_refuse_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04")
    for arguments, status, says in (
        (("import", "sae", tmp_path / "x.pt", "--out", tmp_path / "sae"), 1, "cut short or damaged"),
        (("import", "sea", tmp_path / "x.pt"), 2, "did you mean 'sae'"),
        (("import", "sae", tmp_path / "x.pt", "--out", tmp_path / "sae", "--weights", "w.pth"), 2, "--backbone"),
        (("export", tmp_path / "no", "--to", "saelens", "--out", tmp_path / "out"), 1, "does not exist"),
    ):
        done = call(capsys, *arguments)
        assert done.returncode == status
        assert says in done.stderr
        assert done.stderr.startswith("cytosae: ")
        assert len(done.stderr.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.backbone
def test_a_dictionary_of_another_backbone_is_refused_by_the_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call(capsys, "import", "sae", FILES / "lens-topk", "--backbone", "dinov2-s", "--out", tmp_path / "sae")
    assert done.returncode == 1
    assert "dictionary of 6 numbers a token, but dinov2-s has 384; it belongs to another backbone" in done.stderr
    assert not (tmp_path / "sae").exists()
