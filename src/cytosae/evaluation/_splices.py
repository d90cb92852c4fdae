"""Tokens put back into the backbone: the original, the mean, the dictionary's reconstruction, and that of as many components."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cytosae._progress import Meter
from cytosae.backbones import Backbone, Layer
from cytosae.evaluation._context import Context
from cytosae.sae import SparseAutoencoder

Array = npt.NDArray[Any]
#: Cells that run through the rest of the network together.
_CHUNK = 16

#: tokens of one kind [n, d_in] -> what stands in for them
Replace = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Readouts:
    """What the network says of cells: its normed final class token, and the mean of its normed final patches, float32 [n, d]."""

    class_token: Array
    mean_patch: Array

    def of(self, name: str) -> Array:
        """``class token`` or ``mean patch``."""
        return self.class_token if name == "class token" else self.mean_patch


def run_spliced(
    context: Context, backbone: Backbone, layer: Layer, rows: Array, replace: dict[str, Replace], what: str
) -> Readouts:
    """Put tokens back at the block they came from and run the rest of the network.

    Parameters
    ----------
    replace
        kind of token -> what stands in for it; other kinds stay as they are.
    what
        For the progress line.
    """
    kinds = np.asarray(context.tokens.stores[0].token_kinds)
    at = {kind: torch.from_numpy(np.flatnonzero(kinds == kind)) for kind in {*replace, "class", "patch"}}
    first, patches = [], []
    with Meter(len(rows), f"fidelity: {what}", "cells") as meter, torch.inference_mode():
        for start in range(0, len(rows), _CHUNK):
            x = context.read(rows[start : start + _CHUNK], "all")
            for kind, function in replace.items():
                part = x[:, at[kind]]
                x[:, at[kind]] = function(part.flatten(0, 1)).view(part.shape)
            y = backbone.run_from(layer, x).cpu()
            first.append(y[:, at["class"]].mean(1))
            patches.append(y[:, at["patch"]].mean(1))
            meter.add(len(x))
    return Readouts(torch.cat(first).numpy(), torch.cat(patches).numpy())


def by_mean(mean: torch.Tensor) -> Replace:
    """Mean-ablation: every token becomes `mean`."""
    return lambda x: mean.to(x).expand_as(x)


def by_sae(sae: SparseAutoencoder) -> Replace:
    """The dictionary's reconstruction."""
    return lambda x: sae.decode(sae.encode(x))


def by_components(sample: torch.Tensor, n: int) -> Replace:
    """The projection on the first `n` principal components of `sample` [m, d_in]."""
    mean = sample.mean(0)
    centred = (sample - mean).double()
    basis = torch.linalg.eigh(centred.T @ centred)[1][:, -n:].float()
    return lambda x: mean + ((x - mean) @ basis) @ basis.T
