from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cytosae._errors import CytosaeError, UsageError

_PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Folds:
    """The published folds: patient -> part, a dictionary a fold; and patient -> diagnosis where stated."""

    path: Path
    chosen: int
    parts: dict[int, dict[str, str]]
    diagnoses: dict[str, str]

    def split(self, patient: str) -> str | None:
        """The part of a patient in the chosen fold."""
        return self.parts[self.chosen].get(patient)

    def columns(self, patient: str) -> dict[str, str | None]:
        """The part of a patient in every fold, by the name of its column."""
        return {f"split_fold_{fold}": parts.get(patient) for fold, parts in self.parts.items()}

    def types(self) -> dict[str, pa.DataType]:
        """Arrow types of `columns`."""
        return {f"split_fold_{fold}": pa.string() for fold in self.parts}

    def check(self, patient: str, diagnosis: str) -> None:
        """Refuse folds that state another diagnosis for a patient than the folder does."""
        stated = self.diagnoses.get(patient)
        if stated is not None and stated != diagnosis:
            raise CytosaeError(
                f"{self.path} says that patient {patient} has {stated}, but the folder says {diagnosis}; "
                "use the folds that belong to this data set."
            )


def read_folds(path: Path, chosen: int) -> Folds:
    """Read ``data_fold_<n>/{train,val,test}.csv`` (columns ``patient_name``, ``labels``) and ``label_map.csv``.

    The number of a diagnosis is looked up in ``label_map.csv``; numbers it does not name are not checked.

    Raises
    ------
    CytosaeError
        No fold there, a file without the column ``patient_name``, or a patient in two parts of a fold.
    UsageError
        The chosen fold does not exist.
    """
    folders = {int(f.name[10:]): f for f in path.glob("data_fold_*") if f.name[10:].isdecimal() and f.is_dir()}
    if not folders:
        raise CytosaeError(
            f"{path} has no folders data_fold_0, data_fold_1 ...; give the folder of the published folds."
        )
    if chosen not in folders:
        raise UsageError(
            f"{path} has no fold {chosen}; choose one of {', '.join(map(str, sorted(folders)))} with --fold."
        )
    names = {row["label_id"]: row["label_name"] for row in _rows(path / "label_map.csv", ("label_id", "label_name"))}
    parts: dict[int, dict[str, str]] = {}
    diagnoses: dict[str, str] = {}
    for fold in sorted(folders):
        parts[fold] = {}
        for part in _PARTS:
            for row in _rows(folders[fold] / f"{part}.csv", ("patient_name",)):
                patient = row["patient_name"].strip()
                if parts[fold].setdefault(patient, part) != part:
                    raise CytosaeError(
                        f"{folders[fold]} puts patient {patient} into {parts[fold][patient]} and {part}; "
                        "mend the folds, a patient may be in one part only."
                    )
                if row.get("labels") in names:
                    diagnoses[patient] = names[row["labels"]]
    return Folds(path, chosen, parts, diagnoses)


def _rows(path: Path, wanted: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        if path.name == "label_map.csv":
            return []
        raise CytosaeError(f"{path} is missing; give the folder of the published folds as it is.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CytosaeError(f"{path} cannot be read as a table ({error}); give the published file as it is.") from None
    for name in wanted:
        if rows and rows[0].get(name) is None:
            raise CytosaeError(f"{path} has no column {name!r}; give the published file as it is.")
    return rows
