"""What the pass has finished: one file a shard of cells, hashed, so that a stop loses one shard at most."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._progress import say
from cytosae.concepts._statistics import ConceptStatistics
from cytosae.storage import commit_file, hash_file, write_json

#: Cells a shard: a multiple of the images of a forward pass.
SHARD = 256
_FOLDER = ".shards"

Arrays = dict[str, npt.NDArray[Any]]


class Shards:
    """Finished shards in the working folder of an index (hidden: they are no part of the artifact).

    Attributes
    ----------
    n_redone
        Shards that were there but not as they had been written, and are made again.
    """

    def __init__(self, working: Path) -> None:
        self.folder = working / _FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self.n_redone = 0

    def plan(self, wanted: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """What was settled when the work began (None: nothing yet); with `wanted`, settle it."""
        path = self.folder / "plan.json"
        if wanted is not None:
            with commit_file(path) as temporary:
                write_json(temporary, dict(wanted))
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def missing(self, n: int) -> list[int]:
        """Which of `n` shards are still to be made; one that fails its hash is among them, and is named."""
        out = []
        for number in range(n):
            data, record = self._paths(number)
            if not record.exists():
                out.append(number)
            elif self._record(number) is None or not data.exists() or hash_file(data) != self._record(number)["sha256"]:
                say(f"index: shard {number} of the earlier run is damaged (its hash differs) and is made again")
                record.unlink(missing_ok=True)
                self.n_redone += 1
                out.append(number)
        return out

    def write(self, number: int, statistics: ConceptStatistics, cells: Arrays, counts: dict[str, int]) -> None:
        """Keep a shard: statistics, rows of cells x concepts (empty where not wanted), and what the encoder counted."""
        from safetensors.numpy import save_file

        arrays = {f"s.{k}": v for k, v in statistics.to_arrays().items()} | {f"c.{k}": v for k, v in cells.items()}
        data, record = self._paths(number)
        with commit_file(data) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary)
        with commit_file(record) as temporary:  # written last: a shard without its record does not exist
            write_json(temporary, {"sha256": hash_file(data), "counts": counts})

    def statistics(
        self, n: int, groups: Mapping[str, tuple[str, ...]], n_exemplars: int
    ) -> Iterator[tuple[ConceptStatistics, dict[str, int]]]:
        """Statistics and counts of each shard, in order."""
        for number in range(n):
            arrays = self._arrays(number, "s.")
            record = self._record(number) or {}
            yield ConceptStatistics.from_arrays(arrays, groups, n_exemplars), record["counts"]

    def cells(self, n: int) -> Iterator[Arrays]:
        """Rows of cells x concepts of each shard, in order."""
        for number in range(n):
            yield self._arrays(number, "c.")

    def _arrays(self, number: int, prefix: str) -> Arrays:
        from safetensors import safe_open

        with safe_open(self._paths(number)[0], framework="numpy") as file:
            return {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118

    def _record(self, number: int) -> Any:
        try:
            found = json.loads(self._paths(number)[1].read_text("utf-8"))
            return found if {"sha256", "counts"} <= set(found) else None
        except (OSError, ValueError, TypeError):
            return None

    def _paths(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"{number:05d}.safetensors", self.folder / f"{number:05d}.json"
