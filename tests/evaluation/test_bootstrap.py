from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from cytosae.evaluation import _bootstrap as b


@pytest.fixture
def drawn():  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, 200) / 8  # many ties
    positive = rng.random(200) < 0.2 + 0.5 * scores
    weights = b.draw_weights(rng.integers(0, 60, 200), 25, seed=3)
    return scores, positive, weights


def test_average_precision_of_every_draw_is_that_of_scikit_learn(drawn) -> None:  # type: ignore[no-untyped-def]
    scores, positive, weights = drawn
    wanted = [metrics.average_precision_score(positive, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(b.average_precision(scores, positive, weights), wanted, rtol=1e-12)


def test_average_precision_of_some_cells_takes_their_own_draws(drawn) -> None:  # type: ignore[no-untyped-def]
    scores, positive, weights = drawn
    rows = np.random.default_rng(5).permutation(200)[:80]
    found = b.precision_of_draws(scores[rows], positive[rows], b.by_cell(weights), rows)
    np.testing.assert_array_equal(found, b.average_precision(scores[rows], positive[rows], weights[:, rows]))
    none = b.precision_of_draws(scores[rows], np.zeros(80, bool), b.by_cell(weights), rows)
    assert none.shape == (26,)
    assert np.isnan(none).all()


def test_auroc_of_every_draw_is_that_of_scikit_learn(drawn) -> None:  # type: ignore[no-untyped-def]
    scores, positive, weights = drawn
    wanted = [metrics.roc_auc_score(positive, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(b.auroc(scores, positive, weights), wanted, rtol=1e-12)


def test_f1_kappa_and_accuracy_of_every_draw_are_those_of_scikit_learn(drawn) -> None:  # type: ignore[no-untyped-def]
    scores, positive, weights = drawn
    yes = scores > 0.5
    f1 = [metrics.f1_score(positive, yes, sample_weight=w) for w in weights]
    np.testing.assert_allclose(b.f1(yes, positive, weights), f1, rtol=1e-12)
    guess, truth = (scores * 3).astype(int), (scores * 2 + positive).astype(int)
    kappa = [metrics.cohen_kappa_score(guess, truth, sample_weight=w) for w in weights]
    np.testing.assert_allclose(b.cohen_kappa(guess, truth, 5, weights), kappa, rtol=1e-12)
    right = [metrics.accuracy_score(truth, guess, sample_weight=w) for w in weights]
    np.testing.assert_allclose(b.accuracy(guess, truth, weights), right, rtol=1e-12)


def test_average_precision_of_many_units_is_that_of_scikit_learn_within_each_targets_own_cells() -> None:
    rng = np.random.default_rng(1)
    values = np.maximum(rng.normal(size=(300, 40)), 0).round(1).astype(np.float32)
    values[:, 3] = 0
    counted = rng.random((300, 6)) < 0.7
    counted[:, 2] = counted[:, 0]
    positive = counted & (rng.random((300, 6)) < 0.3)
    positive[:, 5] = False
    found = b.precisions_of_many(values, positive, counted)
    for unit in range(40):
        for t in range(5):
            rows = counted[:, t]
            wanted = metrics.average_precision_score(positive[rows, t], values[rows, unit])
            assert found[unit, t] == pytest.approx(wanted, rel=1e-5)
    assert np.isnan(found[:, 5]).all()


def test_a_draw_takes_whole_groups_and_keeps_their_number() -> None:
    groups = np.repeat(np.arange(20), 5)
    weights = b.draw_weights(groups, 50, seed=0)
    assert (weights[0] == 1).all()
    assert (weights.reshape(51, 20, 5).std(2) == 0).all()
    assert (weights.sum(1) == 100).all()


def test_a_draw_without_positives_is_left_out_of_the_interval() -> None:
    score = b.as_score(
        b.average_precision(np.arange(4.0), np.array([1, 0, 0, 0]) > 0, np.array([[1, 1, 1, 1], [0, 1, 1, 1]]))
    )
    assert score.value == 0.25
    assert np.isnan(score.draws).all()
    assert b.interval(score)["low"] is None


def test_better_wants_the_whole_paired_interval_above_zero_against_every_control() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0.5, 0.05, 500)
    ours = b.Score(0.55, base + 0.05)
    worse, same = b.Score(0.5, base), b.Score(0.55, base + 0.05 + rng.normal(0, 0.01, 500))
    assert b.compare("x", ours, [("a", "A", worse)])["verdict"] == "better"
    both = b.compare("x", ours, [("a", "A", worse), ("b", "B", same)])
    assert [c["verdict"] for c in both["controls"]] == ["better", "comparable"]
    assert both["verdict"] == "comparable"
    assert b.compare("x", worse, [("a", "A", ours)])["verdict"] == "worse"
