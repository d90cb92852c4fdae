"""Metrics against identities."""

from __future__ import annotations

import pytest
import torch

from cytosae import CytosaeError, SparseAutoencoder
from cytosae.sae import ReconstructionSums, pca_fvu
from cytosae.sae.ops import Rule
from cytosae.sae.ops.reference import ReferencePath


def test_predicting_the_mean_explains_nothing_and_perfect_everything() -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(3)) + 5
    codes = torch.ones(500, 4)
    for y, wanted in [(x.mean(0).expand_as(x), 0.0), (x, 1.0)]:
        whole, parts = ReconstructionSums(6, 4), ReconstructionSums(6, 4)
        whole.update(x, y, codes)
        for a in range(0, 500, 37):
            parts.update(x[a : a + 37], y[a : a + 37], codes[a : a + 37])
        assert whole.finish()["explained_variance"] == pytest.approx(wanted, abs=1e-6)
        assert parts.finish() == pytest.approx(whole.finish(), abs=1e-9), "the batch size changes nothing"
    assert whole.finish()["l0"] == 4
    assert whole.finish()["dead_share"] == 0


def test_pca_is_perfect_with_all_components_and_the_mean_with_none_that_vary() -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randn(400, 3, generator=g) @ torch.randn(3, 9, generator=g) + 2
    assert pca_fvu(x, x, 3) == pytest.approx(0, abs=1e-6)
    assert pca_fvu(x.half(), x.half(), 9) == pytest.approx(0, abs=1e-5)
    assert 0 < pca_fvu(x, x, 1) < 1


def test_a_dictionary_of_impossible_shapes_or_values_is_refused() -> None:
    good = {"W_enc": torch.ones(3, 5), "b_enc": torch.ones(5), "W_dec": torch.ones(5, 3), "b_dec": torch.ones(3)}
    SparseAutoencoder(**good)
    with pytest.raises(CytosaeError, match="W_dec has the shape"):
        SparseAutoencoder(**{**good, "W_dec": torch.ones(3, 5)})
    with pytest.raises(CytosaeError, match="not numbers"):
        SparseAutoencoder(**{**good, "b_enc": torch.full((5,), float("nan"))})
    with pytest.raises(CytosaeError, match="needs a threshold"):
        SparseAutoencoder(**good, activation="threshold")
    with pytest.raises(CytosaeError, match="Unknown activation"):
        SparseAutoencoder(**good, activation="softmax")


def test_the_threshold_is_strict_and_codes_are_never_negative() -> None:
    sae = SparseAutoencoder(
        torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2), "threshold", torch.tensor([1.0, -1.0])
    )
    x = torch.tensor([[1.0, -0.5], [1.5, 0.5]])
    assert sae.encode(x).tolist() == [[0.0, 0.0], [1.5, 0.5]]
    assert sae.encode(x[None]).shape == (1, 2, 2)


def test_sparse_codes_are_measured_like_dense_ones_and_the_histogram_counts_every_latent() -> None:
    g = torch.Generator().manual_seed(4)
    x, E = torch.randn(300, 6, generator=g), torch.randn(20, 6, generator=g)
    codes = ReferencePath().select(x, E, torch.linspace(-4, 0, 20), Rule("relu"))
    a, b = ReconstructionSums(6, 20), ReconstructionSums(6, 20)
    a.update(x, x, codes)
    b.update(x, x, codes.dense())
    assert a.finish() == b.finish()
    histogram = a.frequency_histogram()
    assert sum(histogram["n_latents"]) == 20
    assert histogram["n_latents"][0] == int((codes.dense().sum(0) == 0).sum())
    share = (codes.dense() > 0).float().mean(0)
    for low, high, n in zip(
        histogram["from"][1:], [*histogram["from"][2:], 2.0], histogram["n_latents"][1:], strict=True
    ):
        assert n == int(((share >= low) & (share < high) & (share > 0)).sum()), (low, high)
