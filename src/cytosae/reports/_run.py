"""The artifacts of one study, found by name in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import CytosaeError
from cytosae._progress import say
from cytosae.cells import Cells, ImageReader, cell_share_of_patches, decode_image, estimate_cell, read_cells
from cytosae.concepts import CellsByConcepts, ConceptIndex, concept_maps, named_concepts, read_cells_by_concepts
from cytosae.reports._pictures import cell_name
from cytosae.sae import SparseAutoencoder, bundled_folder, is_bundled, load_sae
from cytosae.storage import Manifest, read_manifest
from cytosae.tokens import TokenStore


@dataclass(frozen=True)
class Run:
    """A run folder: ``cells.parquet``, ``tokens/``, ``sae/``, ``index/``, and what else is there.

    Without ``sae/`` the dictionary is the bundled one, where the index was made with it.
    """

    folder: Path

    def __post_init__(self) -> None:
        for name in ("cells.parquet", "tokens", "index", "sae"):
            if (
                name == "sae"
                and not (self.folder / name).exists()
                and is_bundled(self.index.manifest["inputs"].get("sae"))
            ):
                say("report: with the bundled dictionary, of which the index is")
                continue
            if not (self.folder / name).exists():
                raise CytosaeError(
                    f"{self.folder} has no {name}; a run holds cells.parquet, tokens/, sae/ and index/ by these names."
                )

    @cached_property
    def cells(self) -> Cells:
        """The table of cells."""
        return read_cells(self.folder / "cells.parquet")

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The table of cells by `cell_id`."""
        return self.cells.frame.set_index("cell_id")

    @cached_property
    def store(self) -> TokenStore:
        """The tokens."""
        return TokenStore(self.folder / "tokens")

    @cached_property
    def sae(self) -> SparseAutoencoder:
        """The dictionary."""
        return load_sae(self.folder / "sae" if (self.folder / "sae").exists() else bundled_folder() / "sae")

    @cached_property
    def sae_manifest(self) -> Manifest:
        """What the dictionary was made from."""
        own = self.folder / "sae"
        return read_manifest(own if own.exists() else bundled_folder() / "sae", "sae", 1)

    @cached_property
    def index(self) -> ConceptIndex:
        """The index of the cells that are shown."""
        return ConceptIndex(self.folder / "index")

    def cell_name(self, cell_id: int) -> str:
        """Number and file of a cell: what a person looks for on the disk."""
        return cell_name(cell_id, self.rows.loc[cell_id, "image"])

    def title(self, latent: int) -> str:
        """What a concept is called: the name a person gave, and its number."""
        name = self._names.get(latent)
        return f"{name} (concept {latent})" if isinstance(name, str) else f"concept {latent}"

    @cached_property
    def _names(self) -> dict[int, Any]:
        table = named_concepts(self.index)
        return dict(zip(table["latent"].tolist(), table["name"].tolist(), strict=True))

    def other_index(self, name: str) -> ConceptIndex | None:
        """A further index of the run (``index-train``, ``index-marrow``), if it is there."""
        return ConceptIndex(self.folder / name) if (self.folder / name / "manifest.json").exists() else None

    def matrix(self, name: str) -> CellsByConcepts | None:
        """Cells x concepts of an index, if it was written."""
        return read_cells_by_concepts(self.folder / name) if (self.folder / name / "cells.h5ad").exists() else None

    def record(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run, if it is there."""
        path = self.folder / name
        return dict(json.loads(path.read_text("utf-8"))) if path.exists() else None

    @cached_property
    def _reader(self) -> ImageReader:
        return ImageReader(self.cells.root)

    def image_bytes(self, cell_id: int) -> bytes:
        """The image file of a cell."""
        row = self.rows.loc[cell_id]
        return self._reader.read(row["image"], row["sha256"])

    def pixels(self, cell_id: int) -> npt.NDArray[np.uint8]:
        """The decoded image of a cell."""
        return decode_image(self.image_bytes(cell_id)).pixels

    def maps(self, cell_id: int, latents: list[int]) -> npt.NDArray[np.float32]:
        """Codes of some concepts on every patch of a cell: [len(latents), rows, columns]."""
        tokens = self.store.read(self.store.rows_of([cell_id]), kind="patch")[0].float()
        return concept_maps(self.sae, tokens, latents, self.store.grid)

    def cell_shares(self, cell_id: int) -> npt.NDArray[np.float64]:
        """Share of each patch that the cell covers, by a simple estimate: [rows, columns]."""
        if cell_id not in self._shares:
            self._shares[cell_id] = cell_share_of_patches(estimate_cell(self.pixels(cell_id)), self.store.grid)
        return self._shares[cell_id]

    @cached_property
    def _shares(self) -> dict[int, npt.NDArray[np.float64]]:
        return {}

    def codes(self, cell_id: int) -> npt.NDArray[np.float32]:
        """All codes of a cell: [patches, n_latents]."""
        tokens = self.store.read(self.store.rows_of([cell_id]), kind="patch")[0].float()
        codes: npt.NDArray[np.float32] = self.sae.encode(tokens).numpy()
        return codes
