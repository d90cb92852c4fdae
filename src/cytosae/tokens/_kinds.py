"""Which tokens of a cell are kept: chosen kinds, and on request a few random patches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from cytosae._errors import UsageError, nearest

#: In the order in which they stand in a cell's row.
KINDS = ("class", "register", "patch")


def parse_keep(text: str) -> tuple[str, ...]:
    """``all``, or kinds joined by ``+`` (``class+patch``) -> the kinds, in the order in which they are stored.

    Raises
    ------
    UsageError
        There is no such kind.
    """
    if text == "all":
        return KINDS
    wanted = text.split("+")
    for kind in wanted:
        if kind not in KINDS:
            raise UsageError(
                f"There is no kind of token {kind!r}{nearest(kind, ('all', *KINDS))}; join several by +, as in class+patch."
            )
    return tuple(kind for kind in KINDS if kind in wanted)


def kept_tokens(kinds: Sequence[str], keep: Sequence[str], backbone: str) -> npt.NDArray[np.int64]:
    """Positions of the kept tokens among all of a cell.

    Parameters
    ----------
    kinds
        The kind of each token that the backbone gives.
    keep
        Kinds wanted.
    backbone
        Name of the backbone, for the message.

    Returns
    -------
    int64 [n_kept], ascending

    Raises
    ------
    UsageError
        A kind is wanted by name that the backbone does not have.
    """
    if tuple(keep) != KINDS:
        for kind in keep:
            if kind not in kinds:
                raise UsageError(f"{backbone} has no {kind} token; it has {name_kinds(kinds)} (--keep).")
    return np.flatnonzero(np.isin(np.asarray(kinds), list(keep)))


def name_kinds(kinds: Iterable[str]) -> str:
    """``1 class, 256 patch``."""
    return ", ".join(f"{n:,} {kind}" for kind, n in Counter(kinds).items())


def sample_patches(cell_ids: npt.NDArray[np.int64], n_grid: int, n: int, seed: int) -> npt.NDArray[np.uint16]:
    """`n` different patches of each cell: a pure function of the seed and the cell's number.

    Parameters
    ----------
    cell_ids
        int64 [n_cells].
    n_grid
        Patches of the grid, numbered row by row.
    n
        Patches to keep.
    seed
        With the cell_id, the key of a counter-based generator (Philox), whose raw numbers are the same in every version of
        numpy; the `n` patches with the smallest ones are taken.

    Returns
    -------
    uint16 [n_cells, n], ascending in each cell
    """
    out = np.empty((len(cell_ids), n), np.uint16)
    for i, cell_id in enumerate(cell_ids):
        key = np.array([seed, int(cell_id) % 2**64], np.uint64)
        out[i] = np.sort(np.argsort(np.random.Philox(key=key).random_raw(n_grid), kind="stable")[:n])
    return out
