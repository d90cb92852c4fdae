"""From paths to a `Context`: what was given, and what lies beside it in a run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cytosae._errors import UsageError
from cytosae.cells import read_cells, select
from cytosae.concepts import KIND as INDEX
from cytosae.concepts import ConceptIndex, check_tokens, indexed_cells, merged_sources
from cytosae.concepts._stream import StoredTokens
from cytosae.evaluation._context import Context
from cytosae.evaluation._frozen import train_frozen
from cytosae.evaluation._split import usable_cells
from cytosae.sae import KIND as SAE
from cytosae.sae import SparseAutoencoder, find_sae, load_sae
from cytosae.storage import artifact_hash, is_artifact, read_parquet_record
from cytosae.tokens import TokenStore

#: Cells at most, and bootstrap draws, of a fast scorecard; and draws of a full one.
FAST_CELLS, FAST_DRAWS, DRAWS = 2_000, 200, 1_000


def open_context(
    target: Path,
    out: Path,
    *,
    cells: Path | None = None,
    tokens: Sequence[Path] = (),
    more: Sequence[Path] = (),
    frozen: Path | None = None,
    train_frozen_decoder: bool = False,
    where: Sequence[str] = (),
    weights: Path | None = None,
    open_test: bool = False,
    fast: bool = False,
    seed: int = 0,
) -> Context:
    """Read everything a scorecard needs.

    Parameters
    ----------
    target
        An SAE folder, or a concept index: then its cells take part, and what it was made from is looked for beside it.
    out
        The scorecard's folder.
    cells, tokens
        The table and the token stores; where not given they have to lie beside the index.
    more
        Further dictionaries, for the front over sparsity; and the index's own, where it does not lie beside it.
    frozen, train_frozen_decoder
        A dictionary with a frozen random decoder; or train one now by the recipe of the dictionary (kept in ``out/cache``).
    where
        Only these cells.
    weights
        Weight file of the backbone.
    open_test
        Score WBCAtt's test split.
    fast
        At most `FAST_CELLS` cells, and fewer draws and repeats.

    Raises
    ------
    UsageError
        Something is not given and does not lie beside the target.
    CytosaeError
        Something is no such artifact, or the parts do not fit together.
    """
    paths = {"out": out}
    index = None
    target, more = find_sae(target), [find_sae(p) for p in more]
    if is_artifact(target, INDEX):
        index = ConceptIndex(target)
        paths["index"] = target
        made_from = index.manifest["inputs"]
        mine = [p for p in more if is_artifact(p, SAE) and artifact_hash(p) == made_from["sae"]]
        more = [p for p in more if p not in mine]
        sae = mine[0] if mine else _beside(target, target.parent.iterdir(), SAE, made_from["sae"], "--sae")
        cells = cells or _table_beside(target, made_from["cells"])
        wanted = [h for name, h in sorted(made_from.items()) if name.startswith("tokens")]
        tokens = tokens or [_beside(target, target.parent.iterdir(), "tokens", h, "--tokens") for h in wanted]
    elif is_artifact(target, SAE):
        sae = target
    else:
        raise UsageError(f"{target} is neither a dictionary (an SAE folder) nor a concept index; give one of these.")
    if cells is None or not tokens:
        raise UsageError(f"Cells and tokens are needed beside {target}; give them with --cells and --tokens.")
    table = read_cells(cells)
    dictionary = load_sae(sae)
    paths |= {"sae": sae, "cells": cells}
    stored = _stored(cells, [TokenStore(p) for p in tokens], dictionary)
    wanted_cells = select(table, list(where))
    if index is not None:
        wanted_cells = wanted_cells[wanted_cells["cell_id"].isin(indexed_cells(index, table)["cell_id"])]
    frame, n_closed = usable_cells(wanted_cells.reset_index(drop=True), open_test)
    if fast and len(frame) > FAST_CELLS:
        frame = _some(frame, seed)
    control = load_sae(frozen) if frozen is not None else None
    if control is None and train_frozen_decoder:
        control = train_frozen(table, stored.stores, sae, out / "cache" / "frozen-decoder", seed)
    for one in [control, *(others := _named(more)).values()]:
        if one is not None:
            check_tokens(one, stored.stores[0])
    return Context(
        table, frame, stored, dictionary, out, others, control, seed, FAST_DRAWS if fast else DRAWS, fast,
        n_random=1 if fast else 2, n_repeats=3 if fast else 10, open_test=open_test, weights=weights, n_closed=n_closed, paths=paths,
    )  # fmt: skip


def _stored(cells: Path, stores: Sequence[TokenStore], sae: SparseAutoencoder) -> StoredTokens:
    for store in stores:
        check_tokens(sae, store)
    record = read_parquet_record(cells / "cells.parquet" if cells.is_dir() else cells)
    return StoredTokens.of(stores, merged_sources(record))


def _some(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The cells whose hashes are lowest: the same ones whatever else is in the table."""
    order = [hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in frame["cell_id"].astype(int)]
    kept = pd.Series(order, index=frame.index).sort_values().index[:FAST_CELLS]
    return frame.loc[kept].sort_values("cell_id").reset_index(drop=True)


def _named(paths: Sequence[Path]) -> dict[str, SparseAutoencoder]:
    found: dict[str, Any] = {}
    for path in paths:
        name = path.name if path.name not in found else str(path)
        found[name] = load_sae(path)
    return found


def _beside(target: Path, paths: Iterable[Path], kind: str, wanted: str, option: str) -> Path:
    for path in sorted(paths):
        if path.is_dir() and is_artifact(path, kind) and artifact_hash(path) == wanted:
            return path
    raise UsageError(f"The {kind} that {target} was made from does not lie beside it; give it with {option}.")


def _table_beside(target: Path, wanted: str) -> Path:
    for path in sorted(target.resolve().parent.glob("*.parquet")):
        if artifact_hash(path) == wanted:
            return path
    raise UsageError(f"The table that {target} was made from does not lie beside it; give it with --cells.")
