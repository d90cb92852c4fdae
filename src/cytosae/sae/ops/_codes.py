"""Helpers that all paths share: refuse what is not a number, pack codes, join the terms of an update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from cytosae._errors import CytosaeError
from cytosae.sae.ops._interface import Codes, Term


def refuse(what: str) -> CytosaeError:
    """The error for inputs that are no numbers."""
    return CytosaeError(
        f"The {what} hold values that are not numbers; check the input, or lower the learning rate (--set lr=...)."
    )


def check_finite(x: torch.Tensor, what: str) -> None:
    """Raise a CytosaeError where a value is NaN or infinite."""
    if x.numel() and not bool(torch.isfinite(x.sum() if bool(torch.isfinite(x.sum())) else x).all()):
        raise refuse(what)


def codes_from_pairs(token: torch.Tensor, latent: torch.Tensor, value: torch.Tensor, n: int, n_latents: int) -> Codes:
    """Codes from pairs already in row order, latents ascending."""
    return Codes(row_starts(token, n), latent.int(), value.float(), n_latents)


def row_starts(token: torch.Tensor, n: int) -> torch.Tensor:
    """int64 [n + 1] where each row of ascending `token` starts."""
    start = torch.zeros(n + 1, dtype=torch.int64, device=token.device)
    torch.cumsum(torch.bincount(token, minlength=n), 0, out=start[1:])
    return start


def join_codes(parts: Sequence[Codes]) -> Codes:
    """Codes of consecutive chunks of tokens as one."""
    if len(parts) == 1:
        return parts[0]
    counts = torch.cat([p.row_start.diff() for p in parts])
    start = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=start[1:])
    return Codes(start, torch.cat([p.latent for p in parts]), torch.cat([p.value for p in parts]), parts[0].n_latents)


def largest_of_batch(value: torch.Tensor, wanted: int) -> torch.Tensor:
    """Mask of the `wanted` largest values; of equal ones the first (the lower token, then the lower latent)."""
    if len(value) <= wanted:
        return torch.ones_like(value, dtype=torch.bool)
    if wanted <= 0:
        return torch.zeros_like(value, dtype=torch.bool)
    least = torch.topk(value, wanted, sorted=False).values.min()
    keep = value > least
    keep[(value == least).nonzero().flatten()[: wanted - int(keep.sum())]] = True
    return keep


class Pairs(NamedTuple):
    """All codes of all terms of an update, one row each: `x_row`, `g_row` (of stacked g_y), `latent`, `value`, `l1`."""

    x_row: torch.Tensor
    g_row: torch.Tensor
    latent: torch.Tensor
    value: torch.Tensor
    l1: torch.Tensor


def group_of(term: Term) -> torch.Tensor:
    """int64 [n_codes]: the group of each code's latent."""
    if len(term.g_y) == 1:
        return torch.zeros_like(term.codes.latent, dtype=torch.int64)
    ends = torch.as_tensor(list(term.bounds), device=term.codes.latent.device)
    return torch.searchsorted(ends, term.codes.latent.long(), right=True).clamp_(max=len(term.g_y) - 1)


def global_latents(term: Term) -> torch.Tensor:
    """int64 [n_codes]: each code's latent among all latents."""
    latent = term.codes.latent.long()
    return latent if term.latents is None else term.latents.to(latent.device)[latent]


def join_terms(terms: Sequence[Term]) -> tuple[Pairs, torch.Tensor]:
    """Codes of all terms in one list, and their g_y stacked to float32 [sum of n_groups * n, d_in]."""
    x_rows, g_rows, offset = [], [], 0
    for term in terms:
        row = term.codes.row_of()
        x_rows.append(row)
        g_rows.append(group_of(term) * term.g_y.shape[1] + row + offset)
        offset += term.g_y.shape[0] * term.g_y.shape[1]
    latent = torch.cat([global_latents(t) for t in terms])
    value = torch.cat([t.codes.value for t in terms])
    l1 = torch.cat([torch.full_like(t.codes.value, t.l1) for t in terms])
    stacked = [t.g_y.reshape(-1, t.g_y.shape[-1]) for t in terms]
    table = stacked[0].contiguous() if len(stacked) == 1 else torch.cat(stacked)
    return Pairs(torch.cat(x_rows), torch.cat(g_rows), latent, value, l1), table
