"""Files that must not be imported: one sentence each, nothing executed, nothing half-written."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from published import golden_file
from safetensors.torch import load_file, save_file

from cytosae import CytosaeError
from cytosae.sae.formats import export_sae, import_sae, read_foreign

FILES = Path(__file__).parent / "formats_files"


def refusal(path: Path, out: Path) -> str:
    before = sorted(out.parent.iterdir())
    with pytest.raises(CytosaeError) as found:
        import_sae(path, out)
    text = str(found.value)
    assert "\n" not in text
    assert text.endswith((".", ")"))
    assert len(text) < 600
    assert sorted(out.parent.iterdir()) == before
    return text


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "sae"


class Evil:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("key", ["cfg", "other", "state_dict"])
def test_a_file_that_holds_code_is_refused_by_name_and_not_run(key: str, tmp_path: Path, out: Path) -> None:
    torch.save({"state_dict": {"W_enc": torch.zeros(2, 3)}, key: Evil(tmp_path / "marker")}, tmp_path / "x.pt")
    assert "it names io.open" in refusal(tmp_path / "x.pt", out)
    assert not (tmp_path / "marker").exists()


def test_a_known_name_beside_an_unknown_one_opens_no_door(tmp_path: Path, out: Path) -> None:
    body = b"\x80\x02}q\x00(X\x03\x00\x00\x00cfgcsrc.sae_training.config\nViTSAERunnerConfig\n)\x81X\x01\x00\x00\x00xcos\nsystem\nX\x04\x00\x00\x00true\x85Ru."
    assert "it names os.system" in refusal(torch_zip(tmp_path / "x.pt", body), out)


def torch_zip(path: Path, body: bytes, compression: int = zipfile.ZIP_STORED, **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", body)
        archive.writestr("x/byteorder", b"little")
        for name, value in others.items():
            archive.writestr(f"x/{name.replace('__', '/')}", value)
        archive.writestr("x/version", b"3\n")
    return path


CONFIG = b"csrc.sae_training.config\nViTSAERunnerConfig\n"


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.",  # INST
        CONFIG + b"(X\x01\x00\x00\x00atR.",  # the known class called with an argument
        CONFIG + b")\x81}X\x09\x00\x00\x00__class__" + CONFIG + b"sb.",
        b"\x80\x02cbuiltins\neval\n.",
        b"\x80\x02ctorch\nload\nX\x05\x00\x00\x00x.ptx\x85R.",
        b"\x80\x02]q\x00(h\x00h\x00e.",  # a list that holds itself
        b"\x80\x02}q\x00X\x03\x00\x00\x00cfgh\x00s.",  # and a dict
        b"\x82\x01.",  # EXT1
        b"",
    ],
)
def test_other_ways_of_calling_are_refused(body: bytes, tmp_path: Path, out: Path) -> None:
    refusal(torch_zip(tmp_path / "x.pt", body), out)


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path, out: Path) -> None:
    path = torch_zip(tmp_path / "x.pt", b"\x80\x02}.", zipfile.ZIP_DEFLATED, data__0=b"\0" * 50_000_000)
    assert path.stat().st_size < 100_000
    assert "compressed, which torch.save never does" in refusal(path, out)


def test_a_pickle_far_too_large_is_refused(tmp_path: Path, out: Path) -> None:
    assert "which no dictionary needs" in refusal(torch_zip(tmp_path / "x.pt", b"." * (17 << 20)), out)


def test_entries_that_overlap_are_refused(tmp_path: Path, out: Path) -> None:
    path = torch_zip(tmp_path / "x.pt", b"\x80\x02}." + bytes(4000))
    raw = bytearray(path.read_bytes())
    first = raw.index(b"PK\x01\x02")
    for at in (i for i in range(first, len(raw)) if raw[i : i + 4] == b"PK\x01\x02"):
        raw[at + 20 : at + 28] = struct.pack("<II", 4004, 4004)
    path.write_bytes(raw)
    assert "its own size" in refusal(path, out)


def test_torchscript_is_refused(tmp_path: Path, out: Path) -> None:
    path = torch_zip(tmp_path / "x.pt", b"\x80\x02}.", **{"constants.pkl": b"\x80\x02)."})
    assert "TorchScript" in refusal(path, out)


def test_formats_from_before_pytorch_1_6_are_refused(tmp_path: Path, out: Path) -> None:
    torch.save({"W_enc": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "before version 1.6" in refusal(tmp_path / "old.pt", out)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"W_enc": Evil(tmp_path / "marker")}))
    assert "before version 1.6" in refusal(tmp_path / "pickle.pt", out)
    with tarfile.open(tmp_path / "tar.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    assert "before version 1.6" in refusal(tmp_path / "tar.pt", out)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"hello, I am a text", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_what_is_no_pytorch_file_is_refused(content: bytes, tmp_path: Path, out: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    refusal(tmp_path / "x.pt", out)


def test_another_zip_archive_is_refused(tmp_path: Path, out: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not one that torch.save wrote" in refusal(tmp_path / "x.pt", out)


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [1, 2], {}, {"a": 1}, {1: torch.zeros(2)}, None, {"state_dict": 3, "cfg": {"a": 1}}]
)
def test_a_checkpoint_of_something_else_is_refused(content: Any, tmp_path: Path, out: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    refusal(tmp_path / "x.pt", out)


def test_what_is_missing_is_named(tmp_path: Path, out: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "no.pt", out)
    assert "holds no dictionary" in refusal(FILES, out)
    (tmp_path / "half").mkdir()
    shutil.copy(FILES / "lens-topk" / "cfg.json", tmp_path / "half")
    assert "sae_weights.safetensors is missing" in refusal(tmp_path / "half", out)
    (tmp_path / "other").mkdir()
    shutil.copy(FILES / "lens-topk" / "sae_weights.safetensors", tmp_path / "other")
    assert "cfg.json cannot be read" in refusal(tmp_path / "other", out)
    shutil.copy(FILES / "lens-topk" / "expected.safetensors", tmp_path)
    assert "give the folder" in refusal(tmp_path / "expected.safetensors", out)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff\xfe", b'{"a":' * 100_000, b"[" * 100_000, b'{"d_in": ' + b"9" * 5000 + b"}", b"null",
     b" " * (17 << 20), b'{"architecture": "standard", "d_in": NaN}', b'{"d_in": 1e999}', b"{}"],
)  # fmt: skip
def test_damaged_settings_are_refused(content: bytes, tmp_path: Path, out: Path) -> None:
    shutil.copytree(FILES / "lens-topk", tmp_path / "x")
    (tmp_path / "x" / "cfg.json").write_bytes(content)
    refusal(tmp_path / "x", out)


@pytest.mark.parametrize("header", [2**63, 2**40, 10**8 + 1, 5, 0])
def test_a_safetensors_header_of_impossible_length_is_refused(header: int, tmp_path: Path, out: Path) -> None:
    shutil.copytree(FILES / "lens-topk", tmp_path / "x")
    path = tmp_path / "x" / "sae_weights.safetensors"
    path.write_bytes(struct.pack("<Q", header) + path.read_bytes()[8:])
    assert "is cut short or is not safetensors" in refusal(tmp_path / "x", out)


def test_a_safetensors_header_of_impossible_tensors_is_refused(tmp_path: Path, out: Path) -> None:
    shutil.copytree(FILES / "lens-topk", tmp_path / "x")
    for shape, end in (([2**40, 2**40], 64), ([4, 4], 2**50), ([-4, -4], 64), ([4.5, 4], 64)):
        head = json.dumps({"W_enc": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
        (tmp_path / "x" / "sae_weights.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(64))
        refusal(tmp_path / "x", out)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
def test_values_that_are_not_numbers_are_refused(name: str, value: float, tmp_path: Path, out: Path) -> None:
    shutil.copytree(FILES / "lens-jumprelu", tmp_path / "x")
    path = tmp_path / "x" / "sae_weights.safetensors"
    state = load_file(path)
    state[name].view(-1)[1] = value
    save_file(state, path)
    assert f"{name} holds values that are not numbers" in refusal(tmp_path / "x", out)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
@pytest.mark.parametrize("change", ["missing", "shape", "rank"])
def test_a_wrong_or_missing_part_is_named(name: str, change: str, tmp_path: Path, out: Path) -> None:
    shutil.copytree(FILES / "lens-jumprelu", tmp_path / "x")
    path = tmp_path / "x" / "sae_weights.safetensors"
    state = load_file(path)
    value = state.pop(name)
    if change != "missing":
        state[name] = (value[:-1] if change == "shape" else value[None]).contiguous()
    save_file(state, path)
    text = refusal(tmp_path / "x", out)
    if change == "shape" and name in ("W_enc", "W_dec"):  # the settings or the other parts no longer fit
        assert "x" in text
    else:
        assert name in text


def test_a_failed_import_leaves_what_was_there(tmp_path: Path) -> None:
    import_sae(FILES / "lens-topk", tmp_path / "sae")
    before = (tmp_path / "sae" / "manifest.json").read_bytes()
    with pytest.raises(CytosaeError):
        import_sae(FILES / "lens-gated", tmp_path / "sae")
    assert (tmp_path / "sae" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(CytosaeError, match="other files in it"):
        import_sae(FILES / "lens-topk", tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


# ------------------------------------------------------------------ damage anywhere

_DAMAGED = ["dl-topk/ae.pt", "dl-jumprelu/ae.pt", "dl-standard/ae.pt", "lens-topk/sae_weights.safetensors",
            "lens-jumprelu/sae_weights.safetensors", "lens-topk/cfg.json", "dl-topk/config.json"]  # fmt: skip


def positions(raw: bytes, n: int = 200) -> Iterator[int]:
    """About `n` places: the first and last 20 bytes, and evenly between."""
    yield from sorted({*range(20), *range(len(raw) - 20, len(raw)), *range(0, len(raw), max(1, len(raw) // n))})


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a pickle could want to run may be reached."""

    def reached(*_: Any, **__: Any) -> None:
        raise SystemExit("code was run")

    for module, name in (("os", "system"), ("subprocess", "Popen"), ("pickle", "loads"), ("pickle", "load")):
        monkeypatch.setattr(f"{module}.{name}", reached)


_CHANGES: dict[str, Callable[[bytes, int], bytes]] = {
    "cut": lambda b, i: b[:i],
    "flip": lambda b, i: b[:i] + bytes([b[i] ^ (1 << i % 8)]) + b[i + 1 :],
    "zero": lambda b, i: b[:i] + bytes(4) + b[i + 4 :],
    "high": lambda b, i: b[:i] + b"\xff\xff\xff\x7f" + b[i + 4 :],
}


def damage(path: Path, source: Path, change: str) -> None:
    """Damage `path` at many places; each time there is a sentence, or a dictionary that is one."""
    whole, raw = read_foreign(source), path.read_bytes()
    refused = tried = broken = 0
    for i in positions(raw):
        path.write_bytes(_CHANGES[change](raw, i))
        tried += 1
        try:
            sae = read_foreign(source)
        except CytosaeError as error:
            broken += "\n" in str(error)
            refused += 1
            continue
        for key in ("W_enc", "b_enc", "W_dec", "b_dec"):
            value = getattr(sae, key)
            assert bool(torch.isfinite(value).all())
            # a PyTorch file carries checksums: what is accepted is what was written
            assert value.shape == getattr(whole, key).shape
            assert path.suffix != ".pt" or torch.equal(value, getattr(whole, key)), i
    assert not broken
    # without its last line break, JSON is still whole
    assert refused >= (tried - raw.endswith(b"\n") if change == "cut" else 1)


@pytest.mark.usefixtures("no_code")
@pytest.mark.parametrize("name", _DAMAGED)
@pytest.mark.parametrize("change", _CHANGES)
def test_damage_anywhere_gives_a_sentence_or_a_whole_dictionary(name: str, change: str, tmp_path: Path) -> None:
    shutil.copytree((FILES / name).parent, tmp_path / "x")
    damage(tmp_path / "x" / Path(name).name, tmp_path / "x", change)


@pytest.mark.usefixtures("no_code")
@pytest.mark.parametrize("change", _CHANGES)
def test_golden_damage_to_a_published_checkpoint(change: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(golden_file().read_bytes())
    damage(path, path, change)


@pytest.mark.usefixtures("no_code")
@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("name", ["sae.json", "sae.safetensors"])
def test_damage_to_a_model_folder(name: str, change: str, tmp_path: Path) -> None:
    export_sae(import_sae(FILES / "lens-topk", tmp_path / "sae"), tmp_path / "x", "huggingface")
    (tmp_path / "x" / "manifest.json").unlink()  # whose hashes would find all of it
    damage(tmp_path / "x" / name, tmp_path / "x", change)
