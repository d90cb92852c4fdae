"""Concepts of the picture are flagged and written beside the scorecard; those of the cell are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import place_context

from cytosae.evaluation import Context
from cytosae.evaluation._measurements import Question, areas, measure_image
from cytosae.evaluation._origins import common_labels
from cytosae.evaluation._technical import Technical
from cytosae.storage import read_table


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return place_context(tmp_path_factory.mktemp("places"), n=240, grid=(8, 8))


@pytest.fixture(scope="module")
def measured(context: Context) -> dict[str, Any]:
    return Technical().measure(context)


@pytest.fixture(scope="module")
def flags(context: Context, measured: dict[str, Any]) -> list[set[str]]:
    table, record = read_table(context.out / "technical.parquet", "technical", 1)
    assert record["inputs"]["tokens"] == context.inputs["tokens"]
    return [set(f.split(", ")) - {""} for f in table["flags"].to_pylist()]


def test_a_border_pixel_that_gives_the_slide_away_is_flagged(flags: list[set[str]]) -> None:
    assert {"position", "rim", "cast", "off the cell"} <= flags[2]


def test_a_fixed_place_is_flagged_and_the_nucleus_is_not(flags: list[set[str]]) -> None:
    assert "position" in flags[3]
    assert flags[0] == set()
    assert flags[1] == set()


def test_on_cell_share_is_near_one_for_what_lies_on_the_cell(context: Context, measured: dict[str, Any]) -> None:
    table = read_table(context.out / "technical.parquet", "technical", 1)[0].to_pandas()
    assert (table["on_cell_share"][:2] > 0.95).all()
    assert table["on_cell_share"][2] < 0.2
    shares = next(t for t in measured["tables"] if t["title"].startswith("Flagged, as"))
    by_chance = {r[0]: r[-1] for r in shares["rows"] if r[-1] != ""}
    assert "cast" in by_chance
    assert all(share <= 0.1 for share in by_chance.values())
    assert "comparisons" not in measured


def test_the_order_of_the_table_changes_nothing(measured: dict[str, Any], tmp_path: Path) -> None:
    assert Technical().measure(place_context(tmp_path, n=240, grid=(8, 8), order=True)) == measured


def test_without_images_the_rest_is_measured(context: Context) -> None:
    from dataclasses import replace

    from cytosae.cells import Cells

    gone = Cells(context.cells.frame, str(context.out / "nowhere"), context.cells.hash)
    notes = Technical().measure(replace(context, cells=gone, out=context.out / "other"))["notes"]
    assert any("images cannot be read" in n for n in notes)
    table = read_table(context.out / "other" / "technical.parquet", "technical", 1)[0].to_pandas()
    assert table["on_cell_share"].isna().all()
    assert "position" in table["flags"][3]


def test_blur_lowers_focus_and_a_cast_shows() -> None:
    from scipy import ndimage

    pixels = np.random.default_rng(0).integers(0, 255, (50, 60, 3)).astype(np.uint8)
    blurred = ndimage.gaussian_filter(pixels, (2, 2, 0))
    red = np.clip(pixels.astype(int) + np.array([30, 0, -30]), 0, 255).astype(np.uint8)
    assert measure_image(blurred)["focus"] < measure_image(pixels)["focus"] - 1
    assert measure_image(red)["cast"] > measure_image(pixels)["cast"] + 20


def test_areas_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    values, positive, half = np.round(rng.random((80, 3)), 1), rng.random(80) < 0.4, np.arange(80) < 40
    found = areas(values, [Question("focus", "", positive, np.zeros(80, int), True)], ~half)
    assert found[0][0] == pytest.approx([roc_auc_score(positive[half], values[half, j]) for j in range(3)])


def test_labels_of_both_sets_have_one_name(context: Context) -> None:
    frame = context.frame.iloc[:3].assign(label=["EOS", "eosinophil", "NIF"])
    assert common_labels(frame).tolist() == ["eosinophil", "eosinophil", ""]
