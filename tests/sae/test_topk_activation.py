"""The activation that keeps the k largest of each token: exact, and the same on every machine where values tie."""

from __future__ import annotations

import pytest
import torch

from cytosae import CytosaeError, SparseAutoencoder


def reference(codes: torch.Tensor, k: int) -> torch.Tensor:
    """Sort each row, larger first, lower latent first where equal; keep the first k."""
    kept = torch.zeros_like(codes)
    for row, values in enumerate(codes.tolist()):
        for latent in sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]:
            kept[row, latent] = max(values[latent], 0)
    return kept


def identity(k: int, n: int = 5) -> SparseAutoencoder:
    return SparseAutoencoder(torch.eye(n), torch.zeros(n), torch.eye(n), torch.zeros(n), "topk", k=k)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 12, 13])
@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_ties_go_to_the_lower_latent(k: int, levels: int) -> None:
    g = torch.Generator().manual_seed(k)
    x = torch.randint(-levels, levels, (64, 13), generator=g).float() / levels
    x[0] = 0
    x[1] = 1
    assert torch.equal(identity(k, 13).encode(x), reference(x, k))


def test_at_most_k_and_only_positive() -> None:
    x = torch.tensor([[3.0, -1, 2, 2, 2], [-1, -2, -3, -4, 5], [0, 0, 0, 0, 0]])
    assert identity(2).encode(x).tolist() == [[3, 0, 2, 0, 0], [0, 0, 0, 0, 5], [0, 0, 0, 0, 0]]
    assert torch.equal(identity(5).encode(x), x.clamp(min=0))
    assert identity(2).encode(x.reshape(3, 1, 5)).shape == (3, 1, 5)
    assert torch.equal(identity(2).to("cpu").encode(x), identity(2).encode(x))


@pytest.mark.parametrize("k", [0, -1])
def test_a_k_that_is_none_is_refused(k: int) -> None:
    with pytest.raises(CytosaeError, match="topk"):
        identity(k)
