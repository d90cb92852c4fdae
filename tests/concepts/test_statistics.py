from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytosae import CytosaeError
from cytosae.concepts import ConceptStatistics, label_entropy
from cytosae.concepts._codes import from_dense
from cytosae.concepts._exact import UNIT, carry, limbs_of, sums_by, to_float, zeros
from cytosae.concepts._exemplars import Exemplars
from cytosae.concepts._pool import join, pool_codes
from cytosae.concepts._tables import tables

NAMES = {"label": ("a", "b", "c"), "patient": ("p", "q")}
THRESHOLDS = (0.1, 1.5)


def some_cells(n: int, seed: int, patches: int = 6, latents: int = 9, wide: bool = False) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    codes = np.maximum(rng.normal(size=(n, patches, latents)), 0).astype(np.float32)
    if wide:  # values over twelve orders of magnitude
        codes *= (10.0 ** rng.uniform(-9, 3, size=codes.shape)).astype(np.float32)
    codes[:, :, 3] = 0  # never active
    codes[:, :, 4] = 1  # ties everywhere
    ids = rng.permutation(10 * n)[:n].astype(np.int64)
    groups = {"label": rng.integers(-1, 3, size=n), "patient": rng.integers(-1, 2, size=n)}
    return ids, groups, codes


def pooled(ids: Any, codes: Any) -> Any:
    return pool_codes(from_dense(torch.from_numpy(codes).flatten(0, 1)), ids, codes.shape[1], THRESHOLDS)


def whole(ids: Any, groups: Any, codes: Any, n: int = 5, batch: int = 1000) -> ConceptStatistics:
    statistics = ConceptStatistics(codes.shape[2], NAMES, n, THRESHOLDS)
    for a in range(0, len(ids), batch):
        part = slice(a, a + batch)
        statistics.update(pooled(ids[part], codes[part]), {k: v[part] for k, v in groups.items()})
    return statistics


def same(a: ConceptStatistics, b: ConceptStatistics) -> bool:
    one, two = a.to_arrays(), b.to_arrays()
    return one.keys() == two.keys() and all(one[k].tobytes() == two[k].tobytes() for k in one)


def frame_of(ids: Any, groups: Any) -> pd.DataFrame:
    label = [NAMES["label"][k] if k >= 0 else None for k in groups["label"]]
    return pd.DataFrame({"cell_id": ids, "label": label}).sort_values("cell_id", ignore_index=True)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    shuffle=st.booleans(),
    batch=st.integers(1, 13),
)
def test_splitting_merging_order_and_batches_change_no_byte(
    seed: int, n: int, cuts: list[int], shuffle: bool, batch: int
) -> None:
    ids, groups, codes = some_cells(n, seed, wide=True)
    wanted = whole(ids, groups, codes)
    order = np.random.default_rng(seed).permutation(n) if shuffle else np.arange(n)
    edges = [0, *sorted(min(c, n) for c in cuts), n]
    parts = [order[a:b] for a, b in itertools.pairwise(edges)]
    merged = ConceptStatistics(codes.shape[2], NAMES, 5, THRESHOLDS)
    for part in parts:
        merged.merge(whole(ids[part], {k: v[part] for k, v in groups.items()}, codes[part], batch=batch))
    assert same(merged, wanted)


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_the_number_of_shards_changes_no_byte_and_a_shard_survives_its_file(shards: int) -> None:
    ids, groups, codes = some_cells(41, 5, wide=True)
    merged = ConceptStatistics(codes.shape[2], NAMES, 5, THRESHOLDS)
    for part in np.array_split(np.arange(41), shards):
        shard = whole(ids[part], {k: v[part] for k, v in groups.items()}, codes[part])
        merged.merge(ConceptStatistics.from_arrays(shard.to_arrays(), NAMES, 5))
    assert same(merged, whole(ids, groups, codes))


def add(sums: Any, at: Any, values: Any) -> None:
    """Add values to sums, as the statistics do."""
    for row, numbers in zip(sums, limbs_of(values), strict=True):
        row += sums_by(at, numbers, len(row))
    carry(sums)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-12, 1e12, width=64), max_size=60), st.randoms(use_true_random=False))
def test_a_sum_is_the_exact_one_in_whatever_order(values: list[float], random: Any) -> None:
    sums = zeros(2)
    add(sums, np.zeros(len(values), int), np.array(values))
    random.shuffle(values)
    for value in values:
        add(sums, np.ones(1, int), np.array([value]))
    assert np.array_equal(sums[:, 0], sums[:, 1])
    exact = sum(map(Fraction, values), Fraction(0))
    kept = sum((int(limb) * Fraction(2) ** (32 * k - 96) for k, limb in enumerate(sums[:, 0])), Fraction(0))
    assert abs(kept - exact) <= len(values) * Fraction(UNIT) / 2
    assert to_float(sums)[0] == pytest.approx(float(exact), rel=1e-15)


def test_a_large_and_a_tiny_activation_both_stay_in_a_sum() -> None:
    sums = zeros(1)
    add(sums, np.zeros(3, int), np.array([1e9, 1e-12, 1e-12]))
    add(sums, np.zeros(1, int), np.array([0.0]))
    sums -= limbs_of(np.array([1e9])).astype(np.int64)
    assert to_float(sums)[0] == pytest.approx(2e-12, rel=1e-12)
    for wrong in (-1.0, np.inf, np.nan, 1e16):
        with pytest.raises(CytosaeError, match="cannot be summed"):
            limbs_of(np.array([wrong]))


def test_counts_above_thresholds_and_by_group_are_those_of_a_plain_count() -> None:
    ids, groups, codes = some_cells(33, 8)
    s = whole(ids, groups, codes, batch=4)
    for row, threshold in enumerate(THRESHOLDS):
        assert np.array_equal(s.tokens_above[row], (codes > threshold).sum((0, 1)))
        assert np.array_equal(s.cells_above[row], (codes > threshold).any(1).sum(0))
    for name, names in NAMES.items():
        for k in range(len(names)):
            mine = codes[groups[name] == k]
            assert np.array_equal(s.by[name].dense(0)[k], (mine > 0).any(1).sum(0))
            assert np.array_equal(s.by[name].dense(1)[k], (mine > 0).sum((0, 1)))
            assert np.array_equal(s.by[name].dense(5)[k], (mine > THRESHOLDS[1]).sum((0, 1)))
            assert s.by[name].n_cells[k] == len(mine)
    table = tables(s, frame_of(ids, groups))["groups"]
    row = table[(table["grouping"] == "patient") & (table["group"] == "q") & (table["latent"] == 0)].iloc[0]
    mine = codes[groups["patient"] == 1][:, :, 0]
    assert row["n_tokens_above_1.5"] == (mine > 1.5).sum()
    assert row["mean_activation"] == pytest.approx(mine.mean(1)[(mine > 0).any(1)].mean(), rel=1e-6)


def test_many_groups_are_counted_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, groups, codes = some_cells(20, 9)
    wanted = whole(ids, groups, codes)
    monkeypatch.setattr("cytosae.concepts._groups._DENSE", 0)
    assert same(whole(ids, groups, codes, batch=3), wanted)


def test_groups_that_one_part_lacks_are_united_by_name() -> None:
    ids, _, codes = some_cells(20, 10)
    a = ConceptStatistics(9, {"label": ("b", "c")}, 5, THRESHOLDS)
    a.update(pooled(ids[:10], codes[:10]), {"label": np.zeros(10, int)})
    b = ConceptStatistics(9, {"label": ("a", "b")}, 5, THRESHOLDS)
    b.update(pooled(ids[10:], codes[10:]), {"label": np.ones(10, int)})
    a.merge(b)
    assert a.groups["label"] == ("a", "b", "c")
    assert list(a.by["label"].n_cells) == [0, 20, 0]
    assert np.array_equal(a.by["label"].dense(0)[1], (codes > 0).any(1).sum(0))


def test_joined_lots_are_what_one_lot_would_have_been() -> None:
    ids, _, codes = some_cells(17, 11)
    one = pooled(ids, codes)
    parts = join([pooled(ids[a : a + 5], codes[a : a + 5]) for a in range(0, 17, 5)])
    for name in ("cell_ids", "cell", "latent", "value", "patch", "total", "n_active", "above"):
        assert np.array_equal(getattr(one, name), getattr(parts, name)), name
    assert np.array_equal(one.matrix("max").toarray(), codes.max(1))
    assert np.allclose(one.matrix("mean").toarray(), codes.mean(1))
    assert np.allclose(one.matrix("patch_share").toarray(), (codes > 0).mean(1))


def test_cells_without_any_code_count_and_break_nothing() -> None:
    s = whole(np.arange(3), {"label": np.zeros(3, int), "patient": np.zeros(3, int)}, np.zeros((3, 4, 9), np.float32))
    found = tables(s, pd.DataFrame({"cell_id": [0, 1, 2], "label": ["a"] * 3}))
    assert found["concepts"]["dead"].all()
    assert found["concepts"][["mean_activation", "label_entropy", "class_entropy"]].isna().all(axis=None)
    assert s.n_cells == 3
    assert found["exemplars"].empty


def test_exemplars_are_the_strongest_and_ties_go_to_the_lower_cell() -> None:
    ids, groups, codes = some_cells(30, 1)
    found = whole(ids, groups, codes, batch=7).exemplars
    best = codes.max(1)
    for latent in range(9):
        order = sorted((-best[i, latent], ids[i]) for i in range(30) if best[i, latent] > 0)[:5]
        assert [i for i in found.cell_id[latent] if i >= 0] == [i for _, i in order]
    assert list(found.cell_id[4]) == sorted(ids)[:5]
    assert set(found.cell_id[3]) == {-1}


def test_the_tables_say_what_the_definitions_say() -> None:
    ids, groups, codes = some_cells(30, 2)
    labels = groups["label"]
    found = tables(whole(ids, groups, codes), frame_of(ids, groups))
    concepts, exemplars, shares = found["concepts"], found["exemplars"], found["labels"]
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
    of = {int(i): NAMES["label"][k] if k >= 0 else None for i, k in zip(ids, labels, strict=True)}
    mine = exemplars[exemplars["latent"] == 1]
    by_hand = label_entropy(mine["value"].to_numpy(), [of[i] for i in mine["cell_id"]])
    assert concepts["label_entropy"][1] == pytest.approx(by_hand)


def test_class_entropy_does_not_depend_on_how_many_cells_a_class_has() -> None:
    ids, groups, codes = some_cells(30, 3)
    labels = groups["label"]
    keep = np.concatenate([np.flatnonzero(labels == 0), *[np.flatnonzero(labels == k) for k in (1, 2)] * 3])
    a = tables(whole(ids, groups, codes), frame_of(ids, groups))["concepts"]["class_entropy"]
    more = {k: v[keep] for k, v in groups.items()}
    b = tables(whole(np.arange(len(keep)), more, codes[keep]), frame_of(np.arange(len(keep)), more))["concepts"]
    assert np.allclose(a.fillna(-1), b["class_entropy"].fillna(-1))


def test_one_cell_photographed_often_is_shown_once_and_a_patient_twice() -> None:
    ids = np.arange(8)
    codes = np.zeros((8, 2, 1), np.float32)
    codes[:, 0, 0] = np.arange(8, 0, -1)
    s = ConceptStatistics(1, {}, 8)
    s.update(pool_codes(from_dense(torch.from_numpy(codes).flatten(0, 1)), ids, 2))
    frame = pd.DataFrame({
        "cell_id": ids,
        "label": list("aabbbaab"),
        "near_duplicate_group": [0, 0, 2, 3, 4, 5, 6, 7],
        "source_field": [None, None, "f", "f", None, None, None, None],
        "patient": ["p", "p", "p", "q", "p", "p", None, None],
    })  # fmt: skip
    found = tables(s, frame)
    # 1 is a copy of 0; 3 shares a field with 2; p is shown with 0 and 2, so that 4 and 5 are left out
    assert list(found["exemplars"]["shown"]) == [True, False, True, False, False, False, True, True]
    assert list(found["exemplars"]["cell_id"]) == list(range(8)), "the raw ranking is kept"
    assert found["concepts"]["top_label_share"][0] == 0.5
    assert found["concepts"]["label_entropy"][0] == pytest.approx(label_entropy(np.array([8, 6, 2, 1]), list("abab")))


def test_label_entropy_by_hand() -> None:
    assert label_entropy(np.array([1.0, 1.0]), ["a", "a"]) == 0
    assert label_entropy(np.array([1.0, 1.0]), ["a", "b"]) == pytest.approx(math.log(2))
    assert label_entropy(np.array([3.0, 1.0]), ["a", "b"]) == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    )
    assert math.isnan(label_entropy(np.array([1.0]), [None]))


def test_statistics_of_different_things_do_not_merge() -> None:
    with pytest.raises(CytosaeError, match=r"differ in n_latents \(3 against 4\)"):
        ConceptStatistics(3).merge(ConceptStatistics(4))
    with pytest.raises(CytosaeError, match="grouped by"):
        ConceptStatistics(3, {"label": ("a",)}).merge(ConceptStatistics(3))


@pytest.mark.parametrize("seed", range(3))
def test_exemplars_with_many_equal_values_are_those_of_a_plain_sort(seed: int) -> None:
    """Values of few kinds, over twelve orders of magnitude; offered in lots of all sizes."""
    rng = np.random.default_rng(seed)
    found, kinds, offered = Exemplars(7, 4), 10.0 ** rng.uniform(-6, 6, 5), []
    for lot in (1, 3, 200, 0, 57):
        latent, cell = rng.integers(0, 6, lot), rng.integers(0, 10**6, lot)
        value, patch = rng.choice(kinds, lot).astype(np.float32), rng.integers(0, 256, lot)
        found.add(latent, cell, value, patch)
        offered += list(zip(latent.tolist(), (-value).tolist(), cell.tolist(), patch.tolist(), strict=True))
    for s in range(7):
        want = sorted(row[1:] for row in offered if row[0] == s)[:4]
        got = [(-float(v), int(c), int(p)) for v, c, p in
               zip(found.value[s], found.cell_id[s], found.patch[s], strict=True) if c >= 0]  # fmt: skip
        assert got == want
