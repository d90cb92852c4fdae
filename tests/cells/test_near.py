"""A cell that occurs twice in disguise is found; two cells that merely look alike are not taken for one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cytosae.cells import build_cells, build_table, read_cells
from cytosae.cells._near import CORRELATION, correlation, near_duplicate_groups, spectra
from cytosae.cells._thumb import blank_thumb, make_thumb, split_thumbs


def _jpeg(array: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _shifted(array: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moved by some pixels; the edge that comes in repeats the last row and column."""
    height, width = array.shape[:2]
    padded = np.pad(array, ((4, 4), (4, 4), (0, 0)), mode="edge")
    return padded[4 - down : 4 - down + height, 4 - right : 4 - right + width]


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "re-encoded": lambda a: _jpeg(a, 50),
    "mirrored": lambda a: np.asarray(ImageOps.mirror(Image.fromarray(a))),
    "turned": lambda a: np.rot90(a),
    "shifted down 3": lambda a: _shifted(a, 3, 0),
    "shifted by 3 both ways": lambda a: _shifted(a, 3, -3),
    "smaller": lambda a: np.asarray(Image.fromarray(a).resize((180, 180), Image.Resampling.BILINEAR)),
    "all at once": lambda a: _jpeg(np.asarray(ImageOps.mirror(Image.fromarray(_shifted(a, 3, 3)))), 60),
}


def _groups(arrays: list[np.ndarray]) -> np.ndarray:
    thumbs = np.stack([make_thumb(np.ascontiguousarray(a)) for a in arrays])
    return near_duplicate_groups(lambda numbers: thumbs[numbers], len(thumbs))


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_fifty_real_cells_are_found(pixels, how) -> None:
    originals = pixels[:50]
    groups = _groups([*pixels[:120], *(COPIES[how](a) for a in originals)])
    assert (groups[120:] == np.arange(50)).all()
    assert (groups[:120] == np.arange(120)).all()


@pytest.mark.shared
@pytest.mark.parametrize("how", COPIES)
def test_copies_of_fifty_full_size_cells_are_found(pack: Path, how) -> None:
    files = sorted((pack / "acevedo_pbc").glob("*/*.jpg"))[::48]
    arrays = [np.asarray(Image.open(f).convert("RGB")) for f in files]
    assert len(arrays) == 50
    groups = _groups([*arrays, *(COPIES[how](a) for a in arrays)])
    assert (groups == np.tile(np.arange(50), 2)).all()


@pytest.mark.shared
def test_different_cells_raise_no_false_alarm(pack: Path, tmp_path) -> None:
    """2,878,800 pairs of Acevedo cells: one is found, and it is one cell photographed twice."""
    cells = read_cells(build_table(pack / "acevedo_pbc", tmp_path / "c.parquet", layout="acevedo").path)
    found = cells.frame[cells.frame["near_duplicate_group"].duplicated(keep=False)]
    assert found["image"].tolist() == ["ig/IG_466905.jpg", "ig/IG_855229.jpg"]


def test_the_margin_between_copies_and_strangers_is_wide(pixels) -> None:
    thumbs = np.stack([make_thumb(a) for a in pixels])
    found = spectra(split_thumbs(thumbs)[0])
    moved = spectra(split_thumbs(np.stack([make_thumb(_shifted(a, 3, 3)) for a in pixels]))[0])
    assert correlation(found, moved).min() > CORRELATION + 0.004
    i, j = np.triu_indices(len(pixels), 1)
    assert correlation(found[i], found[j]).max() < CORRELATION - 0.02


def test_empty_pictures_resemble_nothing() -> None:
    white = [np.full((50, 50, 3), v, np.uint8) for v in (255, 254, 255, 10)]
    assert (_groups(white) == np.arange(4)).all()
    assert (near_duplicate_groups(lambda k: np.stack([blank_thumb()] * len(k)), 3) == np.arange(3)).all()


def test_groups_do_not_depend_on_the_order_of_the_cells(pixels) -> None:
    arrays = [
        *pixels[:60],
        *(COPIES["all at once"](a) for a in pixels[:20]),
        *(COPIES["mirrored"](a) for a in pixels[10:20]),
    ]
    order = np.random.default_rng(3).permutation(len(arrays))
    plain, mixed = _groups(arrays), _groups([arrays[i] for i in order])
    for i in range(len(arrays)):
        for j in range(i):
            assert (plain[order[i]] == plain[order[j]]) == (mixed[i] == mixed[j])


def test_identical_files_are_one_group_even_without_the_search(tmp_path, real) -> None:
    for i, data in enumerate((real[0], real[1], real[0], real[0][:500], real[0][:500])):
        (tmp_path / f"{i}.jpg").write_bytes(data)
    frame = build_cells(tmp_path, tmp_path / "c.parquet", near_duplicates=False).frame
    assert frame["near_duplicate_group"].tolist() == [0, 1, 0, 3, 3]


def test_a_thousand_variants_of_one_cell_are_one_group_soon(pixels) -> None:
    random = np.random.default_rng(0)
    variants = [np.clip(pixels[0] + random.normal(0, 3, pixels[0].shape), 0, 255).astype(np.uint8) for _ in range(400)]
    assert set(_groups(variants)) == {0}
