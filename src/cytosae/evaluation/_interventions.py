"""Cells whose tokens are changed where the dictionary reads them, and linear probes on what the network then says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from cytosae.backbones import Backbone, Layer
from cytosae.evaluation._context import Context
from cytosae.sae import SparseAutoencoder

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
READOUTS = ("class token", "mean patch")
_CHUNK = 16
#: Penalty of the probes, as a share of the number of cells, on standardised features.
_RIDGE = 0.1

#: numbers of cells -> change of their patch tokens, float32 [n, n_patches, d_in]
Change = Callable[[Array], torch.Tensor]


@dataclass(frozen=True)
class Probes:
    """Ridge regressions of yes (1) and no (0): scores = (readout - mean) / scale @ W + b."""

    mean: Floats
    scale: Floats
    W: Floats
    b: Floats

    @classmethod
    def fitted(cls, X: Array, positive: Array, known: Array) -> Probes:
        """Fit each column of `positive` (bool [n, n_targets]) on the cells known for it (bool, same shape)."""
        mean, scale = X.mean(0, dtype=np.float64), X.std(0, dtype=np.float64)
        scale = np.where(scale > 1e-9, scale, 1.0)
        Z = (X - mean) / scale
        W, b = np.empty((X.shape[1], positive.shape[1])), np.empty(positive.shape[1])
        for j in range(positive.shape[1]):
            at = known[:, j]
            centre, share = Z[at].mean(0), positive[at, j].mean()
            few = Z[at] - centre
            gram = few.T @ few + _RIDGE * at.sum() * np.eye(X.shape[1])
            W[:, j] = np.linalg.solve(gram, few.T @ (positive[at, j] - share))
            b[j] = share - centre @ W[:, j]
        return cls(mean, scale, W, b)

    def scores(self, X: Array) -> Floats:
        """float64 [n, n_targets]."""
        return np.asarray((X - self.mean) / self.scale @ self.W + self.b)


class Bench:
    """Scored cells at the block where the dictionary reads them.

    Attributes
    ----------
    rows
        Of `context.frame`.
    tokens
        All their tokens, float32 [n, n_tokens, d_in].
    patches
        int64: which tokens are patches.
    spread
        Mean squared distance of a patch from the mean patch: changes are measured by it.
    """

    def __init__(self, context: Context, backbone: Backbone, layer: Layer, rows: Array) -> None:
        self.backbone, self.layer, self.rows = backbone, layer, rows
        self.tokens = read_all(context, rows)
        kinds = np.asarray(context.tokens.stores[0].token_kinds)
        self.patches = torch.from_numpy(np.flatnonzero(kinds == "patch"))
        self.first = torch.from_numpy(np.flatnonzero(kinds == "class"))
        mean = context.sample.mean(0)
        self.spread = float((context.sample - mean).square().sum(1).mean())

    def run(self, cells: Array, change: Change | None = None) -> tuple[dict[str, Array], Floats]:
        """Read-outs of some cells (numbers within the bench) after a change of their patches, and its size.

        Returns
        -------
        read-out -> float32 [n, d_in]; and for each cell the mean squared change of a patch over `spread`, float64 [n]
        """
        found: dict[str, list[torch.Tensor]] = {name: [] for name in READOUTS}
        size = []
        with torch.inference_mode():
            for start in range(0, len(cells), _CHUNK):
                at = cells[start : start + _CHUNK]
                x = self.tokens[torch.from_numpy(at)]
                if change is None:
                    size.append(np.zeros(len(at)))
                else:
                    delta = change(at)
                    x[:, self.patches] += delta
                    size.append(delta.double().square().sum(2).mean(1).numpy() / self.spread)
                y = self.backbone.run_from(self.layer, x).cpu()
                found["class token"].append(y[:, self.first].mean(1))
                found["mean patch"].append(y[:, self.patches].mean(1))
        return {name: torch.cat(v).numpy() for name, v in found.items()}, np.concatenate(size)


class Codes:
    """Codes of the patches of a bench, kept sparse: [n * n_patches, n_latents]."""

    def __init__(self, sae: SparseAutoencoder, bench: Bench) -> None:
        self.sae, self.n_patches = sae, len(bench.patches)
        with torch.inference_mode():
            rows = [sparse.csr_matrix(sae.encode(x[bench.patches]).numpy()) for x in bench.tokens]
        self.cells = [r.tocsc() for r in rows]
        self.W = sae.W_dec.numpy()

    def removal(self, latents: Array, *, keep: bool = False) -> Change:
        """Silence some latents, or (`keep`) all others; the dictionary's error stays."""
        which = np.setdiff1d(np.arange(self.sae.n_latents), latents) if keep else np.asarray(latents)

        def change(at: Array) -> torch.Tensor:
            out = [-(self.cells[i][:, which] @ self.W[which]) for i in at]
            return torch.from_numpy(np.stack(out).astype(np.float32))

        return change


def along(direction: torch.Tensor, n_patches: int) -> Change:
    """Add one vector [d_in] to every patch."""
    return lambda at: direction.expand(len(at), n_patches, -1)


def without_components(bench: Bench, mean: torch.Tensor, axes: torch.Tensor) -> Change:
    """Take some orthonormal axes [d_in, k] out of the patches, around `mean`."""

    def change(at: Array) -> torch.Tensor:
        centred = bench.tokens[torch.from_numpy(at)][:, bench.patches] - mean
        return -((centred @ axes) @ axes.T)

    return change


def read_all(context: Context, rows: Array) -> torch.Tensor:
    """All tokens of some rows: float32 [n, n_tokens, d_in]."""
    return torch.cat([context.read(rows[i : i + _CHUNK], "all") for i in range(0, len(rows), _CHUNK)])


def equally_active(chosen: Array, energy: Array, apart_from: Array, seed: Sequence[int]) -> npt.NDArray[np.int64]:
    """For each chosen latent another one, drawn among the nearest in energy (float [n_latents]), none twice."""
    rng = np.random.Generator(np.random.Philox(key=list(seed)))
    free = np.setdiff1d(np.flatnonzero(energy > 0), apart_from)
    out: list[int] = []
    for latent in chosen:
        if not len(free):
            break
        gap = np.abs(np.log(energy[free]) - np.log(max(energy[latent], 1e-300)))
        near = np.argsort(gap, kind="stable")[:10]
        taken = int(near[int(rng.integers(len(near)))])
        out.append(int(free[taken]))
        free = np.delete(free, taken)
    return np.array(out, np.int64)
