"""What a patient is described by, model by model; whatever is calibrated looks at the training patients alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae.cells import Cells
from cytosae.patients._cohort import Cohort, Floats, Ints
from cytosae.patients._pooled import BLOCK, DenseValues, Pooled, ordered_keys, pool_tokens, taken
from cytosae.patients._profiles import CellValues, ProfileRule, frequent
from cytosae.tokens import TokenStore

Features = tuple[Floats, npt.NDArray[np.bool_], Floats]
#: Principal components counted, and cells of the training patients they are made of at most.
N_COMPONENTS, _FIT_CELLS = 128, 20_000


@dataclass(frozen=True)
class Extras:
    """What models want beside the cohort.

    Attributes
    ----------
    pooled
        The pooled tokens of its cells, or what gives them: called once, after the models of concepts are fitted, so that both
        need not be in memory. None: there are none.
    files
        What is known of their files; None: nothing.
    """

    pooled: Pooled | Callable[[], Pooled] | None = None
    files: pd.DataFrame | None = None


def read_extras(cohort: Cohort, cells: Cells, store: TokenStore | None, folder: Path | None = None) -> Extras:
    """Extras of a cohort from `read_cohort`, cell by cell in its order; pooled tokens lie in `folder` (None: in memory)."""
    known = [name for name in ("file_header", "file_bytes") if name in cells.frame]
    files = cells.frame[["cell_id", *known]].set_index("cell_id").loc[cohort.cell_ids]
    return Extras(None if store is None else lambda: pool_tokens(store, np.asarray(cohort.cell_ids), folder), files)


class Design(Protocol):
    """Features that may be calibrated on the training patients."""

    def features(self, train: Ints) -> Features:
        """(X of all patients, features to keep, thresholds), looking at the patients `train` alone."""


class Fixed:
    """Features that need no calibration."""

    def __init__(self, X: Floats) -> None:
        self.X = X

    def features(self, train: Ints) -> Features:
        """As they are."""
        return self.X, np.ones(self.X.shape[1], bool), np.zeros(0)


class Remembered:
    """A design that keeps the features of the last few sets of patients: models and inner parts ask for the same ones."""

    def __init__(self, design: Design, n: int = 12) -> None:
        self._design, self._n, self._lock = design, n, Lock()
        self._known: OrderedDict[bytes, Features] = OrderedDict()

    def features(self, train: Ints) -> Features:
        """As the design's own."""
        key = train.tobytes()
        with self._lock:
            found = self._known.pop(key, None)
        found = found or self._design.features(train)
        with self._lock:
            self._known[key] = found
            while len(self._known) > self._n:
                self._known.popitem(last=False)
        return found


class Profiles:
    """Concept profiles with thresholds and filter of the training patients."""

    def __init__(self, cohort: Cohort, rule: ProfileRule) -> None:
        self.values, self.rule = CellValues(cohort.maximum, cohort.owner, len(cohort.patients)), rule
        self.allowed = np.True_ if cohort.excluded is None else ~cohort.excluded

    def features(self, train: Ints) -> Features:
        """Shares of cells above each concept's threshold."""
        thresholds = self.values.thresholds(self.rule.quantile, train)
        X = self.values.shares(thresholds)
        return X, frequent(X[train], self.rule.min_frequency) & self.allowed, thresholds


class RawNeurons:
    """Dimensions of the backbone counted as concepts are, on both sides."""

    def __init__(self, pooled: Pooled, cohort: Cohort, rule: ProfileRule) -> None:
        order = settled(cohort.owner, pooled.mean)
        upper, lower = (
            ordered_keys(taken(values, order), values.shape[::-1]) for values in (pooled.highest, pooled.lowest)
        )
        outermost = min(1.0, 2 * (1 - _quantile(rule)))  # thresholds of training patients are seldom farther in
        self._values = DenseValues(upper, lower, cohort.owner[order], len(cohort.patients), outermost)
        self._rule = rule

    def features(self, train: Ints) -> Features:
        """Shares of cells beyond each dimension's thresholds."""
        X = self._values.shares(_quantile(self._rule), train)
        return X, frequent(X[train], self._rule.min_frequency), np.zeros(0)


class Components:
    """Principal components of the training patients' mean tokens, counted as concepts are, on both sides."""

    def __init__(self, means: npt.NDArray[Any], cohort: Cohort, rule: ProfileRule) -> None:
        self._order = settled(cohort.owner, means)
        self._means, self._owner = means, cohort.owner[self._order]
        self._n_patients, self._rule = len(cohort.patients), rule

    def features(self, train: Ints) -> Features:
        """Shares of cells beyond each component's thresholds."""
        most = max(1, _FIT_CELLS // len(train))
        ends = np.searchsorted(self._owner, np.arange(self._n_patients + 1))
        picked = [np.arange(ends[patient], ends[patient + 1]) for patient in train]
        rows = np.concatenate([p[np.linspace(0, len(p) - 1, min(most, len(p))).astype(np.int64)] for p in picked])
        sample = self._tokens(rows).astype(np.float64)
        centre = sample.mean(0)
        directions = np.linalg.eigh((sample - centre).T @ (sample - centre))[1][:, ::-1][:, :N_COMPONENTS]
        directions *= np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
        keys = ordered_keys(self._scores(centre, directions), (directions.shape[1], len(self._means)))
        X = DenseValues(keys, keys, self._owner, self._n_patients).shares(_quantile(self._rule), train)
        return X, frequent(X[train], self._rule.min_frequency), np.zeros(0)

    def _scores(self, centre: Floats, directions: Floats) -> Iterator[npt.NDArray[np.float32]]:
        middle, onto = centre.astype(np.float32), directions.astype(np.float32)
        for start in range(0, len(self._means), BLOCK):
            yield np.clip((self._tokens(slice(start, start + BLOCK)) - middle) @ onto, -65504, 65504)

    def _tokens(self, rows: Any) -> npt.NDArray[np.float32]:
        """Mean tokens of some cells in settled order."""
        return np.asarray(self._means[self._order[rows]], np.float32)


def settled(owner: Ints, values: npt.NDArray[Any]) -> Ints:
    """An order of cells that depends on what they are, not on how they came: sums in it are the same to the last bit."""
    return np.lexsort((values[:, min(1, values.shape[1] - 1)], values[:, 0], owner)).astype(np.int64)


def concept_design(cohort: Cohort, rule: ProfileRule) -> Design:
    """Concept profiles, as several models and inner parts ask for them."""
    return Remembered(Profiles(cohort, rule))


def make_designs(
    cohort: Cohort, rule: ProfileRule, pooled: Pooled | None, files: pd.DataFrame | None = None
) -> tuple[dict[str, Callable[[], Design]], dict[str, str]]:
    """What makes the design of each model but those of concepts, by name, and why a model is left out.

    Each is made when it is called for: together they would want several times the memory of the cohort.
    """
    designs: dict[str, Callable[[], Design]] = {}
    absent: dict[str, str] = {}
    no_store = "no token store was given"
    if pooled is None or pooled.class_token is None:
        absent["class_token"] = no_store if pooled is None else "the token store holds no class token"
    else:
        designs["class_token"] = lambda: Fixed(cohort.by_patient(pooled.class_token))
    if pooled is None and cohort.tokens is None:
        absent |= {"mean_tokens": no_store, "pca": no_store}
    else:

        def means() -> Any:
            return cohort.tokens if pooled is None else pooled.mean

        designs["mean_tokens"] = lambda: Fixed(cohort.by_patient(means()))
        designs["pca"] = lambda: Components(means(), cohort, rule)
    if pooled is None:
        absent["raw_neurons"] = no_store
    else:
        designs["raw_neurons"] = lambda: RawNeurons(pooled, cohort, rule)
    types = sorted({label for label in cohort.labels if label is not None})
    if not types:
        absent["composition"] = "the cells have no labels"
    else:
        designs["composition"] = lambda: Fixed(
            cohort.by_patient(np.stack([cohort.labels == name for name in types], axis=1))
        )
    designs["n_cells"] = lambda: Fixed(np.log(np.maximum(cohort.n_cells, 1))[:, None])
    header = None if files is None else _header(files)
    if header is None:
        absent["file_header"] = "the table does not say file_header or file_bytes"
    else:
        designs["file_header"] = lambda: Fixed(cohort.by_patient(header))
    return designs, absent


def _header(files: pd.DataFrame) -> Floats | None:
    """A column a header (1 where the cell's file has it) and the log of the file's bytes; None where neither is known."""
    columns = []
    if "file_header" in files and files["file_header"].notna().all():
        text = files["file_header"].astype(str)
        columns += [(text == value).to_numpy(np.float64) for value in sorted(text.unique())]
    if "file_bytes" in files and files["file_bytes"].notna().all():
        columns.append(np.log(files["file_bytes"].to_numpy(np.float64).clip(1)))
    return np.stack(columns, 1) if columns else None


def _quantile(rule: ProfileRule) -> float:
    """A dimension has no zero that means absent: where concepts count any activity, it counts above its median."""
    return rule.quantile or 0.5
