"""A concept that means the same elsewhere keeps its score; one that knows only its own laboratory loses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import World, context_of, make_world

from cytosae.cells import write_cells
from cytosae.evaluation import Context, open_context
from cytosae.evaluation._transfer import Transfer, jaccard, journeys, rank_correlation


def two_sets(world: World, folder: Path, change: Any = None, order: bool = False) -> Context:
    frame = world.cells.frame.drop(columns=["wbcatt_split"])
    frame["dataset"] = np.where(frame.index % 2 == 0, "here", "there")
    frame["label"] = frame["label"].where(frame["dataset"] == "here", frame["label"].map({
        "eosinophil": "EOS", "lymphocyte": "LYT", "monocyte": "MON"}))  # fmt: skip
    if change is not None:
        change(frame)
    if order:
        frame = frame.sample(frac=1, random_state=4)
    write_cells(folder / "cells.parquet", frame, root=str(folder), inputs={}, config={})
    context = open_context(
        world.folder / "sae", folder / "card", cells=folder / "cells.parquet", tokens=[world.folder / "tokens"]
    )
    object.__setattr__(context, "n_draws", 60)
    object.__setattr__(context, "n_random", 1)
    return context


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("w"), n=480)


@pytest.fixture(scope="module")
def measured(small: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    context = two_sets(small, tmp_path_factory.mktemp("two"))
    assert Transfer().missing(context) is None
    return Transfer().measure(context)


def test_planted_concepts_keep_their_meaning(measured: dict[str, Any]) -> None:
    assert {c["what"].split(":")[0] for c in measured["comparisons"]} == {"here to there", "there to here"}
    for one in measured["comparisons"]:
        assert one["dictionary"]["value"] > 0.95
        assert {c["name"]: c["verdict"] for c in one["controls"]}["random"] == "better"
    chosen = {(r[0], r[1]): r[2] for r in measured["tables"][2]["rows"]}
    assert chosen[("here to there", "eosinophil")].startswith("0 ")


def test_active_concepts_agree_as_much_as_two_halves_of_one_set(measured: dict[str, Any]) -> None:
    rows = {(r[0], r[1]): r[2:] for r in measured["tables"][1]["rows"]}
    assert rows[("here, there", "dictionary")][0] == pytest.approx(rows[("here, its two halves", "dictionary")][0], abs=0.1)  # fmt: skip


def test_a_concept_of_one_laboratory_only_loses_its_score(small: World, tmp_path: Path) -> None:
    def swap(frame: Any) -> None:
        rng = np.random.default_rng(2)
        there = frame["dataset"] == "there"
        frame.loc[there, "label"] = rng.permutation(frame.loc[there, "label"])

    measured = Transfer().measure(two_sets(small, tmp_path, swap))
    rows = {(r[0], r[1]): r for r in measured["tables"][0]["rows"]}
    row = rows[("here to there", "dictionary")]
    assert float(row[3].split()[0]) > 0.95
    assert float(row[4].split()[0]) == pytest.approx(row[5], abs=0.08)


def test_a_random_dictionary_is_not_praised(small: World, tmp_path: Path) -> None:
    context = two_sets(small, tmp_path)
    object.__setattr__(context, "sae", small.random)
    assert not [c["what"] for c in Transfer().measure(context)["comparisons"] if c["verdict"] == "better"]


def test_the_order_of_the_table_changes_nothing(small: World, tmp_path: Path, measured: dict[str, Any]) -> None:
    assert Transfer().measure(two_sets(small, tmp_path, order=True)) == measured


def test_one_data_set_is_not_enough(small: World, tmp_path: Path) -> None:
    assert "two data sets" in str(Transfer().missing(context_of(small, tmp_path)))

    def apart(frame: Any) -> None:
        frame.loc[frame["dataset"] == "there", "label"] = "NIF"

    assert not journeys(two_sets(small, tmp_path, apart))


def test_jaccard_and_rank_correlation_are_the_usual_ones() -> None:
    f, g = np.array([0.5, 0.2, 0.0, 0.0, 0.1]), np.array([0.4, 0.05, 0.3, 0.0, 0.1])
    assert jaccard(f, g, 0.1) == pytest.approx(2 / 4)
    assert jaccard(f, g, 0.9) is None
    from scipy.stats import spearmanr

    assert rank_correlation(f, g) == pytest.approx(spearmanr(f[[0, 1, 2, 4]], g[[0, 1, 2, 4]])[0])
    assert rank_correlation(f, f) == pytest.approx(1)
