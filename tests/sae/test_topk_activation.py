"""The activation that keeps the k largest of each token: exact, and the same on every machine where values tie."""

from __future__ import annotations

import pytest
import torch

from cytosae import CytosaeError, SparseAutoencoder
from cytosae.sae._model import keep_largest


def reference(codes: torch.Tensor, k: int) -> torch.Tensor:
    """Sort each row, larger first, lower latent first where equal; keep the first k."""
    kept = torch.zeros_like(codes)
    for row, values in enumerate(codes.tolist()):
        for latent in sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]:
            kept[row, latent] = values[latent]
    return kept


@pytest.mark.parametrize("k", [1, 2, 3, 7, 12, 13])
@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_ties_go_to_the_lower_latent(k: int, levels: int) -> None:
    g = torch.Generator().manual_seed(k)
    codes = (torch.randint(-levels, levels, (64, 13), generator=g).float() / levels).clamp(min=0)
    codes[0] = 0
    codes[1] = 1
    assert torch.equal(keep_largest(codes.clone(), k), reference(codes, k))


def identity(k: object, activation: str = "topk") -> SparseAutoencoder:
    return SparseAutoencoder(torch.eye(5), torch.zeros(5), torch.eye(5), torch.zeros(5), activation, k=k)  # type: ignore[arg-type]


def test_at_most_k_and_only_positive() -> None:
    x = torch.tensor([[3.0, -1, 2, 2, 2], [-1, -2, -3, -4, 5], [0, 0, 0, 0, 0]])
    assert identity(2).encode(x).tolist() == [[3, 0, 2, 0, 0], [0, 0, 0, 0, 5], [0, 0, 0, 0, 0]]
    assert torch.equal(identity(5).encode(x), x.clamp(min=0))
    assert identity(2).encode(x.reshape(3, 1, 5)).shape == (3, 1, 5)
    assert torch.equal(identity(2).to("cpu").encode(x), identity(2).encode(x))


@pytest.mark.parametrize("k", [None, 0, -1, 6, 2.0, True, "2"])
def test_a_k_that_is_none_is_refused(k: object) -> None:
    with pytest.raises(CytosaeError, match="whole number k from 1 to 5"):
        identity(k)
    assert identity(k, "relu").activation == "relu"
