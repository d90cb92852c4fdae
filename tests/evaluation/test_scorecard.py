"""What a scorecard must hold: planted concepts win, random ones are not praised, the closed split stays closed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import World, context_of, make_world

from cytosae._errors import UsageError
from cytosae.cells import read_cells, write_cells
from cytosae.concepts import index_concepts
from cytosae.evaluation import SECTIONS, chosen_sections, make_scorecard, open_context
from cytosae.evaluation._attributes import Attributes
from cytosae.evaluation._reconstruction import Reconstruction
from cytosae.reports import write_scorecard_page


def section(card: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in card["sections"] if s["name"] == name)


def found(card: dict[str, Any], name: str, what: str) -> dict[str, Any]:
    return next(c for c in section(card, name)["comparisons"] if c["what"].startswith(what))


def table(card: dict[str, Any], name: str, title: str) -> dict[str, Any]:
    return next(t for t in section(card, name)["tables"] if t["title"] == title)


def rewritten(world: World, folder: Path, change: Any) -> dict[str, Any]:
    """Arguments for the same tokens with another table."""
    frame = world.cells.frame.copy()
    change(frame)
    write_cells(folder / "cells.parquet", frame, root=str(folder), inputs={}, config={})
    return {"cells": folder / "cells.parquet", "tokens": [world.folder / "tokens"]}


def test_a_planted_dictionary_is_recovered_and_scored_near_one(planted_card: dict[str, Any]) -> None:
    assert found(planted_card, "reconstruction", "explained variance, patch")["dictionary"]["value"] > 0.99
    for name, where in (
        ("attributes", "overall"),
        ("attributes", "within type"),
        ("cell-types", "mean over data sets"),
    ):
        best = found(planted_card, name, f"best single concept, AP, {where}")
        assert best["dictionary"]["value"] > 0.97
        against = {c["name"]: c["verdict"] for c in best["controls"]}
        assert {against["random"], against["random-2"], against["shuffled"], against["raw"]} == {"better"}
        assert found(planted_card, name, f"full probe, AP, {where}")["dictionary"]["value"] > 0.97
        assert found(planted_card, name, f"probe of 20 concepts, AP, {where}")["dictionary"]["value"] > 0.97
        for line in next(s for s in section(planted_card, name)["series"] if s["title"].endswith(where))["lines"]:
            assert [k for k, _ in line["points"]] == [1, 2, 5, 10, 20, 50]
    chosen = {row[0]: row[1] for row in table(planted_card, "attributes", "The concept chosen for each target")["rows"]}
    assert chosen["cytoplasm_vacuole = yes"].startswith("3 ")
    assert chosen["cell_size = small, within monocyte"].startswith("6 ")


def test_a_random_dictionary_is_praised_by_no_section(random_card: dict[str, Any]) -> None:
    for one in random_card["sections"]:
        assert all(c["verdict"] != "better" for c in one.get("comparisons", ())), one["name"]


def test_random_labels_score_at_chance(world: World, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)

    def shuffle(frame: Any) -> None:
        for name in ("label", "cytoplasm_vacuole", "cell_size"):
            frame[name] = rng.permutation(frame[name])

    arguments = rewritten(world, tmp_path, shuffle)
    context = replace(open_context(world.folder / "sae", tmp_path / "card", **arguments), n_draws=100, n_repeats=2)
    card = make_scorecard(context, SECTIONS, ["attributes", "cell-types"])
    for name, title in (("attributes", "By attribute, overall"), ("cell-types", "By data set")):
        rows = table(card, name, title)
        at = rows["header"].index("dictionary")
        for row in rows["rows"]:
            assert float(row[at].split()[0]) == pytest.approx(row[1], abs=0.09)
        assert all(c["verdict"] != "better" for c in section(card, name)["comparisons"])


def test_the_closed_split_is_not_even_read(world: World, tmp_path: Path, planted_card: dict[str, Any]) -> None:
    closed = world.cells.frame["wbcatt_split"] == "test"
    context = context_of(world, tmp_path)
    assert context.n_closed == closed.sum() > 0
    assert not set(context.frame["cell_id"]) & set(world.cells.frame["cell_id"][closed])
    assert planted_card["cells"]["n_closed"] == closed.sum()
    assert planted_card["config"]["open_test"] is False
    opened = context_of(world, tmp_path, open_test=True)
    assert opened.config["open_test"] is True
    assert set(opened.frame["cell_id"][opened.part == "score"]) == set(world.cells.frame["cell_id"][closed])


def test_cells_of_one_field_never_stand_on_both_sides(world: World, tmp_path: Path) -> None:
    def fields(frame: Any) -> None:
        frame["source_field"] = [f"f{i // 7}" for i in range(len(frame))]
        frame["wbcatt_split"] = frame["wbcatt_split"].where(frame.index % 2 == 0)

    context = open_context(world.folder / "sae", tmp_path, **rewritten(world, tmp_path, fields))
    for unit in np.unique(context.unit):
        assert len({p for p in context.part[context.unit == unit] if p}) <= 1
    published = context.frame["wbcatt_split"].astype("string")
    assert set(context.part[(published == "train").fillna(False)]) == {"choose"}
    assert set(context.part[(published == "val").fillna(False)]) <= {"score", ""}


def test_the_order_of_the_table_changes_nothing(world: World, tmp_path: Path, planted_card: dict[str, Any]) -> None:
    frame = world.cells.frame.sample(frac=1, random_state=3)
    write_cells(tmp_path / "cells.parquet", frame, root=str(tmp_path), inputs={}, config={})
    context = open_context(
        world.folder / "sae", tmp_path, cells=tmp_path / "cells.parquet", tokens=[world.folder / "tokens"]
    )
    card = make_scorecard(replace(context, n_draws=100, n_repeats=2), SECTIONS)
    drop = ("key", "seconds")
    for a, b in zip(card["sections"], planted_card["sections"], strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}


def test_what_has_too_few_cells_is_called_not_measurable(world: World, tmp_path: Path) -> None:
    def rare(frame: Any) -> None:
        keep = (frame["label"] != "monocyte") | (frame.index % 40 == 0)
        frame["cytoplasm_vacuole"] = frame["cytoplasm_vacuole"].where(keep)
        frame["granularity"] = "yes"

    context = open_context(world.folder / "sae", tmp_path / "card", **rewritten(world, tmp_path, rare))
    card = make_scorecard(replace(context, n_draws=50, n_repeats=2), SECTIONS, ["attributes"])
    left = table(card, "attributes", "Not measurable")["rows"]
    assert ["cytoplasm_vacuole", "monocyte"] in [row[:2] for row in left]
    within = table(card, "attributes", "By attribute, within a cell type")
    assert next(r for r in within["rows"] if r[0] == "granularity")[1] == "not measurable"


def test_a_stopped_scorecard_goes_on_from_the_last_whole_part(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Any, context: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Attributes, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            make_scorecard(context_of(world, tmp_path, n_draws=20), SECTIONS, ["reconstruction", "attributes"])
    assert not (tmp_path / "scorecard.json").exists()
    assert [p.name for p in (tmp_path / "sections").iterdir()] == ["reconstruction.json"]
    with monkeypatch.context() as patched:
        patched.setattr(Reconstruction, "measure", stop)
        card = make_scorecard(context_of(world, tmp_path, n_draws=20), SECTIONS, ["reconstruction", "attributes"])
    assert [s["name"] for s in card["sections"]] == ["reconstruction", "attributes"]
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patched:
        patched.setattr(Reconstruction, "measure", stop)
        make_scorecard(context_of(world, tmp_path, n_draws=21), SECTIONS, ["reconstruction"])
    (tmp_path / "sections" / "reconstruction.json").write_text('{"key": "cut')
    card = make_scorecard(context_of(world, tmp_path, n_draws=20), SECTIONS, ["reconstruction"])
    assert [s["name"] for s in card["sections"]] == ["reconstruction", "attributes"]


def test_a_further_dictionary_keeps_the_parts_that_do_not_look_at_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Any, context: Any) -> None:
        raise KeyboardInterrupt

    parts = ["reconstruction", "attributes"]
    make_scorecard(context_of(world, tmp_path, n_draws=20), SECTIONS, parts)
    more = replace(context_of(world, tmp_path, n_draws=20), saes={"other": world.random})
    monkeypatch.setattr(Attributes, "measure", stop)
    card = make_scorecard(more, SECTIONS, parts)
    assert [s["name"] for s in card["sections"]] == parts
    assert any("other" in str(row) for table in card["sections"][0]["tables"] for row in table["rows"])
    frozen = replace(context_of(world, tmp_path, n_draws=20), frozen=world.random)
    with pytest.raises(KeyboardInterrupt):
        make_scorecard(frozen, SECTIONS, parts)


def test_a_missing_ingredient_skips_its_part_and_says_so(world: World, tmp_path: Path) -> None:
    def bare(frame: Any) -> None:
        frame.drop(columns=["cytoplasm_vacuole", "cell_size"], inplace=True)
        frame["label"] = None

    context = open_context(world.folder / "sae", tmp_path / "card", **rewritten(world, tmp_path, bare))
    card = make_scorecard(replace(context, n_draws=20, n_repeats=2), SECTIONS)
    assert card["sections"][0]["name"] == "reconstruction"
    assert set(card["skipped"]) >= {"fidelity", "attributes", "cell-types", "localisation"}
    assert "attribute columns" in card["skipped"]["attributes"]
    assert "backbone" in card["skipped"]["fidelity"]


def test_an_unknown_part_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'attributes'"):
        chosen_sections(SECTIONS, ["atributes"])


def test_an_index_in_a_run_folder_finds_cells_tokens_and_dictionary(world: World, tmp_path: Path, cli: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(world.folder, run)
    index_concepts(read_cells(run / "cells.parquet"), world.sae_of(run), run / "index", store=world.store)
    done = cli("evaluate", run / "index", "--parts", "reconstruction", "--out", run / "card", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "1 parts, 1 comparisons" in done.stdout
    assert json.loads((run / "card" / "scorecard.json").read_text())["inputs"]["tokens"] == world.store.hash
    shutil.rmtree(run / "sae")
    done = cli("evaluate", run / "index", "--out", run / "other")
    assert done.returncode == 2
    assert "give it with --sae" in done.stderr
    assert not (run / "other").exists()
    arguments = ("--sae", world.folder / "sae", "--parts", "reconstruction", "--fast")
    assert cli("evaluate", run / "index", *arguments, "--out", run / "other").returncode == 0


def test_the_page_stands_alone_and_says_what_it_is(planted_card: dict[str, Any], tmp_path: Path) -> None:
    page = write_scorecard_page(tmp_path / "scorecard.html", planted_card).read_text("utf-8")
    assert "Research use only" in page
    assert "not read" in page
    assert not any(f'{k}="http' in page for k in ("src", "href"))
    for one in planted_card["sections"]:
        assert one["question"] in page
    card = {
        **planted_card,
        "dictionary": {**planted_card["dictionary"], "backbone": "b", "layer": [[5, 4.0], [10, 1.0]]},
    }
    page = write_scorecard_page(tmp_path / "scorecard.html", card).read_text("utf-8")
    assert "on b, blocks 5 (times 4) and 10 side by side" in page


def test_a_fast_scorecard_says_that_it_is_one(world: World, tmp_path: Path) -> None:
    card = make_scorecard(context_of(world, tmp_path, n_draws=20, fast=True), SECTIONS, ["reconstruction"])
    assert "Do not quote" in write_scorecard_page(tmp_path / "scorecard.html", card).read_text("utf-8")


def test_two_worlds_give_two_cards(tmp_path: Path, planted_card: dict[str, Any]) -> None:
    other = make_world(tmp_path / "w", n=300, seed=9)
    card = make_scorecard(context_of(other, tmp_path / "card", n_draws=20), SECTIONS, ["reconstruction"])
    assert section(card, "reconstruction")["key"] != section(planted_card, "reconstruction")["key"]
