"""The whole reproduction of the paper on small trees of real cells in the published layouts, with a small random backbone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import publishers as made
from cytosae import ConceptIndex
from cytosae.cells import ImageParquet
from cytosae.cells.layouts._vocabulary import ACEVEDO, MLL23

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reproduce_paper.py"
DIAGNOSES = ("AML-CBFB-MYH11", "AML-NPM1", "AML-PML-RARA", "AML-RUNX1-RUNX1T1", "SCD")


def run(*arguments: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory, bundle: ImageParquet) -> Path:
    """MLL23, Acevedo and AML_Hehr as they lie on a disk, and a weight file."""
    root = tmp_path_factory.mktemp("sets")
    cells = iter(range(10_000))

    def put(path: str, kind: str, side: int, **options: Any) -> None:
        image = Image.open(io.BytesIO(bundle.read(next(cells) % 1000)[0] or b"")).convert("RGB").resize((side, side))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / path, kind, **options)

    for name in MLL23:
        for k in range(3):
            put(f"mll23/{name}/MLL23-{name}-{k}.tif", "TIFF", 288, compression="tiff_lzw")
    for prefix in ACEVEDO:
        for k in range(2):
            put(f"acevedo/PBC_dataset_normal_DIB/x/{prefix}_{k}.jpg", "JPEG", 360)
    for i, diagnosis in enumerate(DIAGNOSES):
        for patient in range(5):
            for k in range(3):
                put(f"aml/{diagnosis}/{chr(65 + i)}{chr(65 + patient)}A/{k}.TIF", "TIFF", 144, compression="tiff_lzw")
    torch.save(made.dinobloom_pth(made.dino()), root / "DinoBloom-S.pth")
    return root


def test_from_images_to_the_table_and_again(trees: Path, tmp_path: Path) -> None:
    given = ("--mll23", trees / "mll23", "--acevedo", trees / "acevedo", "--aml-hehr", trees / "aml", "--dinobloom", trees / "DinoBloom-S.pth",
             "--set", "default:presentations=3000", "--set", "default:k=4", "--set", "default:expansion=4", "--set", "default:batch=64",
             "--set", "cytosae-2025:presentations=320", "--set", "cytosae-2025:expansion=4", "--set", "cytosae-2025:cells_per_step=8",
             "--threads", "1", "--out", tmp_path / "paper")  # fmt: skip
    done = run(*given)
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "paper" / "paper.md").read_text()
    record = json.loads((tmp_path / "paper" / "paper.json").read_text())
    assert record["sets"] == {"mll23": 54, "acevedo": 26, "aml-hehr": 75}
    for recipe in ("cytosae-2025", "default"):
        folder = tmp_path / "paper" / recipe
        assert ConceptIndex(folder / "index-acevedo").semantics == recipe
        for figure in ("landscape", "kept", "exemplars", "barcodes", "diseases"):
            with Image.open(folder / f"{figure}.png") as image:
                pixels = np.asarray(image.convert("L"))
            assert min(pixels.shape) > 300
            assert pixels.std() > 3, "something is drawn"
        assert set(record["recipes"][recipe]["jaccard"]) == {"acevedo", "aml-hehr"}
        assert 0 <= record["recipes"][recipe]["classification"]["concept_profile"]["value"] <= 1
    assert "set not given" in text, "Matek19 and BMC were not given, and the table says so"
    assert "0.832 +/- 0.044" in text
    costs = {k: v["seconds"] for k, v in record["stages"].items()}
    assert len(costs) == 3 + 3 + 2 * (1 + 3 + 1 + 1)
    again = run(*given)
    assert again.returncode == 0, again.stderr[-2000:]
    assert {
        k: v["seconds"] for k, v in json.loads((tmp_path / "paper" / "paper.json").read_text())["stages"].items()
    } == costs
    assert (tmp_path / "paper" / "paper.md").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "MLL23 trains the dictionaries"),
        (("--mll23", "/nowhere"), "DinoBloom's weight file"),
        (("--mll23", "/nowhere", "--backbone", "dinov2-s"), "is not there"),
        (("--cells", "mll"), "not of the form NAME=TABLE"),
    ],
)
def test_what_is_missing_is_said_before_anything_begins(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import reproduce_paper

    with pytest.raises(SystemExit) as stopped:
        reproduce_paper.main([*arguments, "--out", str(tmp_path / "o")])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
