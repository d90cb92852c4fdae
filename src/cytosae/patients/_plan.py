"""Who is trained on, who chooses and who is tested: drawn by stratified cross-validation, or fixed in files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cytosae._errors import CytosaeError, UsageError
from cytosae.cells.layouts._folds import read_folds
from cytosae.patients._cohort import Ints
from cytosae.storage import hash_json

_SETS = ("train", "val", "test")


@dataclass(frozen=True)
class Fold:
    """One training: positions of the patients trained on, tested, and those on whom settings are chosen (None: nested)."""

    repeat: int
    fold: int
    train: Ints
    test: Ints
    val: Ints | None = None


@dataclass(frozen=True)
class FixedFolds:
    """Folds as files give them.

    Attributes
    ----------
    name
        File or folder, without its path.
    parts
        For each fold patient -> ``train``, ``val`` or ``test``.
    diagnoses
        Patient -> diagnosis, where the files say it.
    """

    name: str
    parts: tuple[dict[str, str], ...]
    diagnoses: dict[str, str] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """Name and identity."""
        return {"name": self.name, "sha256": hash_json([sorted(p.items()) for p in self.parts])}

    @property
    def tested(self) -> set[str]:
        """Patients that are tested in any fold."""
        return {patient for parts in self.parts for patient, part in parts.items() if part == "test"}

    def folds(self, patients: Sequence[str]) -> list[Fold]:
        """The folds as positions in `patients`; patients that the files do not name are in none.

        Raises
        ------
        CytosaeError
            None of the patients is named, or a fold trains on nobody or tests nobody of them.
        """
        known = set().union(*self.parts)
        if not known & set(patients):
            raise CytosaeError(
                f"{self.name} names none of the cohort's patients ({patients[0]} ...); give the folds of this cohort."
            )
        out = []
        for number, parts in enumerate(self.parts):
            of = {s: np.array([i for i, p in enumerate(patients) if parts.get(p) == s], np.int64) for s in _SETS}
            for part in ("train", "test"):
                if not len(of[part]):
                    raise CytosaeError(f"Fold {number} of {self.name} has no {part} patient in this cohort; mend it.")
            out.append(Fold(0, number, of["train"], of["test"], of["val"] if len(of["val"]) else None))
        return out

    def check(self, patients: Sequence[str], diagnoses: Sequence[str]) -> None:
        """Refuse files that state another diagnosis than the table."""
        for patient, diagnosis in zip(patients, diagnoses, strict=True):
            stated = self.diagnoses.get(patient)
            if stated is not None and stated != diagnosis:
                raise CytosaeError(
                    f"{self.name} says that patient {patient} has {stated}, but the cells say {diagnosis}; use the folds "
                    "that belong to this cohort."
                )


def read_fixed_folds(path: Path | str) -> FixedFolds:
    """Read fixed folds: a CSV ``patient,fold``, a CSV ``patient,set``, or a folder ``data_fold_0/{train,val,test}.csv ...``.

    ``patient,fold``: each patient is tested in its fold and trained on in the others. ``patient,set``: one split into
    ``train``, ``test`` and, where settings are to be chosen on patients of their own, ``val``. The folder is that of the
    published folds of AML_Hehr.

    Raises
    ------
    CytosaeError
        Missing, not such a table, or a patient stands in two places.
    """
    path = Path(path)
    if path.is_dir():
        found = read_folds(path, _first(path))
        return FixedFolds(path.name, tuple(found.parts[n] for n in sorted(found.parts)), found.diagnoses)
    rows = _rows(path)
    column = "fold" if "fold" in rows[0] else "set"
    given: dict[str, str] = {}
    for row in rows:
        patient, value = (row["patient"] or "").strip(), (row[column] or "").strip()
        if not patient or not value:
            raise CytosaeError(f"{path} has a row without patient or {column}; fill or remove it.")
        if given.setdefault(patient, value) != value:
            raise CytosaeError(f"{path} gives patient {patient} twice ({given[patient]} and {value}); keep one.")
    values = sorted(set(given.values()), key=lambda v: (len(v), v))
    if column == "set":
        odd = [v for v in values if v not in _SETS]
        if odd:
            raise CytosaeError(f"{path} has the set {odd[0]!r}; sets are train, val and test.")
        return FixedFolds(path.name, (given,))
    if len(values) < 2:
        raise CytosaeError(f"{path} has one fold only; a cross-validation wants two or more.")
    parts = tuple({p: "test" if v == name else "train" for p, v in given.items()} for name in values)
    return FixedFolds(path.name, parts)


def stratified_folds(y: Ints, n_folds: int, key: list[int]) -> Ints:
    """Fold of each patient: every class is shuffled and dealt out, each from the first fold on.

    Classes of equal size are so equally frequent in every training part: were the rarer class of a test part the more
    frequent one in training, predictions would be worse than chance where there is nothing to learn.
    """
    rng = np.random.Generator(np.random.Philox(key=key))
    out = np.empty(len(y), np.int64)
    for k in np.unique(y):
        out[rng.permutation(np.flatnonzero(y == k))] = np.arange((y == k).sum()) % n_folds
    return out


def drawn_folds(y: Ints, n_folds: int, n_repeats: int, seed: int) -> list[Fold]:
    """Repeated stratified cross-validation: every patient is tested once a repetition."""
    out = []
    for repeat in range(n_repeats):
        fold_of = stratified_folds(y, n_folds, [seed, 2**38 + repeat])
        out += [Fold(repeat, f, np.flatnonzero(fold_of != f), np.flatnonzero(fold_of == f)) for f in range(n_folds)]
    return out


def inner_parts(fold: Fold, y: Ints, n_inner: int, seed: int) -> list[tuple[Ints, Ints]]:
    """(fitted on, judged on) within the training part; none where a class has a single patient there."""
    if fold.val is not None:
        return [(fold.train, fold.val)]
    of_train = y[fold.train]
    n = min(n_inner, int(np.bincount(of_train)[np.unique(of_train)].min()))
    if n < 2:
        return []
    inner = stratified_folds(of_train, n, [seed, 2**39])
    return [(fold.train[inner != f], fold.train[inner == f]) for f in range(n)]


def _first(path: Path) -> int:
    numbers = [int(f.name[10:]) for f in path.glob("data_fold_*") if f.name[10:].isdecimal()]
    return min(numbers, default=0)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give a CSV or a folder of folds.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CytosaeError(f"{path} cannot be read as a table ({error}); save it as CSV in UTF-8.") from None
    if not rows or "patient" not in rows[0] or not {"fold", "set"} & set(rows[0]):
        raise CytosaeError(f"{path} must have the columns patient and fold, or patient and set, and at least one row.")
    return rows
