"""The token store: shards ``[rows, n_tokens, d_in]``, little-endian, C order, mapped and never loaded whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from cytosae._errors import CytosaeError
from cytosae.storage import read_manifest

KIND, VERSION = "tokens", 1

#: stored type -> what numpy maps (numpy has no bfloat16: its bits are mapped as int16)
STORED: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "bfloat16": np.dtype("<i2"), "float32": np.dtype("<f4")}
TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class TokenStore:
    """Tokens of many cells on disk.

    Attributes
    ----------
    cell_ids
        int64 [n_rows]: which cell a row is, ascending.
    n_rows, n_tokens, n_prefix, d_in, grid
        Shape: rows, tokens a cell, tokens before the patches, width of a token, rows and columns of patches.
    manifest
        Everything that is recorded of them.
    """

    def __init__(self, folder: Path | str) -> None:
        self.manifest = read_manifest(folder, KIND, VERSION)
        m = self.manifest
        self.folder = Path(folder)
        self.n_rows, self.n_tokens, self.n_prefix = int(m["n_rows"]), int(m["n_tokens"]), int(m["n_prefix"])
        self.d_in, self.grid = int(m["d_in"]), (int(m["grid"][0]), int(m["grid"][1]))
        self.dtype = str(m["dtype"])
        self.cell_ids: npt.NDArray[np.int64] = (
            pq.read_table(self.folder / "rows.parquet")["cell_id"].to_numpy().astype(np.int64)
        )
        self._shards: list[npt.NDArray[Any]] = []
        self._starts = [0]
        names = sorted(n for n in m["files"] if n.endswith(".bin"))
        width = self.n_tokens * self.d_in
        for name in names:
            flat = np.memmap(self.folder / name, dtype=STORED[self.dtype], mode="r")
            if flat.size % width:
                raise CytosaeError(f"{self.folder / name} does not hold whole cells; run 'cytosae tokens' again.")
            self._shards.append(flat.reshape(-1, self.n_tokens, self.d_in))
            self._starts.append(self._starts[-1] + flat.size // width)
        if self._starts[-1] != self.n_rows or len(self.cell_ids) != self.n_rows:
            raise CytosaeError(
                f"{self.folder} says {self.n_rows} rows but holds {self._starts[-1]}; run 'cytosae tokens' again."
            )

    @property
    def hash(self) -> str:
        """Identity of the artifact."""
        return self.manifest.hash

    def rows_of(self, cell_ids: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Row numbers of cells.

        Raises
        ------
        CytosaeError
            A cell has no tokens here.
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
        return rows.astype(np.int64)

    def read(self, rows: npt.NDArray[np.int64], *, kind: str = "all") -> torch.Tensor:
        """Tokens of some rows.

        Parameters
        ----------
        rows
            int64 [n], any order.
        kind
            ``all``, ``patch`` (without the prefix) or ``class``.

        Returns
        -------
        [n, tokens of that kind, d_in] in the stored type

        Raises
        ------
        CytosaeError
            The backbone has no class token.
        """
        if kind == "class" and self.manifest["token_kinds"][0] != "class":
            raise CytosaeError(f"{self.folder} holds no class token: its backbone has none; use the patches.")
        part = {"all": slice(None), "patch": slice(self.n_prefix, None), "class": slice(0, 1)}[kind]
        n_tokens = len(range(*part.indices(self.n_tokens)))
        out = np.empty((len(rows), n_tokens, self.d_in), dtype=STORED[self.dtype])
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            out[here] = self._shards[shard][rows[here] - self._starts[shard]][:, part]
        tensor = torch.from_numpy(out)
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor

    def chunks(self, rows: npt.NDArray[np.int64], size: int, *, kind: str = "all") -> Iterator[torch.Tensor]:
        """float32 tokens of `rows`, `size` rows at a time."""
        for start in range(0, len(rows), size):
            yield self.read(rows[start : start + size], kind=kind).float()
