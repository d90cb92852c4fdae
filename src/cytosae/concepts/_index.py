"""The concept index as it is read back."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cytosae._errors import UsageError
from cytosae.storage import read_manifest, read_table

KIND, VERSION = "index", 1


class ConceptIndex:
    """What is known of every concept over a set of cells.

    Attributes
    ----------
    concepts
        One row a latent: ``latent``, ``n_cells_active``, ``n_tokens_active``, ``frequency`` (share of cells with any
        active patch), ``mean_activation`` (over the cells where it is active, of their patch means),
        ``max_activation``, ``label_entropy`` (nats, of the exemplars), ``class_entropy`` (nats, over all cells, class
        balance taken out), ``top_label``, ``top_label_share``, ``dead``.
    exemplars
        ``latent, rank, cell_id, value, patch``.
    labels
        ``latent, label, n_cells_active, n_cells``.
    manifest
        The record of how it was made.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(folder, KIND, VERSION)
        self.concepts = self._table("concepts")
        self.exemplars = self._table("exemplars")
        self.labels = self._table("labels")

    @property
    def hash(self) -> str:
        """Identity of the artifact."""
        return self.manifest.hash

    @property
    def n_cells(self) -> int:
        """Number of cells indexed."""
        return int(self.manifest["n_cells"])

    def exemplars_of(self, latent: int) -> pd.DataFrame:
        """The exemplars of one concept, best first.

        Raises
        ------
        UsageError
            No such latent.
        """
        if not 0 <= latent < len(self.concepts):
            raise UsageError(f"There is no concept {latent}; the dictionary has 0 to {len(self.concepts) - 1}.")
        return self.exemplars[self.exemplars["latent"] == latent].sort_values("rank")

    def _table(self, name: str) -> pd.DataFrame:
        return read_table(self.folder / f"{name}.parquet", name, VERSION)[0].to_pandas()
