from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from planted import World, context_of

from cytosae.evaluation._fidelity import recovered
from cytosae.evaluation._pooled import pooled
from cytosae.evaluation._probe import logistic, ridge_scores, standardised_differences
from cytosae.evaluation._splices import by_mean, by_sae, run_spliced
from cytosae.evaluation._units import DictionaryUnits, pca_units, random_units, raw_units


def test_random_directions_fire_as_often_as_the_latents_one_by_one(world: World, tmp_path: Path) -> None:
    sample = context_of(world, tmp_path).sample
    units = random_units(world.sae, sample, seed=0)
    ours, theirs = (world.sae.encode(sample) > 0).sum(0), (units.encode(sample) > 0).sum(0)
    assert int((ours - theirs).abs().max()) <= 1
    assert float((ours - theirs).abs().float().mean()) < 0.1


def test_raw_dimensions_and_components_have_both_signs_and_are_centred(world: World, tmp_path: Path) -> None:
    sample = context_of(world, tmp_path).sample
    for units in (raw_units(sample), pca_units(sample)):
        values = units.encode(sample)
        assert values.shape[1] == units.n_units == 2 * sample.shape[1]
        assert bool((values >= 0).all())
        signed = values[:, : sample.shape[1]] - values[:, sample.shape[1] :]
        assert float(signed.mean(0).abs().max()) < 1e-4
        torch.testing.assert_close(
            signed.square().sum(1), (sample - sample.mean(0)).square().sum(1), rtol=1e-3, atol=1e-3
        )


def test_the_number_of_cells_at_a_time_changes_no_pooled_value(world: World, tmp_path: Path) -> None:
    context = context_of(world, tmp_path)
    units = DictionaryUnits(world.sae)
    made = [
        pooled(units, context.tokens, context.frame, "max", tmp_path / str(s), tokens_key="t", size=s)
        for s in (1, 7, 0)
    ]
    codes = world.sae.encode(context.read(np.arange(len(context.frame)), "patch")).amax(1).numpy()
    for one in made:
        np.testing.assert_allclose(one, codes, rtol=1e-4, atol=1e-4)
        assert ((one > 0) == (codes > 0)).all()


def test_a_torn_or_foreign_cache_is_computed_again(world: World, tmp_path: Path) -> None:
    context = context_of(world, tmp_path)
    first = np.array(context.features(context.dictionary, "max"))
    path = next((tmp_path / "cache").glob("dictionary-max-*.npy"))
    whole = path.read_bytes()
    for broken in (whole[:-100], whole[:200] + b"\xff" * 16 + whole[216:], b""):
        path.write_bytes(broken)
        assert (np.array(context.features(context.dictionary, "max")) == first).all()
        assert path.read_bytes() == whole
    other = context_of(world, tmp_path, "random")
    assert not (np.array(other.features(other.dictionary, "max")) == first).all()


def test_the_class_token_is_pooled_apart(world: World, tmp_path: Path) -> None:
    context = context_of(world, tmp_path)
    rows = np.arange(5)
    wanted = world.sae.encode(context.read(rows, "class")[:, 0]).numpy()
    np.testing.assert_allclose(context.features(context.dictionary, "class")[:5], wanted, rtol=1e-5, atol=1e-5)


class MixingBackbone:
    """The rest of a network: every token sees the mean of all, then a fixed map."""

    def __init__(self, n_tokens: int, d: int) -> None:
        self.n_tokens, g = n_tokens, torch.Generator().manual_seed(1)
        self.W = torch.randn(d, d, generator=g) / d**0.5

    def run_from(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        return torch.tanh((tokens + tokens.mean(1, keepdim=True)) @ self.W)


def test_mean_ablation_scores_zero_the_original_one_and_a_good_dictionary_between(world: World, tmp_path: Path) -> None:
    context = context_of(world, tmp_path)
    backbone = MixingBackbone(world.store.n_tokens, world.store.d_in)
    rows, weights = np.arange(60), np.ones((3, 60), np.int16)
    original = run_spliced(context, backbone, -2, rows, {}, "original")  # type: ignore[arg-type]
    mean = by_mean(context.sample.mean(0))
    ablated = run_spliced(context, backbone, -2, rows, {"patch": mean, "class": mean}, "mean")  # type: ignore[arg-type]
    ours = {"patch": by_sae(world.sae), "class": by_sae(world.sae)}
    spliced = run_spliced(context, backbone, -2, rows, ours, "dictionary")  # type: ignore[arg-type]
    for name in ("class token", "mean patch"):
        of = [r.of(name) for r in (original, ablated, spliced)]
        assert recovered(of[0], of[1], of[1], weights).value == 0
        assert recovered(of[0], of[1], of[0], weights).value == 1
        assert 0.95 < recovered(of[0], of[1], of[2], weights).value < 1


def test_the_fidelity_of_planted_and_random_dictionaries(world: World, tmp_path: Path) -> None:
    from cytosae.evaluation._fidelity import Fidelity

    verdicts = {}
    for name in ("sae", "random"):
        context = context_of(world, tmp_path / name, name)
        context.__dict__["_backbone"] = (MixingBackbone(world.store.n_tokens, world.store.d_in), -2)
        assert Fidelity().missing(context) is None
        made = Fidelity().measure(context)
        verdicts[name] = [c["verdict"] for c in made["comparisons"]]
        ours = [c["dictionary"]["value"] for c in made["comparisons"] if c["what"].startswith("loss recovered")]
        if name == "sae":
            assert min(ours) > 0.9
    assert "better" in verdicts["sae"]
    assert "better" not in verdicts["random"]


def test_the_logistic_probe_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    y = X[:, 0] + rng.normal(size=200) > 0.3
    w, b, mean, scale = logistic(X, y)
    wanted = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit((X - mean) / scale, y)
    np.testing.assert_allclose(w, wanted.coef_[0], atol=1e-4)
    assert b == pytest.approx(wanted.intercept_[0], abs=1e-4)


@pytest.mark.parametrize("shape", [(300, 20), (60, 200)])
def test_the_full_probe_finds_what_is_linear_and_nothing_in_noise(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=shape).astype(np.float32)
    positive = np.stack([X[:, 0] > 0, rng.random(shape[0]) < 0.5], axis=1)
    choose = np.arange(shape[0]) < shape[0] * 2 // 3
    scores = ridge_scores(X, positive, choose, np.arange(shape[0]))
    right = ((scores > 0.5) == positive)[~choose].mean(0)
    assert right[0] > (0.85 if shape[1] == 20 else 0.5)
    assert right[1] < 0.75
    assert np.corrcoef(scores[~choose, 0], X[~choose, 0])[0, 1] > 0.3


def test_standardised_differences_are_those_of_the_counted_cells() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3)).astype(np.float32)
    X[:, 2] = 1
    counted = rng.random((100, 1)) < 0.8
    positive = counted & (rng.random((100, 1)) < 0.5)
    found = standardised_differences(X, positive, counted)
    p, c = positive[:, 0], counted[:, 0]
    wanted = (X[p].mean(0) - X[c & ~p].mean(0))[:2] / X[c].std(0)[:2]
    np.testing.assert_allclose(found[:2, 0], wanted, rtol=1e-4)
    assert found[2, 0] == 0
