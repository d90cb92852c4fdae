"""Simulated patients made of real labelled cells: mixtures drawn by patient, every cell used at most once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae._progress import say
from cytosae.cells import Cells, read_cells, select, write_cells
from cytosae.patients._spec import CohortSpec, DiagnosisSpec, read_spec
from cytosae.storage import created_by, read_parquet_record

#: Whole cohorts drawn before the pool is called too small.
MAX_DRAWS = 2_000
Ints = npt.NDArray[np.int64]


def simulate_cohort(spec: CohortSpec | Path | str, cells: Cells, out: Path | str, *, seed: int = 0) -> Cells:
    """Draw a cohort of simulated patients and write it as a table of cells.

    Every patient's mixture is drawn from Dirichlet(concentration * weights of its diagnosis), and its numbers of cells
    from a multinomial of that mixture; fixed cells are added. A cell that fulfils any diagnosis' fixed selection is
    reserved: it is never drawn by a mixture, so that a marker planted in one diagnosis is in no other. When the numbers
    of a whole cohort do not fit into the pool, the whole cohort is drawn again (never a single patient, which would make
    later patients differ from earlier ones): the result is a draw from the stated distribution given that it fits.

    Parameters
    ----------
    spec
        The specification, a YAML or JSON file of it, or the name of a packaged one (``demo``).
    cells
        The real cells.
    out
        The ``cells.parquet`` to write. ``cell_id`` stays that of `cells`, so that its token store serves this table too.
        ``simulated`` (true), ``cohort``, ``source_cell_id``, ``source_patient`` and ``source_diagnosis`` are added.
    seed
        Of everything random.

    Raises
    ------
    UsageError
        The specification is wrong, or names a column or value that the cells do not have.
    CytosaeError
        The pool has too few cells of a label.
    """
    spec, out = spec if isinstance(spec, CohortSpec) else read_spec(spec), Path(out)
    inputs, config = {"cells": cells.hash}, {"spec": spec.as_dict(), "seed": seed, "simulated": True}
    if _is_there(out, inputs, {**config, "root": cells.root}):
        say(f"cohort: {out} is there already")
        return read_cells(out)
    frame = draw_cohort(spec, cells, seed)
    write_cells(out, frame, root=cells.root, inputs=inputs, config=config)
    return read_cells(out)


def draw_cohort(spec: CohortSpec, cells: Cells, seed: int) -> pd.DataFrame:
    """The rows of a simulated cohort, by ``cell_id``; see `simulate_cohort`."""
    pool = select(cells, spec.where).sort_values("cell_id")
    rng = np.random.Generator(np.random.Philox(key=[seed, 2**34]))
    reserved = _reserved(spec, pool)
    taken = np.zeros(len(pool), bool)
    patients = [(d, f"sim-{d.code}-{i + 1:02d}") for d in spec.diagnoses for i in range(d.n_patients)]
    owner = np.full(len(pool), -1, np.int64)
    for column, value in sorted({(c, v) for d in spec.diagnoses for c, values in d.fixed.items() for v in values}):
        wanted = [d.fixed.get(column, {}).get(value, 0) for d, _ in patients]
        here = np.flatnonzero((pool[column].astype("string") == value).fillna(False).to_numpy(bool) & ~taken)
        if len(here) < sum(wanted):
            raise CytosaeError(_too_few(f"{column}={value}", sum(wanted), len(here)))
        here = rng.permutation(here)[: sum(wanted)]
        owner[here], taken[here] = np.repeat(np.arange(len(patients)), wanted), True

    labels = sorted({label for d in spec.diagnoses for label in d.mixture})
    free = pool[spec.mixture_by].astype("string").where(~reserved)
    available = np.array([int((free == label).sum()) for label in labels])
    counts = _draw_counts(spec, [d for d, _ in patients], labels, available, rng)
    for j, label in enumerate(labels):
        here = np.flatnonzero((free == label).fillna(False).to_numpy(bool))
        here = rng.permutation(here)[: counts[:, j].sum()]
        owner[here] = np.repeat(np.arange(len(patients)), counts[:, j])
    return _rows(pool, owner, patients, spec)


def _reserved(spec: CohortSpec, pool: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Cells that fulfil any fixed selection; also checks that every column and value is there."""
    reserved = np.zeros(len(pool), bool)
    wanted = [(c, v) for d in spec.diagnoses for c, values in d.fixed.items() for v in values]
    for column, value in [*wanted, *((spec.mixture_by, label) for d in spec.diagnoses for label in d.mixture)]:
        if column not in pool.columns:
            raise UsageError(f"The cells have no column {column!r}{nearest(column, pool.columns)}.")
        hit = (pool[column].astype("string") == value).fillna(False).to_numpy(bool)
        if not hit.any():
            known = pool[column].dropna().astype(str).unique()
            raise UsageError(f"No cell to draw from has {column} {value!r}{nearest(value, known)}.")
        if (column, value) in wanted:
            reserved |= hit
    return reserved


def _draw_counts(
    spec: CohortSpec, patients: list[DiagnosisSpec], labels: list[str], available: Ints, rng: np.random.Generator
) -> Ints:
    """Cells by patient and label, drawn until the cohort as a whole fits into the pool; int64 [n_patients, n_labels]."""
    weights = np.array([[d.mixture.get(label, 0.0) for label in labels] for d in patients])
    weights /= weights.sum(1, keepdims=True)
    n_drawn = np.array([spec.cells_per_patient - d.n_fixed for d in patients])
    mean = n_drawn @ weights
    worst = int(np.argmax(mean - available))
    if mean[worst] > available[worst]:
        raise CytosaeError(_too_few(f"{spec.mixture_by}={labels[worst]}", round(float(mean[worst])), available[worst]))
    over = np.zeros(len(labels), np.int64)
    for _ in range(MAX_DRAWS):
        counts = np.zeros(weights.shape, np.int64)
        for i, w in enumerate(weights):
            some = np.flatnonzero(w)
            counts[i, some] = rng.multinomial(n_drawn[i], rng.dirichlet(spec.concentration * w[some]))
        total = counts.sum(0)
        if (total <= available).all():
            return counts
        over += total > available
    worst = int(np.argmax(over))
    text = _too_few(f"{spec.mixture_by}={labels[worst]}", round(float(mean[worst])), available[worst])
    raise CytosaeError(f"None of {MAX_DRAWS:,} drawn cohorts fits into the pool. {text}")


def _too_few(what: str, wanted: int, available: int) -> str:
    return (
        f"The pool has {available} free cells with {what}, but the cohort wants {wanted} (on average, where they are "
        "drawn by a mixture); lower n_patients, cells_per_patient or its weight."
    )


def _rows(pool: pd.DataFrame, owner: Ints, patients: list[tuple[DiagnosisSpec, str]], spec: CohortSpec) -> pd.DataFrame:
    frame = pool[owner >= 0].copy()
    whose: list[Any] = [patients[i] for i in owner[owner >= 0]]
    for name in ("patient", "diagnosis"):
        frame[f"source_{name}"] = frame[name].astype("string")
    frame["patient"] = [name for _, name in whose]
    frame["diagnosis"] = [d.title for d, _ in whose]
    frame["simulated"], frame["cohort"], frame["source_cell_id"] = True, spec.name, frame["cell_id"]
    return frame.reset_index(drop=True)


def _is_there(out: Path, inputs: dict[str, str], config: dict[str, Any]) -> bool:
    if not out.is_file():
        return False
    try:
        record = read_parquet_record(out)
    except CytosaeError:
        return False
    wanted = {"kind": "cells", "created_by": created_by(), "inputs": inputs, "config": config}
    return all(record.get(k) == v for k, v in wanted.items())
