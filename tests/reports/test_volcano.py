"""Volcano plots of the report: what is where, and what is left out is counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cytosae.patients._differential import REST
from cytosae.reports._axis import LinearAxis
from cytosae.reports._volcano import MOST, names_beside, volcanoes


def table_of(*pairs: tuple[str, str], n: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    p = np.concatenate([[1e-5, 2e-5], rng.uniform(0.2, 1, n - 2)])
    effect = np.concatenate([[0.2, -0.1], rng.uniform(-0.05, 0.05, n - 2)])
    parts = [
        pd.DataFrame({
            "diagnosis": a, "against": b, "latent": np.arange(n), "effect": effect, "low": effect - 0.01,
            "high": effect + 0.01, "p": p, "q": np.where(p < 1e-3, 0.01, 0.9), "smallest_p": 1e-5,
            "effect_composition": effect * np.where(np.arange(n) == 0, 0.9, 0.1),
            "effect_within": effect * np.where(np.arange(n) == 0, 0.1, 0.9),
        })
        for a, b in pairs
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_hits_stand_on_the_side_of_their_effect_and_say_which_part_is_larger():
    panels, left_out = volcanoes(table_of(("A", REST), ("B", REST)), 0.05)
    assert ([v.title for v in panels], left_out) == (["A", "B"], 0)
    panel = panels[0]
    zero = next(x for x, text in panel.x_ticks if text == "0")
    (x_one, y_one, kind_one, title), (x_two, y_two, kind_two, _) = panel.dots
    assert (kind_one, kind_two) == ("composition", "within")
    assert x_two < zero < x_one
    assert x_one - zero == pytest.approx(2 * (zero - x_two))
    assert y_one == pytest.approx(panel.ceiling)  # the smallest p that could be attained
    assert panel.line == pytest.approx(y_two)
    assert title.startswith("Concept 0: +20.0 points (+19.0 to +21.0)")
    assert (panel.n_hits, {name[3] for name in panel.names}) == (2, {0, 1})
    left, top, right, bottom = panel.box
    assert all(left <= x <= right and top <= y <= bottom for x, y in panel.grey)
    assert 0 < len(panel.grey) <= 38


def test_comparisons_with_the_rest_come_first_and_others_are_counted():
    pairs = [("A", "B"), *((name, REST) for name in "ABCDEFG")]
    panels, left_out = volcanoes(table_of(*pairs), 0.05)
    assert [v.title for v in panels] == list("ABCDEF")
    assert (len(panels), left_out) == (MOST, 2)
    assert volcanoes(table_of(("A", "B")), 0.05)[0][0].title == "A against B"
    assert volcanoes(table_of(("A", REST)).iloc[:0], 0.05) == ([], 0)


def test_where_nothing_is_found_there_is_no_line():
    table = table_of(("A", REST)).assign(q=0.9)
    panel = volcanoes(table, 0.05)[0][0]
    assert (panel.dots, panel.names, panel.line, panel.n_hits) == ([], [], None, 0)


def test_a_number_lies_on_no_other_number_and_inside_the_box():
    box = (0.0, 0.0, 200.0, 200.0)
    names = names_beside([(190.0, 50.0, 1), (100.0, 100.0, 2), (102.0, 102.0, 3), (120.0, 100.0, 4)], box)
    assert names[0] == (182.0, 54.0, "end", 1)  # no room at the right edge
    assert {n[3] for n in names} == {1, 2, 4}  # 3 lies between two dots


@pytest.mark.parametrize(("low", "high"), [(-21.0, 21.0), (0.0, 5.2), (-0.004, 0.004), (0.0, 1300.0)])
def test_ticks_are_round_and_inside(low, high):
    axis = LinearAxis(low, high, 10.0, 210.0)
    ticks = axis.ticks()
    assert 3 <= len(ticks) <= 7
    assert all(10 - 1e-9 <= x <= 210 + 1e-9 for x, _ in ticks)
    for x, text in ticks:
        assert axis.at(float(text.replace("\u2212", "-"))) == pytest.approx(x)
