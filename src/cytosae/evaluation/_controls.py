"""Label entropy of concepts against two controls: random directions that fire as often, and shuffled labels.

A low label entropy alone says little: a concept that fires rarely, or a data set with few classes, has it for free. So
every latent is compared with a random direction thresholded to the latent's own firing frequency, and with itself under
shuffled labels, on the same cells. Exemplars are those that are shown: one a field, two a patient. Intervals come from drawing
fields, patients or near-duplicate groups (single cells where none is known) and latents again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cytosae._errors import CytosaeError
from cytosae._progress import say
from cytosae.cells import Cells, select_any
from cytosae.concepts import N_JUDGED
from cytosae.concepts._shown import shown_exemplars
from cytosae.evaluation._split import linked_cells
from cytosae.sae import SparseAutoencoder
from cytosae.storage import commit_file, created_by, write_json
from cytosae.tokens import TokenStore

Floats = npt.NDArray[np.float32]
#: Latents that fire in fewer cells have too few exemplars to be judged.
MIN_CELLS = N_JUDGED
_CHUNK = 16


class TooFewCellsError(CytosaeError):
    """No concept has exemplars enough to be judged."""


@dataclass(frozen=True)
class ControlledEntropy:
    """Mean label entropy (nats) of the concepts and its controls, and the differences with 95% intervals.

    `n_latents` were judged (active in at least `MIN_CELLS` of `n_cells`), from `n_judged` exemplars each.
    """

    n_cells: int
    n_latents: int
    n_judged: int
    concepts: float
    random: float
    shuffled: float
    minus_random: tuple[float, float, float]
    minus_shuffled: tuple[float, float, float]
    share_below_random: float

    @property
    def holds(self) -> bool:
        """Whether both differences lie below 0 with their whole interval."""
        return self.minus_random[2] < 0 and self.minus_shuffled[2] < 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()} | {"holds": self.holds}


def random_directions(
    sae: SparseAutoencoder, store: TokenStore, rows: npt.NDArray[np.int64], seed: int
) -> tuple[Floats, Floats]:
    """Largest code of each cell, for the dictionary and for random directions that fire on as many tokens.

    Parameters
    ----------
    rows
        Rows of the store (the cells).
    seed
        Of the random unit directions, one a latent.

    Returns
    -------
    two float32 [n_cells, n_latents]: the dictionary's values and the control's, 0 where nothing fires. A direction fires
    on the tokens (centred on the dictionary's decoder bias) whose projection is above its threshold; its value is the
    projection less the threshold.
    """
    generator = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(sae.d_in, sae.n_latents, generator=generator), dim=0)
    values = np.zeros((len(rows), sae.n_latents), np.float32)
    fired = torch.zeros(sae.n_latents, dtype=torch.int64)
    for start, chunk in zip(range(0, len(rows), _CHUNK), store.chunks(rows, _CHUNK, kind="patch"), strict=True):
        codes = sae.encode(chunk)
        fired += (codes > 0).sum((0, 1))
        values[start : start + _CHUNK] = codes.amax(1).numpy()
    threshold = _thresholds(W, sae.b_dec, store, rows, fired)
    control = np.zeros_like(values)
    for start, chunk in zip(range(0, len(rows), _CHUNK), store.chunks(rows, _CHUNK, kind="patch"), strict=True):
        top = ((chunk - sae.b_dec) @ W).amax(1)
        control[start : start + _CHUNK] = (top - threshold).clamp_(min=0).numpy()
    return values, control


def _thresholds(
    W: torch.Tensor, centre: torch.Tensor, store: TokenStore, rows: npt.NDArray[np.int64], fired: torch.Tensor
) -> torch.Tensor:
    """For each direction the value above which exactly `fired` of the tokens lie."""
    out = torch.full((W.shape[1],), float("inf"))
    tokens = store.read(rows, kind="patch").flatten(0, 1)
    step = max(1, 2**24 // len(tokens))
    for a in range(0, W.shape[1], step):
        w = W[:, a : a + step]
        projected = torch.cat([((piece.float() - centre) @ w).T for piece in torch.split(tokens, 32_768)], dim=1)
        for j, n in enumerate(fired[a : a + step].tolist()):
            if n > 0:
                top = torch.topk(projected[j], min(n + 1, projected.shape[1])).values
                out[a + j] = (top[-1] + top[-2]) / 2 if n < projected.shape[1] else top[-1] - 1
    return out


def controlled_entropy(
    values: Floats,
    control: Floats,
    labels: pd.Series[Any] | npt.NDArray[Any],
    *,
    frame: pd.DataFrame | None = None,
    seed: int = 0,
    n_draws: int = 200,
) -> ControlledEntropy:
    """Compare label entropies of concepts with those of the control and of shuffled labels, latent by latent.

    Parameters
    ----------
    values, control
        [n_cells, n_latents] from `random_directions`.
    labels
        Label of each cell; all known.
    frame
        The cells, by rising ``cell_id``: its columns say which of them belong together. None: every cell stands alone.
    n_draws
        Bootstrap draws. Each draws the groups of linked cells with replacement (a cell drawn twice counts as two exemplars),
        the latents with replacement, and shuffles the labels anew.

    Raises
    ------
    CytosaeError
        Fewer than two labels, or no latent active in enough cells.
    """
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise CytosaeError("Label entropy needs cells of at least two labels.")
    keep = np.flatnonzero(((values > 0).sum(0) >= MIN_CELLS) & ((control > 0).sum(0) >= MIN_CELLS))
    if not len(keep):
        raise TooFewCellsError(f"No concept is active in {MIN_CELLS} of these cells; index more cells.")
    rng = np.random.Generator(np.random.Philox(key=[seed, 7]))
    unit = np.arange(len(codes)) if frame is None else linked_cells(frame)
    ours, theirs = _ranked(values[:, keep], frame), _ranked(control[:, keep], frame)
    all_cells = np.ones(len(codes), np.int64)
    n = len(names)
    base = [
        _entropies(*ours, codes, n, all_cells),
        _entropies(*theirs, codes, n, all_cells),
        np.mean([_entropies(*ours, rng.permutation(codes), n, all_cells) for _ in range(20)], axis=0),
    ]
    draws, n_units = np.empty((n_draws, 2)), int(unit.max()) + 1
    for i in range(n_draws):
        drawn = np.bincount(rng.integers(n_units, size=n_units), minlength=n_units)[unit]
        latents = rng.integers(len(keep), size=len(keep))
        e = _entropies(*ours, codes, n, drawn)[latents]
        draws[i, 0] = (e - _entropies(*theirs, codes, n, drawn)[latents]).mean()
        draws[i, 1] = (e - _entropies(*ours, rng.permutation(codes), n, drawn)[latents]).mean()
    differences = [float((base[0] - other).mean()) for other in base[1:]]
    # a cell drawn twice makes any exemplars purer, those of the controls most: the draws give the spread, not the place
    low, high = np.percentile(draws - draws.mean(0) + differences, [2.5, 97.5], axis=0)
    return ControlledEntropy(
        n_cells=len(codes),
        n_latents=len(keep),
        n_judged=N_JUDGED,
        concepts=float(base[0].mean()),
        random=float(base[1].mean()),
        shuffled=float(base[2].mean()),
        minus_random=(differences[0], float(low[0]), float(high[0])),
        minus_shuffled=(differences[1], float(low[1]), float(high[1])),
        share_below_random=float((base[0] < base[1]).mean()),
    )


def _ranked(values: Floats, frame: pd.DataFrame | None, depth: int = 60) -> tuple[npt.NDArray[np.int64], Floats]:
    """Cells by falling value, [depth, n_latents], and the values, 0 for a cell that would not be shown.

    Deep enough to find ten among the cells of a draw.
    """
    order = np.argsort(-values, axis=0, kind="stable")[:depth]
    ranked = np.take_along_axis(values, order, 0)
    if frame is not None:
        ranked[~shown_exemplars(frame["cell_id"].to_numpy(np.int64)[order].T, frame).T] = 0
    return order, ranked


def _entropies(
    order: npt.NDArray[np.int64], values: Floats, codes: npt.NDArray[Any], n_labels: int, times: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Label entropy of each latent's first `N_JUDGED` exemplars, each cell counted `times`, weighted by value."""
    count = np.where(values > 0, times[order], 0)
    before = np.cumsum(count, axis=0) - count
    weight = np.clip(N_JUDGED - before, 0, count) * values.astype(np.float64)
    total = np.zeros((n_labels, order.shape[1]))
    for label in range(n_labels):
        total[label] = (weight * (codes[order] == label)).sum(0)
    p = total / np.maximum(total.sum(0), 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(-np.where(p > 0, p * np.log(p), 0).sum(0))


def measure_controls(
    cells: Cells,
    store: TokenStore,
    sae: SparseAutoencoder,
    out: Path | str,
    *,
    where: Sequence[str] = (),
    wheres: Sequence[Sequence[str]] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the control of the label entropy on some cells and write it as JSON; an equal record is kept.

    `wheres` are the conditions of a merged index: cells that fulfil those of any of its parts. They take the place of `where`.

    Raises
    ------
    CytosaeError
        The chosen cells carry fewer than two labels.
    """
    out = Path(out)
    inputs = {"cells": cells.hash, "tokens": store.hash, "sae": sae.hash}
    chosen = {"wheres": [list(w) for w in wheres]} if len(wheres) > 1 else {"where": list(*wheres or [where])}
    head = {"kind": "controls", "version": 2, "created_by": created_by(), "inputs": inputs,
            "config": {**chosen, "seed": seed}}  # fmt: skip
    found = _read_record(out)
    if all(found.get(k) == v for k, v in head.items()):
        return found
    frame = select_any(cells, wheres or [where])
    frame = frame[frame["label"].notna()]
    say("controls: random directions and shuffled labels")
    values, control = random_directions(sae, store, store.rows_of(frame["cell_id"].to_numpy()), seed)
    record = {
        **head,
        **controlled_entropy(values, control, frame["label"].to_numpy(str), frame=frame, seed=seed).as_dict(),
    }
    with commit_file(out) as temporary:
        write_json(temporary, record)
    return record


def _read_record(path: Path) -> dict[str, Any]:
    """The record in a JSON file; empty where there is none or it is not whole, so that it is measured again."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
