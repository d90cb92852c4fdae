"""The bundled dictionary where none is given: used and said where the backbone fits, refused in one sentence where not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cytosae import ConceptIndex, TokenStore, extract_tokens, load_backbone, load_sae
from cytosae.cells import Cells
from cytosae.cli._main import run
from cytosae.reports._run import Run
from cytosae.sae import bundled_folder
from stand_in import PatchColours


def test_tokens_of_another_backbone_are_refused_with_the_remedy(
    few_cells: Cells, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract_tokens(few_cells, PatchColours(), tmp_path / "t")  # type: ignore[arg-type]
    table = str(tmp_path / "cells.parquet")
    assert run(["index", table, "--tokens", str(tmp_path / "t"), "--out", str(tmp_path / "i")]) == 2
    said = capsys.readouterr().err
    assert "The bundled dictionary does not fit these tokens; give the one that does with --sae." in said
    assert not (tmp_path / "i").exists()


@pytest.mark.backbone
def test_index_and_report_use_the_bundled_dictionary_and_say_so(
    few_cells: Cells, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = load_sae("default").info["layer"]
    store = extract_tokens(few_cells, load_backbone("dinov2-s-blood"), tmp_path / "tokens", layer=blocks)
    table = str(tmp_path / "cells.parquet")
    assert run(["index", table, "--tokens", str(store.folder), "--cells-matrix", "--out", str(tmp_path / "index")]) == 0
    assert "index: with the bundled dictionary" in capsys.readouterr().err
    index = ConceptIndex(tmp_path / "index")
    assert index.manifest["inputs"]["sae"] == load_sae("default").hash
    found = Run(tmp_path)
    assert "report: with the bundled dictionary" in capsys.readouterr().err
    assert found.sae.hash == load_sae("default").hash
    assert TokenStore(tmp_path / "tokens").n_tokens == 257
    shutil.copytree(bundled_folder() / "sae", tmp_path / "default")
    assert load_sae(tmp_path / "default").hash == found.sae.hash  # the name alone means the bundled one


def test_a_folder_called_default_goes_before_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cytosae import CytosaeError

    monkeypatch.chdir(tmp_path)
    assert load_sae("default").n_latents > 1000
    (tmp_path / "default").mkdir()
    with pytest.raises(CytosaeError, match="not a whole sae"):
        load_sae("default")


def test_the_bundled_index_is_named_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(bundled_folder() / "index")
    assert run(["names", index, "--set", "12=granules", "--by", "A"]) == 2
    assert "--out names.parquet" in capsys.readouterr().err
    assert not (bundled_folder() / "names.parquet").exists()
    assert run(["names", index, "--set", "12=granules", "--by", "A", "--out", str(tmp_path / "n.parquet")]) == 0
