"""The token store: shards ``[rows, n_tokens, d_in]``, little-endian, C order, never loaded whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from cytosae._errors import CytosaeError
from cytosae.storage import read_manifest
from cytosae.tokens._kinds import name_kinds

#: A store that keeps only some kinds, or a sample of the patches, is of version 2: a reader of version 1 would take its
#: first token for the class token and its patches for the whole grid. One with several views of each cell is of version 3.
KIND, VERSION = "tokens", 3

#: stored type -> what numpy maps (numpy has no bfloat16: its bits are mapped as int16)
STORED: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "bfloat16": np.dtype("<i2"), "float32": np.dtype("<f4")}
TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
#: Tokens of one cell no further apart than this are read at once: the bytes between cost less than another call.
_GAP = 16
_ADVISE = getattr(os, "posix_fadvise", None)


def image_keys(sha256: Sequence[str | None]) -> npt.NDArray[np.uint64]:
    """The first 16 hexadecimal digits of each sha256 as a number; 0 where there is none."""
    return np.array([int(text[:16], 16) if isinstance(text, str) else 0 for text in sha256], np.uint64)


class TokenStore:
    """Tokens of many cells on disk.

    Attributes
    ----------
    cell_ids
        int64 [n_rows]: which cell a row is, ascending.
    n_rows, n_tokens, n_prefix, d_in, n_blocks
        Shape: rows (cells), tokens kept of a cell, how many of them stand before the patches, width of a token, and blocks side
        by side in it.
    n_views
        Views of each cell. The further ones follow all cells as they are: view v of row r is row ``v * n_rows + r``.
    grid
        Rows and columns of patches of the backbone.
    token_kinds
        The kind of each kept token: ``class``, ``register`` or ``patch``, in this order.
    sampled
        Whether only some patches of each cell are kept; `patches` tells which.
    manifest
        Everything that is recorded of them.
    """

    def __init__(self, folder: Path | str) -> None:
        self.manifest = read_manifest(folder, KIND, VERSION)
        m = self.manifest
        self.folder = Path(folder)
        self.n_rows, self.n_tokens, self.n_prefix = int(m["n_rows"]), int(m["n_tokens"]), int(m["n_prefix"])
        self.d_in, self.grid = int(m["d_in"]), (int(m["grid"][0]), int(m["grid"][1]))
        self.n_views = int(m.get("n_views", 1))
        self.n_blocks = len(m["layer"]) if isinstance(m.get("layer"), list) else 1
        n_patches = self.n_tokens - self.n_prefix
        self.token_kinds: list[str] = list(m.get("token_kinds") or ["prefix"] * self.n_prefix + ["patch"] * n_patches)
        self.sampled = 0 < n_patches < self.grid[0] * self.grid[1]
        self.dtype = str(m["dtype"])
        self.cell_ids: npt.NDArray[np.int64] = (
            pq.read_table(self.folder / "rows.parquet", columns=["cell_id"])["cell_id"].to_numpy().astype(np.int64)
        )
        self._names = sorted(n for n in m["files"] if n.endswith(".bin"))
        self._starts = [0]
        self._token_bytes = self.d_in * STORED[self.dtype].itemsize
        for name in self._names:
            n_rows, rest = divmod(int(m["files"][name]["bytes"]), self.n_tokens * self._token_bytes)
            if rest:
                raise CytosaeError(f"{self.folder / name} does not hold whole cells; run 'cytosae tokens' again.")
            self._starts.append(self._starts[-1] + n_rows)
        if self._starts[-1] != self.n_rows * self.n_views or len(self.cell_ids) != self.n_rows:
            raise CytosaeError(
                f"{self.folder} says {self.n_rows * self.n_views} rows but holds {self._starts[-1]}; run 'cytosae tokens' again."
            )

    @property
    def hash(self) -> str:
        """Identity of the artifact."""
        return self.manifest.hash

    @cached_property
    def patches(self) -> npt.NDArray[np.int64]:
        """int64 [n_rows, n kept patches]: which patches of the grid are kept, numbered row by row."""
        n_patches = self.n_tokens - self.n_prefix
        if not self.sampled:
            return np.broadcast_to(np.arange(n_patches), (self.n_rows, n_patches))
        column = pq.read_table(self.folder / "rows.parquet", columns=["patches"])["patches"].combine_chunks()
        return column.flatten().to_numpy().astype(np.int64).reshape(self.n_rows, n_patches)  # type: ignore[no-any-return]

    @property
    def shards(self) -> list[npt.NDArray[Any]]:
        """The shards mapped into memory, each [rows, n_tokens, d_in] (bfloat16 as its bits, int16), further views behind all cells."""
        shape = (-1, self.n_tokens, self.d_in)
        return [np.memmap(self.folder / n, dtype=STORED[self.dtype], mode="r").reshape(shape) for n in self._names]

    def rows_of(
        self, cell_ids: Sequence[int] | npt.NDArray[np.int64], sha256: Sequence[str | None] | None = None
    ) -> npt.NDArray[np.int64]:
        """Row numbers of cells.

        Parameters
        ----------
        cell_ids
            Their ids in the table that the tokens were made from.
        sha256
            Of their images, where it is to be compared: another table means other cells by the same ids.

        Raises
        ------
        CytosaeError
            A cell has no tokens here, or by its id stand the tokens of another image.
        """
        wanted = np.asarray(cell_ids, dtype=np.int64)
        rows = np.searchsorted(self.cell_ids, wanted)
        found = rows < self.n_rows
        found[found] = self.cell_ids[rows[found]] == wanted[found]
        if not found.all():
            raise CytosaeError(
                f"{self.folder} has no tokens of cell {wanted[~found][0]} ({(~found).sum()} of {len(wanted)} are "
                "missing); extract the tokens of these cells first."
            )
        if sha256 is not None and self._images is not None:
            keys = image_keys(sha256)
            other = (keys != 0) & (keys != self._images[rows])
            if other.any():
                raise CytosaeError(
                    f"{self.folder} holds tokens of another image by the id of cell {wanted[other][0]} ({other.sum()} of "
                    f"{len(wanted)} differ), so they were made from another table; give that table, or extract again."
                )
        return rows.astype(np.int64)

    def views_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64 [n_views * len(rows)]: rows of all views of the cells in `rows`; all as they are first, then view by view."""
        return (np.arange(self.n_views)[:, None] * self.n_rows + np.asarray(rows, np.int64)).ravel()

    @cached_property
    def _images(self) -> npt.NDArray[np.uint64] | None:
        """`image_keys` of the rows; None of a store from before they were kept."""
        path = self.folder / "rows.parquet"
        if "image" not in pq.read_schema(path).names:
            return None
        return np.asarray(pq.read_table(path, columns=["image"])["image"].to_numpy(), np.uint64)

    def read(self, rows: npt.NDArray[np.int64], *, kind: str = "all", partial: bool = False) -> torch.Tensor:
        """Tokens of some rows.

        Only these bytes are read: pages of a mapped file would count as this process's memory until it ends.

        Parameters
        ----------
        rows
            int64 [n], any order; of `rows_of` or `views_of`.
        kind
            ``all``, ``patch``, ``class`` or ``register``.
        partial
            Whether a sample of the patches will do. Whoever needs the whole grid leaves it False, and is told so.

        Returns
        -------
        [n, tokens of that kind, d_in] in the stored type

        Raises
        ------
        CytosaeError
            That kind is not in the store, or only some of the patches are.
        """
        part = self.part(kind, partial=partial)
        out = np.empty((len(rows), part.stop - part.start, self.d_in), dtype=STORED[self.dtype])
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of):
            path = self.folder / self._names[shard]
            with path.open("rb", buffering=0) as file:
                for i in np.flatnonzero(shard_of == shard):
                    token = (int(rows[i]) - self._starts[shard]) * self.n_tokens + part.start
                    file.seek(token * self._token_bytes)
                    if file.readinto(memoryview(out[i]).cast("B")) != out[i].nbytes:
                        raise CytosaeError(f"{path} is cut short; run 'cytosae tokens' again.")
        return self._tensor(out)

    def read_tokens(self, rows: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> torch.Tensor:
        """Single tokens; as in `read`, no more of the file than about these bytes.

        Parameters
        ----------
        rows, places
            int64 [n]: the row of each token, and its place among the `n_tokens` of the row; ascending.

        Returns
        -------
        [n, d_in] in the stored type

        Raises
        ------
        CytosaeError
            A shard is cut short.
        """
        out = np.empty((len(rows), self.d_in), dtype=STORED[self.dtype])
        if not len(rows):
            return self._tensor(out)
        apart = (np.diff(rows) != 0) | (np.diff(places) > _GAP)
        begins = np.concatenate([[0], np.flatnonzero(apart) + 1])
        ends = np.append(begins[1:], len(rows))
        shard_of = np.searchsorted(self._starts, rows[begins], side="right") - 1
        firsts = (rows[begins] - np.asarray(self._starts)[shard_of]) * self.n_tokens + places[begins]
        spans = places[ends - 1] - places[begins] + 1
        between = np.empty_like(out, shape=(self.n_tokens, self.d_in))
        for shard in np.unique(shard_of):
            path, mine = self.folder / self._names[shard], np.flatnonzero(shard_of == shard)
            parts = list(zip(*(a[mine].tolist() for a in (begins, ends, firsts, spans)), strict=True))
            with path.open("rb", buffering=0) as file:
                if _ADVISE is not None:  # the disk then looks for all of them at once
                    for _, _, first, span in parts:
                        _ADVISE(
                            file.fileno(), first * self._token_bytes, span * self._token_bytes, os.POSIX_FADV_WILLNEED
                        )
                for begin, end, first, span in parts:
                    whole = span == end - begin
                    target: Any = out[begin:end] if whole else between[:span]
                    file.seek(first * self._token_bytes)
                    if file.readinto(memoryview(target).cast("B")) != target.nbytes:
                        raise CytosaeError(f"{path} is cut short; run 'cytosae tokens' again.")
                    if not whole:
                        out[begin:end] = between[places[begin:end] - places[begin]]
        return self._tensor(out)

    def _tensor(self, stored: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(stored)
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor

    def part(self, kind: str, *, partial: bool = False) -> slice:
        """Where the tokens of a kind stand in a row; `kind` and `partial` as in `read`."""
        if kind == "all":
            return slice(0, self.n_tokens)
        n = self.token_kinds.count(kind)
        if not n:
            raise CytosaeError(
                f"{self.folder} holds no {kind} token (it holds {name_kinds(self.token_kinds)}); extract the tokens again "
                f"with --keep {kind} or --keep all, by a backbone that has this kind."
            )
        if kind == "patch" and self.sampled and not partial:
            raise CytosaeError(
                f"{self.folder} holds {n} random patches of each cell, but all {self.grid[0] * self.grid[1]} are needed here; "
                "extract the tokens again without --patches."
            )
        start = self.token_kinds.index(kind)
        return slice(start, start + n)

    def chunks(
        self, rows: npt.NDArray[np.int64], size: int, *, kind: str = "all", partial: bool = False
    ) -> Iterator[torch.Tensor]:
        """float32 tokens of `rows`, `size` rows at a time; `kind` and `partial` as in `read`."""
        for start in range(0, len(rows), size):
            yield self.read(rows[start : start + size], kind=kind, partial=partial).float()
