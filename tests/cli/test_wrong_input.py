"""Wrong input gets one sentence with the remedy, exit status 1 or 2, and no traceback."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cytosae.cells import bundled_path, read_cells
from cytosae.cli._main import run

Cli = Callable[..., subprocess.CompletedProcess[str]]


def check(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("cytosae: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def test_a_missing_folder(cli: Cli, tmp_path: Path) -> None:
    check(cli("cells", tmp_path / "nowhere", "--out", tmp_path / "c.parquet"), 1, "nowhere", "does not exist")


def test_a_folder_without_images(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("hello")
    check(cli("cells", tmp_path / "empty", "--out", tmp_path / "c.parquet"), 1, "No image found", ".jpg")


def test_a_text_file_named_jpg(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jpg").write_text("this is no picture")
    check(cli("cells", tmp_path / "x", "--out", tmp_path / "c.parquet"), 1, "a.jpg", "not an image")
    assert not (tmp_path / "c.parquet").exists()


def test_one_broken_image_among_good_ones_is_kept_and_named(cli: Cli, cell_folder: Path, tmp_path: Path) -> None:
    (cell_folder / "broken.jpg").write_text("this is no picture")
    done = cli("cells", cell_folder, "--out", tmp_path / "c.parquet")
    assert done.returncode == 0
    assert "13 cells" in done.stdout
    assert "1 quarantined (the first: broken.jpg" in done.stdout
    check(cli("cells", cell_folder, "--out", tmp_path / "d.parquet", "--on-error", "fail"), 1, "broken.jpg")
    assert not (tmp_path / "d.parquet").exists()


def test_a_manifest_without_an_image_column(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("picture,label\na.jpg,x\n")
    check(cli("cells", tmp_path / "m.csv", "--out", tmp_path / "c.parquet"), 1, "no column 'image'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label,label\na.jpg,x,y\n", "twice"),
        ("image\nhttps://example.org/a.jpg\n", "web address"),
        ("image,label\n", "no rows"),
        ("", "no rows"),
        ("image,label\n,x\n", "data row 1"),
    ],
)
def test_other_manifests_that_cannot_be(cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    check(cli("cells", tmp_path / "m.csv", "--out", tmp_path / "c.parquet"), 1, message)


def test_unknown_names_come_with_the_nearest(cli: Cli, tmp_path: Path) -> None:
    assert cli("cells", "bundled", "--out", tmp_path / "c.parquet", "--quiet").returncode == 0
    cells = tmp_path / "c.parquet"
    check(cli("tokens", cells, "--backbone", "dinov2-m", "--out", tmp_path / "t"), 2, "did you mean 'dinov2-s'")
    check(cli("tokens", cells, "--layer", "12", "--out", tmp_path / "t"), 2, "has 12 blocks")
    check(cli("demo", "--recipe", "smal", "--out", tmp_path / "d"), 2, "did you mean 'small'")
    check(cli("demo", "--set", "kk=3", "--out", tmp_path / "d"), 2, "no field 'kk'")
    check(cli("cells", "bundled", "--layout", "foldr", "--out", tmp_path / "x"), 2, "did you mean 'folder'")
    check(cli("tokns"), 2, "did you mean 'tokens'")
    check(cli("tokens", cells, "--where", "split=nope", "--out", tmp_path / "t"), 2, "No usable cell")
    check(cli("tokens", cells, "--device", "cuda:77", "--out", tmp_path / "t"), 2, "not available")
    check(cli("tokens", cells, "--device", "meta", "--out", tmp_path / "t"), 2, "not available")
    check(cli("index", cells, "--threshold", "nan", "--out", tmp_path / "t"), 2, "--threshold wants a number")
    check(cli("fit", tmp_path, "--sweep", "seed=²", "--out", tmp_path / "t"), 2, "a seed is a whole number")
    check(cli("report", tmp_path, "--out", cells), 2, "ends in .html")
    check(cli("evaluate", cells, "--out", tmp_path / "t"), 2, "neither a dictionary")
    check(cli("evaluate", "default", "--out", tmp_path / "t"), 2, "give them with --cells and --tokens")
    assert not (tmp_path / "t").exists()
    assert not (tmp_path / "d").exists()


def test_an_output_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    check(cli("cells", "bundled", "--out", tmp_path / "file" / "c.parquet"), 1, "Cannot write", "choose another --out")
    check(cli("cells", "bundled", "--out", "/proc/nowhere/c.parquet"), 1, "Cannot write")
    check(cli("demo", "--out", tmp_path / "file"), 1, "Cannot write")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_source_is_never_written_over(cli: Cli, cell_folder: Path, tmp_path: Path) -> None:
    manifest, images = tmp_path / "m.csv", tmp_path / "images.parquet"
    manifest.write_text("image,label\n" + "".join(f"{p},x\n" for p in sorted(cell_folder.rglob("*.jpg"))))
    shutil.copy(bundled_path(), images)
    before = [manifest.read_bytes(), images.read_bytes()]
    check(cli("cells", manifest, "--out", manifest), 1, "m.csv is another file", "choose another --out")
    check(cli("cells", images, "--out", images), 1, "images.parquet is another file")
    check(cli("cells", cell_folder, "--out", cell_folder), 2, "is a folder", "cells.parquet")
    image = next(cell_folder.rglob("*.jpg"))
    check(cli("explain", image, "--out", image), 1, "is a file")
    check(cli("export", "default", "--to", "saelens", "--out", manifest), 1, "is a file")
    assert [manifest.read_bytes(), images.read_bytes()] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells", "images.parquet", "m.csv"]
    check(cli("explain", tmp_path / "nowhere.png", "--out", tmp_path / "e"), 1, "nowhere.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells", "images.parquet", "m.csv"]


def test_a_table_beside_its_images_can_be_made_again(cli: Cli, cell_folder: Path) -> None:
    call = ("cells", cell_folder, "--out", cell_folder / "cells.parquet", "--quiet")
    assert cli(*call).returncode == 0
    cells = read_cells(cell_folder / "cells.parquet").frame
    assert cli(*call).returncode == 0
    assert read_cells(cell_folder / "cells.parquet").frame.equals(cells)


def test_a_library_that_does_not_load_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    assert run(["tokens", str(tmp_path / "c.parquet"), "--out", str(tmp_path / "t")]) == 1
    assert "'cytosae doctor' says what is missing" in capsys.readouterr().err


def test_missing_and_wrong_artifacts(cli: Cli, tmp_path: Path) -> None:
    assert cli("cells", "bundled", "--out", tmp_path / "c.parquet", "--quiet").returncode == 0
    cells = tmp_path / "c.parquet"
    check(cli("tokens", tmp_path / "none.parquet", "--out", tmp_path / "t"), 1, "does not exist")
    check(cli("fit", tmp_path, "--cells", cells, "--out", tmp_path / "s"), 1, "no readable manifest")
    check(cli("index", cells, "--sae", tmp_path / "nowhere", "--out", tmp_path / "i"), 1, "does not exist")
    check(cli("report", tmp_path), 1, "has no cells.parquet")
    check(cli("explain", cells, "--sae", tmp_path / "nowhere", "--out", tmp_path / "e"), 1, "does not exist")


def test_a_missing_option_is_wrong_usage(cli: Cli) -> None:
    check(cli("cells", "bundled"), 2, "--out")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_is_clean_and_says_how_to_go_on(tmp_path: Path, signum: int, status: int) -> None:
    command = [sys.executable, "-m", "cytosae", "demo", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run/.tokens.*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "goes on from there" in errors
    assert "Traceback" not in errors
