"""``cytosae explain``: files, folders and fields; what it refuses; what it says of wrong boxes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytosae import CytosaeError, load_backbone
from cytosae.backbones import Backbone
from cytosae.cells import decode_image
from cytosae.concepts import load_bundle
from cytosae.reports import explain_files, subjects_of

Cli = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("dinov2-s-blood")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, some_jpegs: list[bytes]) -> Path:
    """Two cells and noise in a folder; a field of two cells and noise with its boxes."""
    folder = tmp_path_factory.mktemp("explain")
    (folder / "in").mkdir()
    for n in range(2):
        (folder / "in" / f"{n}.jpg").write_bytes(some_jpegs[n])
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(folder / "in" / "noise.png")
    (folder / "in" / "cut.jpg").write_bytes(some_jpegs[2][:500])
    field = np.full((300, 700, 3), 235, np.uint8)
    for n in range(2):
        field[30:254, 10 + 230 * n : 234 + 230 * n] = decode_image(some_jpegs[n]).pixels
    field[30:230, 480:680] = noise
    Image.fromarray(field).save(folder / "field.png")
    (folder / "boxes.csv").write_text("x0,y0,x1,y1\n20,40,224,244\n250,40,454,244\n480,30,680,230\n")
    return folder


def explained(tree: Path, out: Path, backbone: Backbone, what: str, **options: object) -> tuple[list[dict], Path]:  # type: ignore[type-arg]
    bundle = load_bundle()
    boxes = tree / "boxes.csv" if what == "field.png" else None
    subjects = subjects_of([tree / what], boxes, 1.1)
    layer = bundle.sae.info["layer"]
    explain_files(subjects, out, bundle.sae, backbone, layer, index=bundle.index, reference=bundle.reference, **options)  # type: ignore[arg-type]
    return json.loads((out / "explain.json").read_text())["images"], out


def test_a_folder_is_explained_and_what_is_no_cell_is_left_out_and_counted(
    tree: Path, tmp_path: Path, backbone: Backbone
) -> None:
    records, out = explained(tree, tmp_path / "a", backbone, "in", n_concepts=4)
    by_name = {Path(r["image"]).name: r for r in records}
    assert len(by_name) == 4
    assert "not like a single blood cell" in by_name["noise.png"]["refused"]
    assert "picture" not in by_name["noise.png"]
    assert "cut short" in by_name["cut.jpg"]["unreadable"]
    cell = by_name["0.jpg"]
    assert len(cell["concepts"]) == 4
    assert len(cell["similar"]) == 8
    assert cell["unusual"]["is_cell"]
    assert all("CC BY" in s["credit"] for s in cell["similar"])
    assert np.asarray(cell["concepts"][0]["map"]).shape == (16, 16)
    picture = np.asarray(Image.open(out / cell["picture"]))
    assert picture.shape[0] > 400
    assert picture.shape[1] > 1000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
    assert not list(out.glob(".*"))


def test_an_interrupted_run_goes_on_and_gives_the_same(
    tree: Path, tmp_path: Path, backbone: Backbone, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    import cytosae.reports._explain_files as module

    whole, _ = explained(tree, tmp_path / "a", backbone, "in", n_concepts=2)
    real, calls = module.explain_pixels, []

    def stops(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "explain_pixels", stops)
    with pytest.raises(KeyboardInterrupt):
        explained(tree, tmp_path / "b", backbone, "in", n_concepts=2)
    assert not (tmp_path / "b").exists()
    again, out = explained(tree, tmp_path / "b", backbone, "in", n_concepts=2)
    assert again == whole
    assert len(calls) == 4  # the first image was not explained twice
    assert {p.name for p in out.iterdir()} == {p.name for p in (tmp_path / "a").iterdir()}


def test_a_field_is_explained_box_by_box(tree: Path, tmp_path: Path, backbone: Backbone) -> None:
    records, out = explained(tree, tmp_path / "f", backbone, "field.png", n_concepts=2)
    assert [bool(r.get("refused")) for r in records] == [False, False, True]
    assert records[1]["box"] == [250, 40, 454, 244]
    assert (out / "field.png").stat().st_size > 10_000
    with pytest.raises(CytosaeError, match="--boxes wants one image"):
        subjects_of([tree / "in"], tree / "boxes.csv", 1.3)


def test_nothing_is_written_where_nothing_is_a_cell_but_force_explains_it(
    tree: Path, tmp_path: Path, backbone: Backbone
) -> None:
    noise = "in/noise.png"
    with pytest.raises(CytosaeError, match=r"noise\.png is not like a single blood cell .*or --force"):
        explained(tree, tmp_path / "n", backbone, noise)
    assert list(tmp_path.iterdir()) == []
    records, _ = explained(tree, tmp_path / "n", backbone, noise, force=True, n_concepts=2)
    assert not records[0]["unusual"]["is_cell"]
    assert "refused" not in records[0]


def test_the_command_says_which_dictionary_and_refuses_wrong_boxes(cli: Cli, tree: Path, tmp_path: Path) -> None:
    done = cli("explain", tree / "in" / "0.jpg", tree / "in" / "noise.png", "--out", tmp_path / "o", "--concepts", 1)
    assert done.returncode == 0, done.stderr
    assert "with the bundled dictionary" in done.stderr
    assert "1 pictures and explain.json; 1 not like a single blood cell" in done.stdout
    assert "Traceback" not in done.stderr


def test_wrong_boxes_are_refused_before_anything_is_loaded(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("1,2,3\n")
    with pytest.raises(CytosaeError, match="line 1: '1,2,3' is not a box"):
        subjects_of([tree / "field.png"], tmp_path / "bad.csv", 1.3)
