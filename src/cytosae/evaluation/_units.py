"""What is scored: the dictionary, and the controls that compete with it on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cytosae.sae import SparseAutoencoder
from cytosae.storage import hash_bytes, hash_json

#: Tokens whose codes are held at once when thresholds are looked for.
_PIECE = 4096


class Units(Protocol):
    """Many candidates for a concept, each a number >= 0 of every token.

    Attributes
    ----------
    name
        As tables call it.
    title
        As people read it.
    kind
        ``dictionary`` or ``control``.
    n_units
        Number of candidates.
    key
        Hash of everything its values depend on but the token.
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def n_units(self) -> int: ...

    @property
    def key(self) -> str: ...

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Values of tokens: float32 [n, d_in] -> float32 [n, n_units], all >= 0."""


@dataclass(frozen=True)
class DictionaryUnits:
    """The latents of a sparse autoencoder."""

    sae: SparseAutoencoder
    name: str = "dictionary"
    title: str = "dictionary"
    kind: str = "dictionary"

    @property
    def n_units(self) -> int:
        """Latents."""
        return self.sae.n_latents

    @property
    def key(self) -> str:
        """Of the weights."""
        s = self.sae
        return hash_json(["dictionary", s.hash or _hash(s.W_enc, s.b_enc, s.b_dec, s.threshold), s.activation, s.k])

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Codes."""
        return self.sae.encode(tokens)


@dataclass(frozen=True)
class AxisUnits:
    """Projections on fixed axes, both signs: unit 2 m counts from `m` axes, the second half is the negative side.

    Attributes
    ----------
    mean
        float32 [d_in]: mean training token, taken off first.
    axes
        float32 [d_in, m]; None for the raw dimensions.
    """

    mean: torch.Tensor
    axes: torch.Tensor | None
    name: str
    title: str
    kind: str = "control"

    @property
    def n_units(self) -> int:
        """Twice the number of axes."""
        return 2 * (len(self.mean) if self.axes is None else self.axes.shape[1])

    @property
    def key(self) -> str:
        """Of mean and axes."""
        return hash_json(["axes", _hash(self.mean, self.axes)])

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """The positive parts of the projections and of their negatives."""
        centred = tokens - self.mean
        along = centred if self.axes is None else centred @ self.axes
        return torch.cat([along, -along], dim=1).clamp_(min=0)


@dataclass(frozen=True)
class RandomUnits:
    """Random unit directions, each above a threshold that makes it fire as often as the latent of the same number."""

    W: torch.Tensor
    centre: torch.Tensor
    threshold: torch.Tensor
    name: str = "random"
    title: str = "random directions"
    kind: str = "control"

    @property
    def n_units(self) -> int:
        """Directions."""
        return self.W.shape[1]

    @property
    def key(self) -> str:
        """Of directions and thresholds."""
        return hash_json(["random", _hash(self.W, self.centre, self.threshold)])

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """The projection less the threshold, where positive."""
        return torch.addmm(-self.threshold, tokens - self.centre, self.W).clamp_(min=0)


def raw_units(sample: torch.Tensor) -> AxisUnits:
    """The backbone's own dimensions, both signs, centred on the mean of `sample` [m, d_in]."""
    return AxisUnits(sample.mean(0), None, "raw", "raw dimensions, both signs")


def pca_units(sample: torch.Tensor) -> AxisUnits:
    """All principal components of `sample` [m, d_in], both signs."""
    mean = sample.mean(0)
    centred = (sample - mean).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    largest = vectors.abs().argmax(0)
    signs = vectors[largest, torch.arange(vectors.shape[1])].sign()
    return AxisUnits(mean, (vectors * signs).flip(1).float().contiguous(), "pca", "principal components, both signs")


def random_units(sae: SparseAutoencoder, sample: torch.Tensor, seed: int, number: int = 0) -> RandomUnits:
    """Random directions that fire on as many tokens of `sample` [m, d_in] as the latents do.

    A latent that never fires in the sample gets a direction that fires above the sample's largest projection.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 17 + number)
    W = torch.nn.functional.normalize(torch.randn(sae.d_in, sae.n_latents, generator=generator), dim=0)
    fired = torch.zeros(sae.n_latents, dtype=torch.int64)
    for piece in torch.split(sample, _PIECE):
        fired += (sae.encode(piece) > 0).sum(0)
    centred = sample - sae.b_dec
    threshold = torch.empty(sae.n_latents)
    step = max(1, 2**25 // len(sample))
    for a in range(0, sae.n_latents, step):
        along = (centred @ W[:, a : a + step]).T.contiguous().numpy()
        for j, n in enumerate(fired[a : a + step].clamp(max=len(sample) - 1).tolist(), a):
            following, last = len(sample) - n - 1, min(len(sample) - n, len(sample) - 1)
            found = np.partition(along[j - a], [following, last])
            threshold[j] = float(found[following] if n == 0 else (found[following] + found[last]) / 2)
    name, title = (
        ("random", "random directions") if not number else (f"random-{number + 1}", f"random directions ({number + 1})")
    )
    return RandomUnits(W, sae.b_dec, threshold, name, title)


def _hash(*tensors: torch.Tensor | None) -> str:
    return hash_bytes(b"".join(b"-" if t is None else t.cpu().contiguous().numpy().tobytes() for t in tensors))
