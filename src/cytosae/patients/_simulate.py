"""Simulated patients made of real labelled cells: mixtures drawn by patient, noise and batches put on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae._progress import say
from cytosae.cells import Cells, read_cells, select, write_cells
from cytosae.patients._noise import add_noise
from cytosae.patients._render import render_batches
from cytosae.patients._spec import CohortSpec, DiagnosisSpec, fixed_cells, read_spec
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
        The ``cells.parquet`` to write. ``simulated`` (true), ``cohort``, ``source_cell_id``, ``source_patient`` and
        ``source_diagnosis`` are added. ``cell_id`` stays that of `cells`, so that its token store serves this table too;
        with `reuse` or batches every row has a ``cell_id`` that `cells` lacks, and tokens are to be extracted anew. The
        pictures of batches are written beside `out`, into ``NAME-images``.
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
    if _is_there(out, inputs, config):
        say(f"cohort: {out} is there already")
        return read_cells(out)
    frame, root = draw_cohort(spec, cells, seed), cells.root
    if spec.batches:
        folder = out.with_name(f"{out.stem}-images")
        frame = render_batches(frame, spec.batches, cells.root, folder, inputs=inputs, config=config)
        root = str(folder.resolve())
    write_cells(out, frame, root=root, inputs=inputs, config=config)
    return read_cells(out)


def draw_cohort(spec: CohortSpec, cells: Cells, seed: int) -> pd.DataFrame:
    """The rows of a simulated cohort, by ``cell_id``; see `simulate_cohort`.

    Without ``reuse`` the cells that ``within`` asks for are dealt first, so that other diagnoses get what is left of them.
    """
    pool = select(cells, spec.where).sort_values("cell_id")
    rng = _generator(seed, 0)
    reserved = _reserved(spec, pool)
    patients = [(d, f"sim-{d.code}-{i + 1:0{_DIGITS}d}") for d in spec.diagnoses for i in range(d.n_patients)]
    sizes = _sizes(spec, len(patients), seed)
    draw = _Draw(spec, pool, rng)
    for column, value in sorted({(c, v) for d in spec.diagnoses for c, values in d.fixed.items() for v in values}):
        wanted = [d.fixed.get(column, {}).get(value, 0) for d, _ in patients]
        n = np.array([fixed_cells(w, k) if w else 0 for w, k in zip(wanted, sizes, strict=True)], np.int64)
        draw.give(_is(pool, column, value), n, f"{column}={value}")

    labels = sorted({label for d in spec.diagnoses for label in d.mixture})
    free = pool[spec.mixture_by].astype("string").where(~reserved)
    available = np.array([int((free == label).sum()) for label in labels])
    n_drawn = sizes - np.array([d.n_fixed(int(n)) for (d, _), n in zip(patients, sizes, strict=True)])
    counts = _draw_counts(spec, [d for d, _ in patients], n_drawn, labels, available, rng)
    split = _generator(seed, 2)
    for j, label in enumerate(labels):
        here = (free == label).fillna(False).to_numpy(bool)
        rest = counts[:, j].copy()
        for column, value in sorted(
            {(c, v) for d in spec.diagnoses for c, w in d.within.get(label, {}).items() for v in w}
        ):
            n = np.zeros_like(rest)
            for i, (d, _) in enumerate(patients):
                weights = d.within.get(label, {}).get(column, {})
                if value in weights and rest[i]:
                    later = [w for v, w in sorted(weights.items()) if v >= value]
                    n[i] = split.binomial(rest[i], weights[value] / sum(later))
            draw.give(here & _is(pool, column, value), n, f"{spec.mixture_by}={label} and {column}={value}")
            rest -= n
        draw.give(here, rest, f"{spec.mixture_by}={label}")
    frame = _rows(pool, *draw.drawn(), patients, spec)
    if spec.reuse or spec.batches:
        frame["cell_id"] = int(cells.frame["cell_id"].max()) + 1 + np.arange(len(frame))
    return add_noise(frame, spec, patients, seed)


#: Digits of a patient's number.
_DIGITS = 2


def _generator(seed: int, what: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 2**34 + what]))


def _is(pool: pd.DataFrame, column: str, value: str) -> npt.NDArray[np.bool_]:
    return np.asarray((pool[column].astype("string") == value).fillna(False).to_numpy(bool))


def _sizes(spec: CohortSpec, n: int, seed: int) -> Ints:
    """Cells of each patient."""
    if isinstance(spec.cells_per_patient, int):
        return np.full(n, spec.cells_per_patient)
    low, high = np.log(spec.cells_per_patient)
    return np.rint(np.exp(_generator(seed, 1).uniform(low, high, n))).astype(np.int64)


class _Draw:
    """Hands out cells of the pool to patients: each to one patient or, with `reuse`, once to any."""

    def __init__(self, spec: CohortSpec, pool: pd.DataFrame, rng: np.random.Generator) -> None:
        self.reuse, self.rng = spec.reuse, rng
        self.taken = np.zeros(len(pool), bool)
        self.rows: list[Ints] = []
        self.owners: list[Ints] = []
        self.own: dict[int, npt.NDArray[np.bool_]] = {}

    def give(self, among: npt.NDArray[np.bool_], n: Ints, what: str) -> None:
        """Draw n[i] cells of `among` for each patient i."""
        if not self.reuse:
            here = np.flatnonzero(among & ~self.taken)
            if len(here) < n.sum():
                raise CytosaeError(_too_few(what, int(n.sum()), len(here)))
            here = self.rng.permutation(here)[: n.sum()]
            self.taken[here] = True
            self.rows.append(here)
            self.owners.append(np.repeat(np.arange(len(n)), n))
            return
        for i in np.flatnonzero(n):
            mine = self.own.setdefault(int(i), np.zeros(len(among), bool))
            here = np.flatnonzero(among & ~mine)
            if len(here) < n[i]:
                raise CytosaeError(_too_few(what, int(n[i]), len(here)))
            here = self.rng.choice(here, n[i], replace=False)
            mine[here] = True
            self.rows.append(here)
            self.owners.append(np.full(n[i], i))

    def drawn(self) -> tuple[Ints, Ints]:
        """Rows of the pool and the patient of each, by row, then patient."""
        rows, owners = np.concatenate(self.rows), np.concatenate(self.owners)
        order = np.lexsort((owners, rows))
        return rows[order], owners[order]


def _reserved(spec: CohortSpec, pool: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Cells that fulfil any fixed selection; also checks that every column and value is there."""
    reserved = np.zeros(len(pool), bool)
    wanted = [(c, v) for d in spec.diagnoses for c, values in d.fixed.items() for v in values]
    some = [(c, v) for d in spec.diagnoses for columns in d.within.values() for c, w in columns.items() for v in w]
    for column, value in [*wanted, *some, *((spec.mixture_by, label) for d in spec.diagnoses for label in d.mixture)]:
        if column not in pool.columns:
            raise UsageError(f"The cells have no column {column!r}{nearest(column, pool.columns)}.")
        hit = _is(pool, column, value)
        if not hit.any():
            known = pool[column].dropna().astype(str).unique()
            raise UsageError(f"No cell to draw from has {column} {value!r}{nearest(value, known)}.")
        if (column, value) in wanted:
            reserved |= hit
    return reserved


def _draw_counts(
    spec: CohortSpec, patients: list[DiagnosisSpec], n_drawn: Ints, labels: list[str], available: Ints,
    rng: np.random.Generator,
) -> Ints:  # fmt: skip
    """Cells by patient and label, drawn until the cohort as a whole fits into the pool; int64 [n_patients, n_labels].

    With `reuse` every patient alone has to fit.
    """
    weights = np.array([[d.mixture.get(label, 0.0) for label in labels] for d in patients], np.float64)
    weights /= weights.sum(1, keepdims=True)
    expected = n_drawn[:, None] * weights
    mean = expected.max(0) if spec.reuse else expected.sum(0)
    worst = int(np.argmax(mean - available))
    if mean[worst] > available[worst]:
        raise CytosaeError(_too_few(f"{spec.mixture_by}={labels[worst]}", round(float(mean[worst])), available[worst]))
    over = np.zeros(len(labels), np.int64)
    for _ in range(MAX_DRAWS):
        counts = np.zeros(weights.shape, np.int64)
        for i, w in enumerate(weights):
            some = np.flatnonzero(w)
            counts[i, some] = rng.multinomial(n_drawn[i], rng.dirichlet(spec.concentration * w[some]))
        total = counts.max(0) if spec.reuse else counts.sum(0)
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


def _rows(
    pool: pd.DataFrame, rows: Ints, owner: Ints, patients: list[tuple[DiagnosisSpec, str]], spec: CohortSpec
) -> pd.DataFrame:
    frame = pool.iloc[rows].copy()
    whose: list[Any] = [patients[i] for i in owner]
    for name in ("patient", "diagnosis"):
        frame[f"source_{name}"] = frame[name].astype("string")
    frame["patient"] = [name for _, name in whose]
    frame["diagnosis"] = [d.title for d, _ in whose]
    frame["simulated"], frame["cohort"], frame["source_cell_id"] = True, spec.name, frame["cell_id"]
    if spec.reuse:
        frame["reused"] = frame["source_cell_id"].duplicated(keep=False)
    return frame.reset_index(drop=True)


def _is_there(out: Path, inputs: dict[str, str], config: dict[str, Any]) -> bool:
    if not out.is_file():
        return False
    try:
        record = read_parquet_record(out)
    except CytosaeError:
        return False
    found = {k: v for k, v in record.get("config", {}).items() if k != "root"}
    wanted = {"kind": "cells", "created_by": created_by(), "inputs": inputs}
    return found == config and all(record.get(k) == v for k, v in wanted.items())
