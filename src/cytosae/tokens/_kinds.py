"""Which tokens of a cell are kept: chosen kinds, and on request a few random patches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cytosae._errors import UsageError, nearest

if TYPE_CHECKING:
    import torch

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


@dataclass(frozen=True)
class Kept:
    """Which of the tokens that a backbone gives are stored.

    Attributes
    ----------
    positions
        int64, ascending: the kept tokens among all of a cell (of the patches all, even where only some are stored).
    kinds
        The kind of each stored token.
    n_all, n_grid
        Tokens and patches that the backbone gives.
    n_patches
        Random patches stored of each cell; None where all (or none) are.
    seed
        Of that choice.
    """

    positions: npt.NDArray[np.int64]
    kinds: list[str]
    n_all: int
    n_grid: int
    n_patches: int | None = None
    seed: int = 0

    @classmethod
    def of(cls, kinds: Sequence[str], keep: Sequence[str], n_patches: int | None, seed: int, backbone: str) -> Kept:
        """Check what is asked for against the kinds of token that the backbone gives.

        Raises
        ------
        UsageError
            A kind that the backbone does not have is wanted by name, or more patches than there are.
        """
        if set(keep) != set(KINDS):
            for kind in keep:
                if kind not in kinds:
                    raise UsageError(f"{backbone} has no {kind} token; it has {name_kinds(kinds)} (--keep).")
        positions = np.flatnonzero(np.isin(np.asarray(kinds), list(keep)))
        n_grid = list(kinds).count("patch")
        if n_patches is not None:
            if "patch" not in keep:
                raise UsageError("--patches chooses among the patches, but --keep leaves them all out.")
            if not 1 <= n_patches <= n_grid:
                raise UsageError(f"--patches {n_patches} is not possible: {backbone} gives {n_grid} patches a cell.")
            if n_patches == n_grid:
                n_patches = None
        stored = [kinds[int(i)] for i in positions]
        if n_patches is not None:
            stored = [kind for kind in stored if kind != "patch"] + ["patch"] * n_patches
        return cls(positions, stored, len(kinds), n_grid, n_patches, seed)

    @property
    def whole(self) -> bool:
        """Whether all tokens are stored."""
        return len(self.kinds) == self.n_all

    @property
    def n_prefix(self) -> int:
        """Stored tokens before the patches."""
        return len(self.kinds) - self.kinds.count("patch")

    @property
    def config(self) -> dict[str, Any]:
        """What a manifest records of the choice; nothing where all is stored."""
        config: dict[str, Any] = {} if self.whole else {"keep": [k for k in KINDS if k in self.kinds]}
        return config if self.n_patches is None else {**config, "patches": self.n_patches, "seed": self.seed}

    def rows(self, cell_ids: npt.NDArray[np.int64]) -> dict[str, pa.Array]:
        """The columns of ``rows.parquet``: ``cell_id``, and ``patches`` where only some are stored."""
        columns = {"cell_id": pa.array(cell_ids, pa.int64())}
        if self.n_patches is not None:
            patches = sample_patches(cell_ids, self.n_grid, self.n_patches, self.seed)
            columns["patches"] = pa.FixedSizeListArray.from_arrays(pa.array(patches.ravel()), self.n_patches)
        return columns

    def of_cells(self, tokens: torch.Tensor, cell_ids: npt.NDArray[np.int64]) -> torch.Tensor:
        """The stored tokens [n_cells, len(kinds), d_in] among all [n_cells, n_all, d_in] of some cells."""
        if self.whole:
            return tokens
        if self.n_patches is None:
            return tokens[:, self.positions]
        places = np.empty((len(cell_ids), len(self.kinds)), np.int64)
        places[:, : self.n_prefix] = self.positions[: self.n_prefix]
        places[:, self.n_prefix :] = self.n_all - self.n_grid + sample_patches(
            cell_ids, self.n_grid, self.n_patches, self.seed
        )  # fmt: skip
        return tokens[np.arange(len(cell_ids))[:, None], places]


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
