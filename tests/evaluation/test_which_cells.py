"""Which cells a value, a flag, an exemplar or a suggestion is about."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from planted import D, World, context_of, make_world
from scipy import stats

from cytosae.cells import SCHEMA, Cells, merge_cells
from cytosae.concepts._atlas import captions
from cytosae.evaluation import _pooled, open_context
from cytosae.evaluation._effects import _mean_token
from cytosae.evaluation._fidelity import _variants
from cytosae.evaluation._measurements import questions_of
from cytosae.evaluation._monosemanticity import EXEMPLARS, exemplars
from cytosae.evaluation._seen import cells_seen
from cytosae.sae import KIND as SAE
from cytosae.sae import save_sae
from cytosae.storage import commit_folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("w"), n=120)


def test_values_kept_for_other_images_of_the_same_numbers_are_not_taken(
    small: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(small, tmp_path)
    given: dict[str, Any] = {"pooling": "max", "cache": tmp_path / "cache", "tokens_key": "t"}
    first = np.array(_pooled.pooled(context.dictionary, context.tokens, context.frame, **given))
    filled = []
    fill = _pooled._fill
    monkeypatch.setattr(_pooled, "_fill", lambda *a: (filled.append(1), fill(*a)))
    again = _pooled.pooled(context.dictionary, context.tokens, context.frame, **given)
    assert np.array_equal(first, again)
    assert not filled
    others = context.frame.assign(sha256=context.frame["sha256"].to_numpy()[::-1])
    tokens = SimpleNamespace(read=lambda frame, kind: context.tokens.read(context.frame.loc[frame.index], kind))
    _pooled.pooled(context.dictionary, tokens, others, **given)  # type: ignore[arg-type]
    assert filled


def cells(n: int, label: Any) -> pd.DataFrame:
    return pd.DataFrame({"cell_id": np.arange(n), "label": label, "dataset": "d", "width": 10, "height": 10,
                         "slide": np.repeat(["s1", "s2"], n // 2)})  # fmt: skip


def test_cells_without_a_label_take_no_part_in_what_is_asked_within_a_type() -> None:
    n = 400
    rng = np.random.default_rng(0)
    bright, half = np.r_[rng.normal(1, 0.1, n // 2), rng.normal(0, 0.1, n // 2)], rng.random(n) < 0.5
    assert questions_of(cells(n, None), {"brightness": bright}, half) == []
    asked = questions_of(cells(n, "lymphocyte"), {"brightness": bright}, half)
    assert {q.family for q in asked} == {"slide", "brightness"}


def test_an_exemplar_keeps_every_limit_at_once() -> None:
    n = 60
    frame = pd.DataFrame({"cell_id": np.arange(n), "label": "a", "dataset": "d"})
    frame["near_duplicate_group"] = pd.array(["g"] * 6 + [None] * (n - 6), dtype="string")
    frame["source_field"], frame["patient"] = [f"f{i}" for i in range(n)], [f"p{i // 12}" for i in range(n)]
    frame["slide"] = [f"s{i}" for i in range(n)]
    X = np.linspace(2, 1, n, dtype=np.float32)[:, None]
    _, found = exemplars(SimpleNamespace(frame=frame), X, np.arange(n))  # type: ignore[arg-type]
    assert found.shape == (1, EXEMPLARS)
    assert (found[0] < 6).sum() == 1
    assert np.bincount(found[0] // 12).max() == 2


def test_the_family_of_suggestions_holds_what_no_exemplar_has() -> None:
    rng = np.random.default_rng(0)
    n, n_latents, n_labels, k = 600, 60, 12, 10
    frame = pd.DataFrame({name: [None] * n for name in SCHEMA.names})
    frame["cell_id"], frame["status"], frame["image"] = np.arange(n), "ok", "x"
    frame["label"] = [f"l{i:02d}" for i in rng.integers(n_labels, size=n)]
    taken = []
    for latent in range(n_latents):
        mine = np.flatnonzero(frame["label"] == f"l{latent % n_labels:02d}")
        some = rng.choice(mine, 4, replace=False)
        taken.append(np.r_[some, rng.choice(np.setdiff1d(np.arange(n), some), k - 4, replace=False)])
    shown = pd.DataFrame({"latent": np.repeat(np.arange(n_latents), k), "rank": np.tile(np.arange(k), n_latents),
                          "cell_id": np.concatenate(taken), "shown": True})  # fmt: skip
    index: Any = SimpleNamespace(manifest={"config": {"where": []}}, exemplars=shown)
    said = captions(index, Cells(frame, Path()), np.arange(n_latents), np.arange(n_latents))
    totals = frame["label"].value_counts()
    rows = []
    for latent, ids in enumerate(taken):
        have = frame["label"][ids].value_counts()
        rows += [(latent, v, float(stats.hypergeom.sf(have.get(v, 0) - 1, n, totals[v], k))) for v in totals.index]
    every = pd.DataFrame(rows, columns=["cluster", "value", "p"])
    every["q"] = stats.false_discovery_control(np.minimum(every["p"], 1.0))
    both = said[said["column"] == "label"].merge(every, on=["cluster", "value"])
    assert len(both) == ((every["q"] < 0.05) & (every["p"] < 1)).sum() > 0
    assert both["q_x"].to_numpy() == pytest.approx(both["q_y"].to_numpy())


def test_as_many_components_as_codes_in_all_cells_of_the_sample(small: World, tmp_path: Path) -> None:
    context = context_of(small, tmp_path)
    n_codes = (context.sae.encode(context.sample) > 0).sum(1)
    mixed = torch.cat([context.sample.new_full((6_000, D), 0.5), context.sample[n_codes == 6][:1].repeat(6_000, 1)])
    found = _variants(SimpleNamespace(
        sae=context.sae, sample=mixed, read=context.read, part=context.part, seed=0, reconstructing={}
    ))  # fmt: skip
    assert found[0] == 3, "half of the cells have no code, the others six"


def test_the_mean_token_is_not_that_of_the_first_cells() -> None:
    n = 900
    late = (np.arange(n) >= n // 2).astype(np.float32)
    context: Any = SimpleNamespace(
        seed=0,
        read=lambda rows, kind: torch.from_numpy(late[rows])[:, None, None].expand(-1, 5, 4),
        tokens=SimpleNamespace(stores=[SimpleNamespace(token_kinds=["class"] + ["patch"] * 4)]),
    )
    target: Any = SimpleNamespace(choose=np.ones(n, bool), positive=np.ones(n, bool))
    drawn = _mean_token(context, target, True)
    assert drawn.shape == (4,)
    assert 0.3 < float(drawn.mean()) < 0.7, "the second half of the cells is 1, the first 0"


def test_cells_of_a_merged_table_that_trained_are_known_by_their_tokens(tmp_path: Path) -> None:
    home, other = make_world(tmp_path / "home", n=120), make_world(tmp_path / "other", n=120, seed=1)
    inputs = {"cells": home.cells.hash, "tokens": home.store.hash}
    with commit_folder(
        tmp_path / "sae", kind=SAE, version=1, inputs=inputs, config={"where": ["dataset=acevedo_pbc"]}
    ) as (out, _):
        save_sae(out, home.sae, {"recipe": "default", "token_kinds": ["patch"]})
    merge_cells([home.folder / "cells.parquet", other.folder / "cells.parquet"], tmp_path / "both.parquet")
    stores = [home.folder / "tokens", other.folder / "tokens"]
    context = open_context(tmp_path / "sae", tmp_path / "card", cells=tmp_path / "both.parquet", tokens=stores)
    seen = cells_seen(context)
    scored = context.frame[context.part == "score"]
    mine = scored["image"].str.contains("home")
    assert 0 < mine.sum() < len(scored)
    assert seen["n_seen"] == mine.sum(), "both tables have cells of this data set; one of them trained"
    assert seen["setting"] == "transductive"
