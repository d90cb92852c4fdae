"""One pass over cells: tokens -> codes -> statistics, and on request cells x concepts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cytosae._errors import UsageError
from cytosae._memory import kept_memory
from cytosae._progress import Meter, say
from cytosae.backbones import Backbone, Layer
from cytosae.cells import Cells, select
from cytosae.concepts._cells_by_concepts import POOLINGS, rows_of, write_cells_by_concepts
from cytosae.concepts._codes import Encoder
from cytosae.concepts._encoders import choose_encoder, encoder_named
from cytosae.concepts._exact import UNIT
from cytosae.concepts._index import KIND, VERSION, ConceptIndex, write_tables
from cytosae.concepts._pool import PooledCells, join, pool_codes
from cytosae.concepts._shards import SHARD, Shards
from cytosae.concepts._statistics import GROUPINGS, ConceptStatistics
from cytosae.concepts._stream import CHUNK, StoredTokens, backbone_of, check_tokens, computed_tokens
from cytosae.concepts._tables import SEMANTICS, tables
from cytosae.sae import SparseAutoencoder
from cytosae.storage import commit_folder, same_work
from cytosae.tokens import TokenStore

Ints = npt.NDArray[np.int64]
#: The published code's threshold for counting tokens.
PUBLISHED_THRESHOLD = 0.2


def index_concepts(
    cells: Cells,
    sae: SparseAutoencoder,
    out: Path | str,
    *,
    store: TokenStore | Sequence[TokenStore] | None = None,
    where: Sequence[str] = (),
    n_exemplars: int = 20,
    cells_matrix: bool | str = False,
    thresholds: Sequence[float] = (),
    semantics: str = "default",
    sources: Mapping[str, str | range] | None = None,
    device: str = "cpu",
    weights: Path | str | None = None,
) -> ConceptIndex:
    """From cells and a dictionary to everything that is said of every concept.

    Goes on from the last whole shard when it was interrupted. Memory does not grow with the number of cells.

    Parameters
    ----------
    cells
        The table; it may hold several data sets. Quarantined cells are in no count; the manifest has their number.
    sae
        The dictionary.
    out
        Folder of the index.
    store
        Tokens of these cells, in one store or several; computed from the images where None.
    where
        Conditions ``column=value`` that choose cells.
    n_exemplars
        Cells kept a concept.
    cells_matrix
        Also write ``cells.h5ad``: cells x concepts, with one of ``max`` (where true), ``mean``, ``patch_share`` as ``X`` and
        the others as layers.
    thresholds
        Codes above each are counted too, by cell, token, label, patient and data set.
    semantics
        ``default``; or ``cytosae-2025``: the published code's, all tokens together and cells ranked by their mean.
    sources
        Hash of a table -> where its cells are in `cells` (`merged_sources`), where the stores were made over tables that were
        merged into `cells`.
    weights
        Weight file of the backbone, where it came from one and no `store` is given.

    Raises
    ------
    CytosaeError
        The tokens belong to another backbone, layer or width than the dictionary, or a shard of them has changed.
    """
    out = Path(out)
    frame = select(cells, where).reset_index(drop=True)
    pooling = "max" if cells_matrix is True else cells_matrix
    if semantics not in SEMANTICS:
        raise UsageError(f"There are no semantics {semantics!r}; use {' or '.join(SEMANTICS)}.")
    if pooling and pooling not in POOLINGS:
        raise UsageError(f"Cells x concepts cannot be pooled by {pooling!r}; use {', '.join(POOLINGS)}.")
    if semantics != "default":
        thresholds = sorted({*thresholds, PUBLISHED_THRESHOLD})
    stores = [] if store is None else [store] if isinstance(store, TokenStore) else list(store)
    for one in stores:
        check_tokens(sae, one)
    stored = StoredTokens.of(stores, sources or {})
    inputs = {"cells": cells.hash, "sae": sae.hash}
    inputs |= {"tokens" if i == 0 else f"tokens-{i}": one.hash for i, one in enumerate(stores)}
    config = {"where": list(where), "n_exemplars": n_exemplars, "cells_matrix": pooling, "chunk": CHUNK, "shard": SHARD,
              "thresholds": list(thresholds), "semantics": semantics, "fixed_point_scale": UNIT,
              "threads": torch.get_num_threads()}  # fmt: skip
    if same_work(out, KIND, inputs, config):
        say(f"index: {out} is there already")
        return ConceptIndex(out)
    groups = group_names(frame)
    work = _Work(
        frame, cells.root, sae, stored, groups, tuple(thresholds), semantics, n_exemplars, pooling, device, weights
    )
    with commit_folder(out, kind=KIND, version=VERSION, inputs=inputs, config=config, resume=True) as (folder, extra):
        shards = Shards(folder)
        with kept_memory():
            work.run(shards)
        whole = ConceptStatistics(sae.n_latents, groups, n_exemplars, tuple(thresholds))
        counts: dict[str, int] = {}
        for part, counted in shards.statistics(work.n_shards, groups, n_exemplars):
            whole.merge(part)
            counts = {k: counts.get(k, 0) + v for k, v in counted.items()}
        found = tables(whole, frame, semantics)
        write_tables(folder, found, inputs, whole)
        if pooling:
            write_cells_by_concepts(
                folder / "cells.h5ad", frame, shards.cells(work.n_shards), found["concepts"], inputs, pooling
            )
        info, plan = sae.info, shards.plan() or {}
        extra |= {
            "n_cells": whole.n_cells,
            "n_tokens": whole.n_tokens,
            "n_latents": sae.n_latents,
            "n_quarantined": cells.n_quarantined,
            "labels": {n: int(k) for n, k in zip(groups["label"], whole.by["label"].n_cells, strict=True)},
            "groups": {name: list(names) for name, names in groups.items()},
            "backbone": info.get("backbone"),
            "layer": info.get("layer"),
            "preprocessing": info.get("preprocessing"),
            "precision": stores[0].manifest["precision"] if stores else info.get("precision"),
            "token_kinds": info.get("token_kinds", ["patch"]) if semantics == "default" else ["all"],
            "encode": {"path": plan.get("path"), **counts},
        }
    return ConceptIndex(out)


def group_names(frame: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Column -> its values, sorted, for every column by which cells are grouped."""
    return {name: tuple(sorted(frame[name].dropna().astype(str).unique())) for name in GROUPINGS}


@dataclass
class _Work:
    """The pass over the cells of one index."""

    frame: pd.DataFrame
    root: str
    sae: SparseAutoencoder
    stored: StoredTokens
    groups: dict[str, tuple[str, ...]]
    thresholds: tuple[float, ...]
    semantics: str
    n_exemplars: int
    pooling: str | bool
    device: str
    weights: Path | str | None

    def __post_init__(self) -> None:
        self.n_shards = -(-len(self.frame) // SHARD)
        self.kind, self.rank_by = ("patch", "max") if self.semantics == "default" else ("all", "mean")
        self._network: tuple[Backbone, Layer] | None = None
        positions = {name: {v: i for i, v in enumerate(names)} for name, names in self.groups.items()}
        self.codes = {
            name: np.array([-1 if pd.isna(v) else positions[name][str(v)] for v in self.frame[name]], np.int64)
            for name in self.groups
        }

    def run(self, shards: Shards) -> None:
        """Make the shards that are missing."""
        plan = shards.plan()
        missing = list(range(self.n_shards)) if plan is None else shards.missing(self.n_shards)
        if not missing:
            return
        stream = self._tokens(missing)
        encoder: Encoder
        if plan is None:
            first = next(stream)
            encoder, stream = self._choose(shards, first[2]), itertools.chain([first], stream)
        else:
            encoder = encoder_named(plan["path"], self.sae)
        waiting: list[PooledCells] = []
        with (
            Meter(len(self.frame), "index", "cells") as meter,
            ThreadPoolExecutor(1) as aside,
            torch.inference_mode(),
        ):
            meter.add(len(self.frame) - sum(len(self._rows(n)) for n in missing))
            writing: Future[None] | None = None
            for number, rows, tokens in stream:
                waiting += [self._pool(encoder, part, tokens[at]) for part, at in self._lots(rows, encoder.aligned)]
                meter.add(len(rows))
                if rows[-1] == self._rows(number)[-1]:
                    if writing is not None:
                        writing.result()
                    # the reduction of a shard runs beside the forward pass of the next one
                    writing = aside.submit(self._finish, shards, number, waiting, encoder.take_counts())
                    waiting = []
            if writing is not None:
                writing.result()

    def _choose(self, shards: Shards, tokens: torch.Tensor) -> Encoder:
        """Settle how codes are made, from the first cells: for the whole index, and for a run that goes on later."""
        encoder = choose_encoder(self.sae, self.device, tokens[:2].flatten(0, 1))
        shards.plan({"path": encoder.path})
        return encoder

    def _rows(self, number: int) -> Ints:
        return np.arange(number * SHARD, min((number + 1) * SHARD, len(self.frame)))

    def _tokens(self, numbers: Sequence[int]) -> Iterator[tuple[int, Ints, torch.Tensor]]:
        """(shard, rows of the table, tokens) in lots of at most `CHUNK` cells that lie within one shard."""
        rows = np.concatenate([self._rows(n) for n in numbers])
        if not self.stored.stores:
            backbone, layer = self._backbone()
            for at, tokens in computed_tokens(self.frame.iloc[rows], self.root, backbone, layer, self.kind):
                yield int(rows[at[0]] // SHARD), rows[at], tokens
            return
        checked: set[str] = set()
        for start in range(0, len(rows), CHUNK):
            mine = rows[start : start + CHUNK]
            part = self.frame.iloc[mine]
            self.stored.verify(checked, part)
            yield int(mine[0] // SHARD), mine, self.stored.read(part, self.kind)

    def _backbone(self) -> tuple[Backbone, Layer]:
        if self._network is None:
            self._network = backbone_of(self.sae, self.device, self.weights)
        return self._network

    def _lots(self, rows: Ints, aligned: bool) -> list[tuple[Ints, slice]]:
        """The rows as they are encoded together: all, or by blocks of ``cell_id`` where the place in a chunk might matter."""
        if not aligned:
            return [(rows, slice(None))]
        block = self.frame["cell_id"].to_numpy(np.int64)[rows] // CHUNK
        edges = [*np.flatnonzero(np.diff(block, prepend=block[0] - 1)), len(rows)]
        return [(rows[a:b], slice(int(a), int(b))) for a, b in itertools.pairwise(edges)]

    def _pool(self, encoder: Encoder, rows: Ints, tokens: torch.Tensor) -> PooledCells:
        """Codes of some cells, pooled."""
        ids = self.frame["cell_id"].to_numpy(np.int64)[rows]
        n, n_tokens, d = tokens.shape
        if not encoder.aligned:
            return pool_codes(encoder(tokens.reshape(n * n_tokens, d)), ids, n_tokens, self.thresholds, self.rank_by)
        place = torch.from_numpy(ids % CHUNK)
        padded = torch.zeros(CHUNK, n_tokens, d, device=tokens.device)
        padded[place] = tokens
        codes = encoder(padded.flatten(0, 1))
        by_place = np.full(CHUNK, -1, np.int64)
        by_place[ids % CHUNK] = ids
        return pool_codes(codes, by_place, n_tokens, self.thresholds, self.rank_by).only(ids)

    def _finish(self, shards: Shards, number: int, parts: list[PooledCells], counts: dict[str, int]) -> None:
        """The statistics of one shard, written."""
        cells = join(parts)
        statistics = ConceptStatistics(self.sae.n_latents, self.groups, self.n_exemplars, self.thresholds)
        rows = self._rows(number)
        statistics.update(cells, {name: codes[rows] for name, codes in self.codes.items()})
        shards.write(number, statistics, rows_of(cells) if self.pooling else {}, counts)
