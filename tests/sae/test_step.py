"""The training step against its dense reference, and the metrics against identities."""

from __future__ import annotations

import pytest
import torch

from cytosae import CytosaeError, SparseAutoencoder
from cytosae.sae import ReconstructionSums, pca_fvu
from cytosae.sae.ops import Parameters, auxiliary_step, batch_topk, kth_largest, main_step
from cytosae.sae.ops.reference import reference_step


def problem(n: int, d: int, latents: int, seed: int = 0) -> tuple[torch.Tensor, Parameters]:
    g = torch.Generator().manual_seed(seed)
    D = torch.nn.functional.normalize(torch.randn(latents, d, generator=g), dim=1)
    E = D + 0.1 * torch.randn(latents, d, generator=g)
    p = Parameters(E, D, 0.1 * torch.randn(latents, generator=g), 0.1 * torch.randn(d, generator=g))
    return torch.randn(n, d, generator=g), p


@pytest.mark.parametrize(("n", "d", "latents"), [(64, 16, 48), (7, 5, 13), (1, 3, 4)])
@pytest.mark.parametrize("k", [None, 1, 3, 1000])
def test_the_written_out_gradients_equal_automatic_differentiation(n: int, d: int, latents: int, k: int | None) -> None:
    x, p = problem(n, d, latents)
    x[0] = 0
    dead = torch.arange(0, latents, 3)
    loss, wanted = reference_step(x, p, variance=2.0, k=k, l1=0.3, dead=dead, k_aux=2, aux_weight=0.5)
    result = main_step(x, p, variance=2.0, k=k, l1=0.3, dead=dead)
    assert result.dead_pre is not None
    aux = auxiliary_step(x, result.residual, result.dead_pre, dead, p, result.gradients, variance=2.0, k=2, weight=0.5)
    assert result.loss + aux == pytest.approx(loss, rel=1e-5)
    for got, want in zip(result.gradients, wanted, strict=True):
        assert float((got - want).abs().max()) <= 1e-4 * max(float(want.abs().max()), 1e-6)


def test_without_dead_latents_nothing_is_added() -> None:
    x, p = problem(32, 8, 24)
    loss, wanted = reference_step(x, p, variance=1.0, k=4, l1=0.0, dead=None, k_aux=2, aux_weight=0.5)
    result = main_step(x, p, variance=1.0, k=4)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(result.gradients.E, wanted.E, atol=1e-6)


def test_bfloat16_products_stay_near_float32() -> None:
    x, p = problem(256, 64, 128)
    a, b = main_step(x, p, variance=1.0, k=8), main_step(x, p, variance=1.0, k=8, dtype=torch.bfloat16)
    assert float((a.gradients.D - b.gradients.D).norm() / a.gradients.D.norm()) < 0.08


@pytest.mark.parametrize("k", [1, 5, 63, 64, 640, 10_000])
def test_the_kth_largest_is_exact(k: int) -> None:
    values = torch.randn(640, 50, generator=torch.Generator().manual_seed(1))
    values[3] = 0
    positive = values[values > 0].sort(descending=True).values
    assert kth_largest(values, k) == pytest.approx(float(positive[k - 1]))


def test_the_kth_largest_is_exact_when_the_sample_of_rows_misleads() -> None:
    values = torch.zeros(640, 50)
    values[::10] = 100.0 + torch.arange(64 * 50).view(64, 50)  # the rows a sample with stride 10 sees
    values[5] = torch.arange(1, 51).float()
    assert kth_largest(values, 64 * 50 + 10) == 41.0
    assert kth_largest(values, 10**6) == 0.0, "fewer positive values than asked for"


def test_batch_topk_keeps_no_more_than_asked_for_and_nothing_negative() -> None:
    pre = torch.randn(50, 40, generator=torch.Generator().manual_seed(2))
    codes = batch_topk(pre.clone(), 3)
    assert int((codes > 0).sum()) == 150
    assert float(codes.min()) == 0
    kept = pre[codes > 0]
    assert float(kept.min()) >= float(pre[codes == 0].max())
    assert torch.equal(batch_topk(-pre.abs(), 3), torch.zeros(50, 40))


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
