"""Tokens of cells, chunk by chunk: read from stores or computed from the images, the next batch being decoded meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cytosae._errors import CytosaeError
from cytosae.backbones import Backbone, Layer, layer_option, layer_text, load_backbone, same_layer
from cytosae.sae import SparseAutoencoder
from cytosae.storage import hash_file
from cytosae.tokens import TokenStore, encode_images

#: Cells encoded together.
CHUNK = 16

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StoredTokens:
    """Token stores that together hold the tokens of a table's cells.

    Attributes
    ----------
    stores
        The stores.
    sources
        For each store the value of the table's column ``source`` whose cells it holds, under their ``source_cell_id``; or the
        range of ``cell_id`` of which it holds the first as 0 (`merged_sources`); None: it was made over this very table and
        knows its ``cell_id``.
    """

    stores: Sequence[TokenStore]
    sources: Sequence[str | range | None]

    @classmethod
    def of(cls, stores: Sequence[TokenStore], sources: Mapping[str, str | range]) -> StoredTokens:
        """Stores of a table whose parts are known by the hashes of the tables they came from."""
        return cls(stores, [sources.get(s.manifest["inputs"].get("cells", "")) for s in stores])

    def read(self, frame: pd.DataFrame, kind: str) -> torch.Tensor:
        """Tokens of the cells of some rows, float32 [n, tokens, d_in].

        Raises
        ------
        CytosaeError
            A cell has no tokens in any of the stores, or those of another image stand by its id.
        """
        if len(self.stores) == 1 and self.sources[0] is None:
            store = self.stores[0]
            rows = store.rows_of(frame["cell_id"].to_numpy(np.int64), frame["sha256"].tolist())
            return store.read(rows, kind=kind).float()
        out: torch.Tensor | None = None
        done = np.zeros(len(frame), bool)
        for store, source in zip(self.stores, self.sources, strict=True):
            ids, mine = _ids_in(frame, source)
            mine &= ~done
            if source is None:
                mine &= np.isin(ids, store.cell_ids)
            if not mine.any():
                continue
            rows = store.rows_of(ids[mine], frame.loc[mine, "sha256"].tolist())
            part = store.read(rows, kind=kind).float()
            out = part.new_zeros(len(frame), *part.shape[1:]) if out is None else out
            out[torch.from_numpy(mine)] = part
            done |= mine
        if not done.all() or out is None:
            raise CytosaeError(
                f"None of the token stores given has tokens of cell {frame['cell_id'].to_numpy()[~done][0]}; "
                "extract the tokens of these cells, and give that store with --tokens too."
            )
        return out

    def cells_in(self, store_hash: str, frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Which cells of some rows have their tokens in the store of that hash; bool [n], none where it is not among them."""
        found = np.zeros(len(frame), bool)
        for store, source in zip(self.stores, self.sources, strict=True):
            if store.hash == store_hash:
                ids, mine = _ids_in(frame, source)
                found |= mine & np.isin(ids, store.cell_ids)
        return found

    def verify(self, checked: set[str], frame: pd.DataFrame) -> None:
        """Hash the shards that hold these cells, each once, and refuse one that has changed.

        Raises
        ------
        CytosaeError
            A shard is not what was written.
        """
        for store, source in zip(self.stores, self.sources, strict=True):
            ids, mine = _ids_in(frame, source)
            rows = np.flatnonzero(np.isin(store.cell_ids, ids[mine]))
            for number in np.unique(np.searchsorted(store._starts, rows, side="right") - 1):
                name = sorted(n for n in store.manifest["files"] if n.endswith(".bin"))[number]
                path = store.folder / name
                if str(path) in checked:
                    continue
                if hash_file(path) != store.manifest["files"][name]["sha256"]:
                    raise CytosaeError(
                        f"{path} has changed since it was written; delete {store.folder} and run 'cytosae tokens' again."
                    )
                checked.add(str(path))


def merged_sources(record: Mapping[str, Any]) -> dict[str, str | range]:
    """Hash of each table that was merged into one -> where its cells are, from the record of the merged table.

    A table's name, by which ``source`` and ``source_cell_id`` find its cells; of a table that was itself merged the range of
    the new ``cell_id``.
    """
    ranges = record["config"].get("ranges", {})
    return {
        record["inputs"][name]: range(*ranges[name]) if name in ranges else name
        for name in record["config"].get("merged", [])
    }


def _ids_in(frame: pd.DataFrame, source: str | range | None) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Ids of all cells in the table a store was made from, and which of them come from it."""
    own = frame["cell_id"].to_numpy(np.int64)
    if source is None:
        return own, np.ones(len(frame), bool)
    if isinstance(source, range):
        return own - source.start, (own >= source.start) & (own < source.stop)
    return frame["source_cell_id"].fillna(-1).to_numpy(np.int64), (frame["source"] == source).to_numpy(bool)


def check_tokens(sae: SparseAutoencoder, store: TokenStore) -> None:
    """Refuse tokens that are not of the kind the dictionary was trained on."""
    layer = sae.info.get("layer")
    if store.d_in != sae.d_in:
        reads = "" if layer is None else f" ({layer_text(layer)}, so --layer {layer_option(layer)})"
        raise CytosaeError(
            f"The tokens are {store.d_in} wide, but the dictionary wants {sae.d_in}; extract them with the same backbone and blocks"
            f"{reads}."
        )
    for key in ("backbone", "layer", "preprocessing"):
        wanted, found = sae.info.get(key), store.manifest.get(key)
        if key == "backbone" and wanted and found:  # a renamed file is the same backbone
            wanted, found = ({k: v for k, v in record.items() if k != "file"} for record in (wanted, found))
        if key == "layer" and wanted is not None and found is not None:
            if same_layer(wanted, found, store.manifest.get("depth")):
                continue
            raise CytosaeError(
                f"The tokens are of {layer_text(found)}, but the dictionary reads {layer_text(wanted)}; extract them again with "
                f"--layer {layer_option(wanted)}."
            )
        if key == "backbone" and wanted and found and wanted != found:
            raise CytosaeError(_other_backbone(wanted, found))
        if wanted is not None and wanted != found:
            raise CytosaeError(
                f"The tokens differ from the dictionary's in {key} ({found} against {wanted}); extract them again."
            )


def _other_backbone(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    name, other = str(wanted.get("name")), str(found.get("name"))
    if name != other:
        return f"The tokens are of {other}, but the dictionary reads {name}; extract them with --backbone {name}, or give another dictionary."
    flat = [{k: v for k, v in r.items() if k != "options"} | dict(r.get("options") or {}) for r in (found, wanted)]
    differ = [key for key in sorted({*flat[0], *flat[1]}) if flat[0].get(key) != flat[1].get(key)]
    sides = (
        ", ".join(f"{key} {str(record.get(key))[: 12 if key == 'sha256' else None]}" for key in differ)
        for record in flat
    )
    return "The tokens are of {0} with {1}, but the dictionary reads {0} with {2}; extract them again with its own.".format(
        name, *sides
    )


def backbone_of(sae: SparseAutoencoder, device: str, weights: Path | str | None = None) -> tuple[Backbone, Layer]:
    """The backbone a dictionary belongs to, and the block it was trained on.

    Parameters
    ----------
    sae
        The dictionary.
    device
        As torch names it.
    weights
        The weight file, where the backbone came from one.

    Raises
    ------
    CytosaeError
        The dictionary does not say, it came from a file that is not given, or the weights present are others.
    """
    record = sae.info.get("backbone")
    if not record:
        raise CytosaeError("This dictionary does not say which backbone it belongs to; give tokens with --tokens.")
    if record.get("file") and weights is None:
        raise CytosaeError(
            f"This dictionary belongs to {record['name']} with the weights of {record['file']}; give that file with --weights."
        )
    backbone = load_backbone(
        record["name"], weights=weights if record.get("file") else None, precision=sae.info.get("precision", "float32"),
        device=device, **record.get("options", {}),
    )  # fmt: skip
    if backbone.weights_sha256 != record["sha256"]:
        raise CytosaeError(
            f"The weights of {record['name']} are not those the dictionary was trained on (sha256 differs)."
        )
    layer: Layer | None = sae.info.get("layer")
    if layer is None:
        raise CytosaeError(
            "This dictionary does not say which block of the backbone it reads; give tokens with --tokens, or import it again "
            "with --layer."
        )
    return backbone, layer


def computed_tokens(
    frame: pd.DataFrame, root: str, backbone: Backbone, layer: Layer, kind: str
) -> Iterator[tuple[Ints, torch.Tensor]]:
    """(rows of `frame`, tokens float32 [n, tokens, d_in]) in lots of at most `CHUNK` cells, from the images."""
    start = 0
    first = backbone.n_prefix if kind == "patch" else 0
    for tokens in encode_images(frame, root, backbone, layer):
        yield np.arange(start, start + len(tokens)), tokens[:, first:]
        start += len(tokens)
