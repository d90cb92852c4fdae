"""The same dictionary is found again wholly, a random one not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import N_LATENTS, World, context_of, make_world

from cytosae.evaluation._matching import code_correlations, codes_of, match
from cytosae.evaluation._stability import Stability
from cytosae.sae import SparseAutoencoder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("w"), n=300)


def permuted(sae: SparseAutoencoder, order: torch.Tensor) -> SparseAutoencoder:
    assert sae.threshold is not None
    return replace(sae, W_enc=sae.W_enc[:, order].contiguous(), b_enc=sae.b_enc[order], W_dec=sae.W_dec[order],
                   threshold=sae.threshold[order])  # fmt: skip


def rows(measured: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {(r[0], r[1]): r for r in measured["tables"][0]["rows"]}


def test_the_same_dictionary_in_another_order_is_found_again_wholly(small: World, tmp_path: Path) -> None:
    order = torch.randperm(N_LATENTS, generator=torch.Generator().manual_seed(3))
    context = replace(context_of(small, tmp_path, n_draws=40), saes={"again": permuted(small.sae, order), "random": small.random})  # fmt: skip
    assert Stability().missing(context) is None
    measured = Stability().measure(context)
    for by in ("decoder", "codes"):
        assert rows(measured)["again", by][3].startswith("1.000 (1.000")
        assert rows(measured)["again", by][6].startswith("1.000")
        assert rows(measured)["random", by][3].startswith("0.0")
        verdicts = {c["what"]: c["verdict"] for c in measured["comparisons"]}
        assert verdicts[f"found again in again, by {by}"] == "better"
        assert verdicts[f"found again in random, by {by}"] == "comparable"
    assert measured["tables"][1]["rows"][1][1] == measured["n"]["alive concepts"]


def test_one_dictionary_alone_is_not_scored(small: World, tmp_path: Path) -> None:
    assert "--sae" in str(Stability().missing(context_of(small, tmp_path)))


def test_correlations_are_those_of_numpy(small: World) -> None:
    tokens = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 48)).astype("f4"))
    a, b = codes_of(small.sae, tokens), codes_of(small.random, tokens)
    found = code_correlations(a, b, np.array([0, 4]), np.array([1, 2, 3]))
    A, B = a.toarray(), b.toarray()
    wanted = [[np.corrcoef(A[:, i], B[:, j])[0, 1] for j in (1, 2, 3)] for i in (0, 4)]
    assert found == pytest.approx(np.nan_to_num(np.array(wanted)), abs=1e-5)


def test_many_latents_are_paired_as_few_are_where_it_is_plain() -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(12)
    likeness = (0.1 * rng.random((12, 12))).astype("f4")
    likeness[np.arange(12), order] = 0.95
    assert match(likeness).partner.tolist() == match(likeness, limit=2).partner.tolist() == order.tolist()
    assert match(np.zeros((0, 4), np.float32)).partner.shape == (0,)
