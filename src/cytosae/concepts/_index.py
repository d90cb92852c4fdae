"""The concept index: how it is written and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from cytosae._errors import CytosaeError, UsageError
from cytosae.cells import Cells, select_any
from cytosae.concepts._statistics import ConceptStatistics
from cytosae.storage import read_manifest, read_table, write_table

KIND, VERSION = "index", 2
#: The exact sums and counts from which the tables were made: what merging needs.
STATE = "statistics.safetensors"


def wheres_of(index: ConceptIndex) -> list[list[str]]:
    """The conditions by which the cells of an index were chosen: one list, or of a merged index one for each part."""
    config = index.manifest["config"]
    return [list(w) for w in config.get("wheres") or [config.get("where", [])]]


def indexed_cells(index: ConceptIndex, cells: Cells) -> pd.DataFrame:
    """The usable cells of a table that an index was made over.

    Raises
    ------
    CytosaeError
        The index was merged by a program that did not keep which cells its parts had.
    """
    if index.manifest["config"].get("merged") and "wheres" not in index.manifest["config"]:
        raise CytosaeError(f"{index.folder} does not say which cells its parts had; merge them again.")
    return select_any(cells, wheres_of(index))


class ConceptIndex:
    """What is known of every concept over a set of cells.

    Attributes
    ----------
    concepts
        One row a latent: ``latent``, ``n_cells_active``, ``n_tokens_active``, ``frequency`` (share of cells with any
        active patch), ``mean_activation`` (over the cells where it is active, of their patch means),
        ``max_activation``, ``label_entropy`` (nats, of the exemplars), ``class_entropy`` (nats, over all cells, class
        balance taken out), ``top_label``, ``top_label_share``, ``dead``; ``n_cells_above_T``, ``n_tokens_above_T`` for each
        threshold T asked for. Unknown is null.
    exemplars
        ``latent, rank, cell_id, value, patch, shown``: the raw ranking, and which of it is shown.
    labels
        ``latent, label, n_cells_active, n_cells``.
    groups
        ``grouping`` (label, patient, dataset), ``group, latent, n_cells, n_cells_active, n_tokens_active, mean_activation``;
        a latent that no cell of the group has active is left out. Empty in an index of version 1.
    manifest
        The record of how it was made.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(folder, KIND, VERSION)
        self.concepts = self._table("concepts")
        self.exemplars = self._table("exemplars")
        self.labels = self._table("labels")
        has_groups = "groups.parquet" in self.manifest["files"]
        self.groups = self._table("groups") if has_groups else pd.DataFrame({"grouping": [], "group": [], "latent": []})

    @property
    def hash(self) -> str:
        """Identity of the artifact."""
        return self.manifest.hash

    @property
    def n_cells(self) -> int:
        """Number of cells indexed."""
        return int(self.manifest["n_cells"])

    @property
    def semantics(self) -> str:
        """``default`` or ``cytosae-2025``."""
        return str(self.manifest["config"].get("semantics", "default"))

    def exemplars_of(self, latent: int, *, raw: bool = False) -> pd.DataFrame:
        """The exemplars of one concept, best first.

        Parameters
        ----------
        latent
            Which.
        raw
            All that are kept; otherwise those that are shown: one a near-duplicate group or source field, two a patient.

        Raises
        ------
        UsageError
            No such latent.
        """
        if not 0 <= latent < len(self.concepts):
            raise UsageError(f"There is no concept {latent}; the dictionary has 0 to {len(self.concepts) - 1}.")
        mine = self.exemplars[self.exemplars["latent"] == latent].sort_values("rank")
        return mine if raw or "shown" not in mine else mine[mine["shown"].astype(bool)]

    def statistics(self) -> ConceptStatistics:
        """The exact counts and sums.

        Raises
        ------
        CytosaeError
            The index was imported or made by an older version and holds none.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if STATE not in self.manifest["files"]:
            raise CytosaeError(f"{self.folder} holds no exact sums ({STATE}); make the index again from its cells.")
        groups = {name: tuple(names) for name, names in self.manifest["groups"].items()}
        try:
            arrays = load_file(self.folder / STATE)
        except (SafetensorError, OSError) as error:
            raise CytosaeError(f"{self.folder / STATE} cannot be read ({error}); make the index again.") from error
        return ConceptStatistics.from_arrays(arrays, groups, int(self.manifest["config"]["n_exemplars"]))

    def _table(self, name: str) -> pd.DataFrame:
        return read_table(self.folder / f"{name}.parquet", name, VERSION)[0].to_pandas()


def write_tables(
    folder: Path, tables: dict[str, pd.DataFrame], inputs: dict[str, str], statistics: ConceptStatistics | None = None
) -> None:
    """Write the tables of an index into a folder that is being committed as a whole, and the exact sums where there are any."""
    for name, table in tables.items():
        arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
        write_table(folder / f"{name}.parquet", arrow, kind=name, version=VERSION, inputs=inputs, atomic=False)
    if statistics is not None:
        from safetensors.numpy import save_file

        save_file({k: np.ascontiguousarray(v) for k, v in statistics.to_arrays().items()}, folder / STATE)
