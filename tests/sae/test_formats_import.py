"""Dictionaries of other programs: read from files that those programs wrote, with the codes that they give."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from published import golden_file
from safetensors.torch import load_file, save_file

from cytosae import CytosaeError, load_sae
from cytosae._errors import UsageError
from cytosae.sae.formats import Belonging, import_sae, read_foreign

FILES = Path(__file__).parent / "formats_files"
WRITTEN = sorted(path.parent.name for path in FILES.glob("*/expected.safetensors"))
REFUSED = {"lens-gated", "lens-standard-layernorm"}
#: fixture -> activation, and number of changes made to the weights
KINDS = {
    "dl-standard": ("relu", 0), "dl-topk": ("topk", 0), "dl-batchtopk": ("threshold", 0), "dl-matryoshka": ("threshold", 0),
    "dl-jumprelu": ("threshold", 1), "lens-standard": ("relu", 0), "lens-standard-uncentred": ("relu", 1),
    "lens-topk": ("topk", 1), "lens-topk-checkpoint": ("topk", 1), "lens-jumprelu": ("threshold", 0),
    "lens-jumprelu-checkpoint": ("threshold", 0), "lens-batchtopk": ("threshold", 0),
    "lens-batchtopk-checkpoint": ("threshold", 1),
}  # fmt: skip


def copy(name: str, tmp_path: Path) -> Path:
    shutil.copytree(FILES / name, tmp_path / name)
    return tmp_path / name


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def test_every_file_is_tested() -> None:
    assert set(WRITTEN) - REFUSED == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_codes_and_reconstructions_are_those_of_the_program_that_wrote_it(name: str, tmp_path: Path) -> None:
    expected = load_file(FILES / name / "expected.safetensors")
    sae = import_sae(FILES / name, tmp_path / "sae")
    codes = sae.encode(expected["x"])
    assert sae.activation == KINDS[name][0]
    assert len(sae.info["imported"]["changes"]) == KINDS[name][1]
    assert 0 < float((expected["codes"] > 0).float().mean()) < 1
    assert float((codes - expected["codes"]).abs().max()) <= 1e-5
    assert float((sae.decode(codes) - expected["y"]).abs().max()) <= 1e-5
    again = load_sae(tmp_path / "sae")
    assert torch.equal(again.encode(expected["x"]), codes)


@pytest.mark.parametrize("name", ["dl-standard", "dl-topk", "lens-standard", "lens-jumprelu"])
def test_weights_stay_as_trained(name: str) -> None:
    sae = read_foreign(FILES / name)
    if name.startswith("dl"):
        state = torch.load(FILES / name / "ae.pt", weights_only=True)
        assert torch.equal(sae.W_enc, state["encoder.weight"].T)
        assert torch.equal(sae.W_dec, state["decoder.weight"].T)
    else:
        state = load_file(FILES / name / "sae_weights.safetensors")
        assert all(torch.equal(getattr(sae, key), value) for key, value in state.items())


def test_golden_published_checkpoint_keeps_every_value_and_field(tmp_path: Path) -> None:
    path = golden_file()
    sae = import_sae(path, tmp_path / "sae")
    with zipfile.ZipFile(path) as archive:
        records = {archive.read(name) for name in archive.namelist() if "/data/" in name}
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert getattr(sae, name).numpy().tobytes() in records
    info = json.loads((tmp_path / "sae" / "sae.json").read_text("utf-8"))
    fields = info["hyperparameters"]
    assert (info["d_in"], info["n_latents"]) == (fields["d_in"], fields["d_sae"]) == tuple(sae.W_enc.shape)
    assert info["activation"] == "relu"
    assert info["semantics"] == "cytosae-2025"
    assert info["token_kinds"] == ["class", "patch"]
    assert info["layer"] == fields["block_layer"]
    assert fields["dtype"] == "float32"
    assert fields["device"].startswith(("cpu", "cuda"))
    assert {"lr", "l1_coefficient", "model_name", "dead_feature_window", "b_dec_init_method"} <= set(fields)
    assert info["backbone"] is None
    assert info["preprocessing"] is None
    assert info["n_cells_train"] is None


# ------------------------------------------------------------------ published files of other machines and spellings


class ViTSAERunnerConfig:
    """Pickled under the name that the published program's class has."""


ViTSAERunnerConfig.__module__ = "src.sae_training.config"
Config = type("Config", (), {"__module__": "src.sae_training.config"})


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a checkpoint as the published program does; its modules exist only meanwhile."""

    def write(key: str = "cfg", cls: Any = ViTSAERunnerConfig, change: Any = None, **fields: Any) -> Path:
        g = torch.Generator().manual_seed(0)
        state = {"W_enc": torch.randn(5, 12, generator=g), "b_enc": torch.zeros(12),
                 "W_dec": torch.randn(12, 5, generator=g), "b_dec": torch.zeros(5)}  # fmt: skip
        config = cls()
        config.__dict__ = {"d_in": 5, "d_sae": 12, "block_layer": -2, "class_token": None, "gated_sae": None, **fields}
        content = {key: config, "state_dict": state}
        if change:
            change(content)
        path = tmp_path / "published.pt"
        module = SimpleNamespace(ViTSAERunnerConfig=ViTSAERunnerConfig, Config=Config)
        with monkeypatch.context() as patch:
            for name in ("src", "src.sae_training", "src.sae_training.config"):
                patch.setitem(__import__("sys").modules, name, module)
            torch.save(content, path)
        return path

    return write


@pytest.mark.parametrize("key", ["cfg", "config"])
@pytest.mark.parametrize("cls", [ViTSAERunnerConfig, Config])
def test_a_checkpoint_saved_on_cuda_is_read_without_it(published: Any, key: str, cls: Any) -> None:
    path = published(key, cls, device=torch.device("cuda"), dtype=torch.float32, seed=42)
    sae = read_foreign(path)
    assert sae.info["hyperparameters"]["device"] == "cuda"
    assert sae.info["hyperparameters"]["dtype"] == "float32"
    assert sae.info["seed"] == 42


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_numbers_are_read(published: Any, dtype: torch.dtype) -> None:
    def change(content: Any) -> None:
        content["state_dict"] = {
            key: torch.nn.Parameter(value.to(dtype)) for key, value in content["state_dict"].items()
        }

    sae = read_foreign(published(change=change))
    assert sae.W_enc.dtype == torch.float32
    assert sae.info["imported"]["dtype"] == str(dtype).removeprefix("torch.")


def test_rows_off_unit_length_are_not_normalised(published: Any) -> None:
    path = published()
    g = torch.Generator().manual_seed(0)
    torch.randn(5, 12, generator=g)
    assert torch.equal(read_foreign(path).W_dec, torch.randn(12, 5, generator=g))


def test_a_dictionary_of_the_class_token_says_so(published: Any) -> None:
    assert read_foreign(published(class_token=True)).info["token_kinds"] == ["class"]


def test_a_gated_published_dictionary_is_refused(published: Any) -> None:
    with pytest.raises(CytosaeError, match="gated"):
        read_foreign(published(gated_sae=True))


def test_a_configuration_of_another_dictionary_is_refused(published: Any) -> None:
    with pytest.raises(CytosaeError, match="says d_in 768, but W_enc is 5 x 12"):
        read_foreign(published(d_in=768))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("cfg"), "no configuration"),
        (lambda c: c.pop("state_dict"), "no state_dict"),
        (lambda c: c["state_dict"].pop("b_enc"), "has no b_enc"),
        (lambda c: c["state_dict"].update(W_gate=torch.zeros(2)), "also holds W_gate"),
        (lambda c: c["state_dict"].update(W_dec=torch.zeros(12, 6)), r"W_dec has the shape \[12, 6\], but \[12, 5\]"),
        (lambda c: c["state_dict"].update(W_enc=torch.zeros(60)), "W_enc has the shape"),
        (lambda c: c["state_dict"].update(W_enc=torch.zeros(0, 12)), "W_enc has the shape"),
        (lambda c: c["state_dict"].update(W_enc=torch.zeros(1).expand(60000, 60000)), "claims to be larger than the file"),
        (lambda c: c["state_dict"].update(b_dec=torch.full((5,), float("nan"))), "b_dec holds values that are not numbers"),
        (lambda c: c["state_dict"].update(more=bytearray(3)), "bytearray, .*which the plain tensors"),
        (lambda c: c["state_dict"].update(b_dec=torch.zeros(5, dtype=torch.complex64)), "not a plain tensor"),
        (lambda c: c["state_dict"].update(b_dec=torch.zeros(5, device="meta")), "names torch._utils._rebuild_meta"),
        (lambda c: c["state_dict"].update(b_dec=torch.zeros(5).to_sparse()), "names torch._utils._rebuild_sparse"),
        (lambda c: c["state_dict"].update(b_dec=[0.0] * 5), "not a plain tensor"),
        (lambda c: c["state_dict"].update(b_dec=torch.full((5,), 1e300, dtype=torch.float64)), "not numbers"),
    ],
)  # fmt: skip
def test_a_wrong_part_is_named(published: Any, change: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(CytosaeError, match=says) as found:
        import_sae(published(change=change), tmp_path / "sae")
    assert "\n" not in str(found.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published.pt"]


def test_fields_that_no_file_can_hold_do_not_reach_it(published: Any, tmp_path: Path) -> None:
    nest: Any = ["x"]
    for _ in range(60):
        nest = [nest, nest]
    deep: Any = {}
    for _ in range(40):
        deep = {"a": deep}
    path = published(lr=float("nan"), seed=2**200, wide=nest, deep=deep, name="\ud800", tensor=torch.zeros(2))
    import_sae(path, tmp_path / "sae")
    assert (tmp_path / "sae" / "sae.json").stat().st_size < 200_000
    assert load_sae(tmp_path / "sae").info["hyperparameters"]["lr"] is None


# ------------------------------------------------------------------ what it belongs to


def belonging(d_in: int, layer: int | None = None) -> Belonging:
    record = {"name": "dinov2-s", "sha256": "0" * 64}
    return Belonging("dinov2-s", d_in, record, {"side": 224}, "float32", layer)


def test_a_dictionary_of_another_backbone_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(CytosaeError, match=r"6 numbers a token, but dinov2-s has 384; it belongs to another backbone"):
        import_sae(FILES / "lens-topk", tmp_path / "sae", belongs=belonging(384))
    assert not list(tmp_path.iterdir())


def test_a_dictionary_of_another_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CytosaeError, match="is of block 10, but the tokens in dinov2-s are of block -2"):
        import_sae(FILES / "dl-topk", tmp_path / "sae", belongs=belonging(6, -2))
    assert import_sae(FILES / "dl-topk", tmp_path / "sae", belongs=belonging(6, -2), layer=-2).info["layer"] == -2
    knows = replace(belonging(6, -2), depth=12)
    assert import_sae(FILES / "dl-topk", tmp_path / "same", belongs=knows).info["layer"] == -2, "10 of 12 is -2"
    with pytest.raises(CytosaeError, match="is of block 10"):
        import_sae(FILES / "dl-topk", tmp_path / "other", belongs=replace(belonging(6, -2), depth=24))


def test_the_backbone_it_is_for_is_recorded(tmp_path: Path) -> None:
    info = import_sae(FILES / "lens-topk", tmp_path / "sae", belongs=belonging(6), layer=-2).info
    assert info["backbone"] == {"name": "dinov2-s", "sha256": "0" * 64}
    assert (info["layer"], info["precision"], info["preprocessing"]) == (-2, "float32", {"side": 224})


def test_the_source_is_not_overwritten(tmp_path: Path) -> None:
    folder = copy("lens-topk", tmp_path)
    with pytest.raises(UsageError, match="choose another --out"):
        import_sae(folder, folder)
    assert (folder / "cfg.json").exists()


# ------------------------------------------------------------------ older and odder spellings of SAELens


def test_the_spelling_before_saelens_6_is_read(tmp_path: Path) -> None:
    folder = copy("lens-topk", tmp_path)
    old = {"d_in": 6, "d_sae": 16, "dtype": "torch.float32", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3},
           "normalize_activations": False, "hook_point": "blocks.10.hook_resid_post", "hook_point_layer": 10}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(old), "utf-8")
    expected = load_file(folder / "expected.safetensors")
    sae = read_foreign(folder)
    assert (sae.activation, sae.k) == ("topk", 3)
    assert float((sae.encode(expected["x"]) - expected["codes"]).abs().max()) <= 1e-5


def test_an_older_training_checkpoint_keeps_the_logarithm_of_its_threshold(tmp_path: Path) -> None:
    folder = copy("lens-jumprelu", tmp_path)
    state = load_file(folder / "sae_weights.safetensors")
    whole = read_foreign(folder).threshold
    save_file({"log_threshold" if k == "threshold" else k: v.log() if k == "threshold" else v for k, v in state.items()},
              folder / "sae_weights.safetensors")  # fmt: skip
    assert whole is not None
    assert torch.allclose(read_foreign(folder).threshold, whole, rtol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lens-standard", "lens-topk", "lens-topk-checkpoint", "lens-batchtopk-checkpoint"])
def test_a_scaling_of_the_tokens_is_folded_into_the_weights(name: str, tmp_path: Path) -> None:
    plainly, folder = read_foreign(FILES / name), copy(name, tmp_path)
    edit(folder / "cfg.json", normalize_activations="expected_average_only_in")
    with pytest.raises(CytosaeError, match="fold_activation_norm_scaling_factor"):
        read_foreign(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 2.5, "has_whitening": false}', "utf-8")
    x = load_file(folder / "expected.safetensors")["x"]
    sae = read_foreign(folder)
    want = plainly.decode(plainly.encode(x * 2.5)) / 2.5
    assert float((sae.decode(sae.encode(x)) - want).abs().max()) <= 1e-5
    assert torch.equal(sae.encode(x) > 0, plainly.encode(x * 2.5) > 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalize_activations": "constant_norm_rescale"}, "normalised by constant_norm_rescale"),
        ({"normalize_activations": "covariance_whitening"}, "fold the whitening"),
        ({"normalize_activations": ["layer_norm"]}, "normalised by"),
        ({"architecture": "transcoder"}, "'transcoder' of SAELens, which is not read here"),
        ({"architecture": {"a": 1}}, "which is not read here"),
        ({"activation_fn": "tanh-relu"}, "tanh-relu"),
        ({"activation_fn": ["relu"]}, "activation"),
        ({"k": 0}, "its k is 0"),
        ({"k": 2.5}, "its k is 2.5"),
        ({"k": True}, "its k is True"),
        ({"k": 17}, "k is 17 and not from 1 to 16"),
        ({"d_in": 768}, "says d_in 768"),
        ({"d_sae": "16"}, "says d_sae 16"),
        ({"metadata": 3, "k": None}, "its k is None"),
    ],
)  # fmt: skip
def test_settings_that_would_change_the_codes_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = copy("lens-topk", tmp_path)
    edit(folder / "cfg.json", **changes)
    with pytest.raises(CytosaeError, match=says) as found:
        read_foreign(folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("name", "says"), [("lens-gated", "gated"), ("lens-standard-layernorm", "layer_norm"),
                                            ("dl-gated", "GatedAutoEncoder")])  # fmt: skip
def test_what_cannot_be_computed_here_is_refused(name: str, says: str) -> None:
    with pytest.raises(CytosaeError, match=says):
        read_foreign(FILES / name)


def test_a_fine_tuned_scaling_is_refused_and_one_of_ones_ignored(tmp_path: Path) -> None:
    folder = copy("lens-standard", tmp_path)
    state = load_file(folder / "sae_weights.safetensors")
    save_file({**state, "scaling_factor": torch.ones(16)}, folder / "sae_weights.safetensors")
    assert torch.equal(read_foreign(folder).W_dec, state["W_dec"])
    save_file({**state, "scaling_factor": torch.full((16,), 2.0)}, folder / "sae_weights.safetensors")
    with pytest.raises(CytosaeError, match="scaling_factor"):
        read_foreign(folder)


# ------------------------------------------------------------------ dictionary_learning


def test_topk_and_batchtopk_have_the_same_tensors_so_the_settings_are_needed(tmp_path: Path) -> None:
    folder = copy("dl-topk", tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(CytosaeError, match=r"AutoEncoderTopK or a BatchTopKSAE.*config\.json"):
        read_foreign(folder)
    assert read_foreign(FILES / "dl-topk" / "ae.pt").activation == "topk"
    (tmp_path / "alone").mkdir()
    shutil.copy(FILES / "dl-jumprelu" / "ae.pt", tmp_path / "alone" / "ae.pt")
    assert read_foreign(tmp_path / "alone").activation == "threshold"


def test_a_checkpoint_finds_the_settings_one_folder_up(tmp_path: Path) -> None:
    folder = copy("dl-topk", tmp_path)
    (folder / "checkpoints").mkdir()
    (folder / "ae.pt").rename(folder / "checkpoints" / "ae_20.pt")
    assert read_foreign(folder / "checkpoints" / "ae_20.pt").k == 3


def test_a_threshold_that_was_never_set_is_refused(tmp_path: Path) -> None:
    folder = copy("dl-batchtopk", tmp_path)
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({**state, "threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    with pytest.raises(CytosaeError, match="never set"):
        read_foreign(folder)


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        ({"dict_class": "BatchTopKSAE", "dict_size": 17}, "says dict_size 17"),
        ({"dict_class": "AutoEncoder"}, "do not belong together"),
        ({"dict_class": "IdentityDict"}, "is a IdentityDict, which is not read here"),
        ({"dict_class": 3}, "have the same tensors"),
    ],
)
def test_settings_of_another_dictionary_are_refused(trainer: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = copy("dl-batchtopk", tmp_path)
    edit(folder / "config.json", trainer=trainer)
    with pytest.raises(CytosaeError, match=says):
        read_foreign(folder)


def test_an_encoder_that_does_not_subtract_the_bias_keeps_its_codes(tmp_path: Path) -> None:
    state = torch.load(FILES / "dl-standard" / "ae.pt", weights_only=True)
    new = {("decoder.bias" if key == "bias" else key): value for key, value in state.items()}
    torch.save(new, tmp_path / "ae.pt")
    x = load_file(FILES / "dl-standard" / "expected.safetensors")["x"]
    want = torch.relu(x @ state["encoder.weight"].T + state["encoder.bias"])
    assert float((read_foreign(tmp_path).encode(x) - want).abs().max()) <= 1e-5
