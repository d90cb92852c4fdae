"""Matryoshka (arXiv 2503.17547): nested BatchTopK, the first latents alone have to reconstruct, too."""

from __future__ import annotations

from collections.abc import Sequence

from cytosae.sae.models.batchtopk import BatchTopK


class Matryoshka(BatchTopK):
    """The loss is the mean over nested groups of latents, so that the first ones stay general and do not split.

    The codes are chosen once, over the whole dictionary; group j decodes those of the first ``bounds[j]`` latents.
    """

    name = "matryoshka"


def group_bounds(n_latents: int, levels: Sequence[float]) -> tuple[int, ...]:
    """Ends of the nested groups from ascending shares of the dictionary; the last is the whole of it."""
    inner = [max(1, round(share * n_latents)) for share in levels if share < 1]
    return (*sorted({b for b in inner if b < n_latents}), n_latents)
