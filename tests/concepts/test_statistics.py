from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytosae import CytosaeError
from cytosae.concepts import ConceptStatistics, label_entropy

LABELS = ("a", "b", "c")


def some_cells(n: int, seed: int, patches: int = 6, latents: int = 9) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    codes = np.maximum(rng.normal(size=(n, patches, latents)), 0).astype(np.float32)
    codes[:, :, 3] = 0  # never active
    codes[:, :, 4] = 1  # ties everywhere
    ids = rng.permutation(10 * n)[:n].astype(np.int64)
    labels = rng.integers(-1, 3, size=n)
    return ids, labels, codes


def add(statistics: ConceptStatistics, ids: Any, labels: Any, codes: Any) -> None:
    statistics.update(
        ids, labels, codes.max(1), codes.argmax(1), codes.mean(1, dtype=np.float64), (codes > 0).sum(1), codes.shape[1]
    )


def whole(ids: Any, labels: Any, codes: Any, n: int = 5) -> ConceptStatistics:
    statistics = ConceptStatistics(codes.shape[2], LABELS, n)
    if len(ids):
        add(statistics, ids, labels, codes)
    return statistics


def same(a: ConceptStatistics, b: ConceptStatistics) -> bool:
    names = ("n_cells", "n_tokens", "cells_active", "tokens_active", "mean_sum", "maximum", "label_cells", "label_active",
             "values", "cell_ids", "patches")  # fmt: skip
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    shuffle=st.booleans(),
)
def test_splitting_merging_and_order_change_nothing(seed: int, n: int, cuts: list[int], shuffle: bool) -> None:
    ids, labels, codes = some_cells(n, seed)
    wanted = whole(ids, labels, codes)
    order = np.random.default_rng(seed).permutation(n) if shuffle else np.arange(n)
    edges = [0, *sorted(min(c, n) for c in cuts), n]
    parts = [order[a:b] for a, b in itertools.pairwise(edges)]
    merged = ConceptStatistics(codes.shape[2], LABELS, 5)
    for part in parts:
        merged.merge(whole(ids[part], labels[part], codes[part]))
    assert same(merged, wanted)


def test_exemplars_are_the_strongest_and_ties_go_to_the_lower_cell() -> None:
    ids, labels, codes = some_cells(30, 1)
    statistics = whole(ids, labels, codes)
    best = codes.max(1)
    for latent in range(9):
        order = sorted((-best[i, latent], ids[i]) for i in range(30) if best[i, latent] > 0)[:5]
        assert [i for i in statistics.cell_ids[:, latent] if i >= 0] == [i for _, i in order]
    assert list(statistics.cell_ids[:, 4]) == sorted(ids)[:5]
    assert set(statistics.cell_ids[:, 3]) == {-1}


def test_the_tables_say_what_the_definitions_say() -> None:
    ids, labels, codes = some_cells(30, 2)
    label_of = {int(i): (LABELS[k] if k >= 0 else None) for i, k in zip(ids, labels, strict=True)}
    concepts, exemplars, shares = whole(ids, labels, codes).finish(label_of)
    active = codes.max(1) > 0
    assert np.allclose(concepts["frequency"], active.mean(0))
    means = np.where(active, codes.mean(1), 0).sum(0) / np.maximum(active.sum(0), 1)
    assert np.allclose(concepts["mean_activation"].fillna(0), means, atol=1e-6)
    assert math.isnan(concepts["mean_activation"][3])
    assert bool(concepts["dead"][3])
    assert not concepts["dead"][0]
    assert concepts["top_label"].isna()[3]
    row = exemplars[(exemplars["latent"] == 0) & (exemplars["rank"] == 0)].iloc[0]
    cell = list(ids).index(row["cell_id"])
    assert row["value"] == codes[cell, :, 0].max()
    assert row["patch"] == codes[cell, :, 0].argmax()
    b = shares[(shares["latent"] == 0) & (shares["label"] == "b")].iloc[0]
    assert (b["n_cells_active"], b["n_cells"]) == (active[labels == 1, 0].sum(), (labels == 1).sum())
    everywhere = concepts["class_entropy"][4]
    assert everywhere == pytest.approx(math.log(3)), "as frequent in every class: the entropy of three classes"


def test_class_entropy_does_not_depend_on_how_many_cells_a_class_has() -> None:
    ids, labels, codes = some_cells(30, 3)
    keep = np.concatenate([np.flatnonzero(labels == 0), *[np.flatnonzero(labels == k) for k in (1, 2)] * 3])
    a = whole(ids, labels, codes).finish({})[0]["class_entropy"]
    b = whole(np.arange(len(keep)), labels[keep], codes[keep]).finish({})[0]["class_entropy"]
    assert np.allclose(a.fillna(-1), b.fillna(-1))


def test_label_entropy_by_hand() -> None:
    assert label_entropy(np.array([1.0, 1.0]), ["a", "a"]) == 0
    assert label_entropy(np.array([1.0, 1.0]), ["a", "b"]) == pytest.approx(math.log(2))
    assert label_entropy(np.array([3.0, 1.0]), ["a", "b"]) == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    )
    assert math.isnan(label_entropy(np.array([1.0]), [None]))


def test_statistics_of_different_things_do_not_merge() -> None:
    with pytest.raises(CytosaeError, match="cannot be merged"):
        ConceptStatistics(3, LABELS).merge(ConceptStatistics(4, LABELS))
