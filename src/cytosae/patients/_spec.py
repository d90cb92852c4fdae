"""The specification of a simulated cohort: read safely, checked once, written verbatim into what is made of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from cytosae._errors import CytosaeError, UsageError, nearest


@dataclass(frozen=True)
class DiagnosisSpec:
    """One made-up diagnosis."""

    code: str
    """Short name, part of the patients' names (``sim-A-01``)."""
    name: str
    """What it is called; shown as ``simulated A (name)``."""
    n_patients: int
    """Patients of it."""
    mixture: dict[str, float]
    """Value of the column `mixture_by` -> weight; weights are divided by their sum."""
    fixed: dict[str, dict[str, int]] = field(default_factory=dict)
    """Column -> value -> cells that every patient of it carries, beside the mixture."""

    @property
    def n_fixed(self) -> int:
        """Fixed cells a patient."""
        return sum(n for values in self.fixed.values() for n in values.values())

    @property
    def title(self) -> str:
        """The diagnosis as every table and figure names it."""
        return f"simulated {self.code} ({self.name})"


@dataclass(frozen=True)
class CohortSpec:
    """A simulated cohort: patients made of real labelled cells, each cell used at most once."""

    name: str
    """Name of the cohort; kept in the column ``cohort``."""
    cells_per_patient: int
    """Cells of every patient, fixed ones included."""
    diagnoses: tuple[DiagnosisSpec, ...]
    """The diagnoses."""
    where: tuple[str, ...] = ()
    """``column=value`` conditions that choose the cells to draw from (``from`` in the file)."""
    mixture_by: str = "label"
    """Column whose values the mixtures weigh."""
    concentration: float = 40.0
    """Sum of the Dirichlet parameters: a patient's mixture ~ Dirichlet(concentration * weights). Small: patients differ."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the file."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"from" if k == "where" else k: v for k, v in plain.items()}


_COHORT = {"name", "cells_per_patient", "from", "mixture_by", "concentration", "diagnoses"}
_DIAGNOSIS = {"code", "name", "n_patients", "mixture", "fixed"}


def packaged_specs() -> dict[str, Path]:
    """Specifications inside the package, by name."""
    folder = Path(str(files("cytosae.patients") / "specs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_spec(source: Path | str) -> CohortSpec:
    """Read a YAML or JSON file, or the name of a packaged specification (``demo``).

    Raises
    ------
    CytosaeError
        Missing, or not YAML.
    UsageError
        A key that is not known, missing, or of an impossible value.
    """
    import yaml

    path = Path(source)
    if not path.exists():
        known = packaged_specs()
        if path.name != str(source) or path.suffix or path.name not in known:
            raise UsageError(f"There is no specification {str(source)!r}{nearest(str(source), known)}; give a file.")
        path = known[path.name]
    try:
        data = yaml.safe_load(path.read_text("utf-8"))  # JSON is YAML
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CytosaeError(f"{path} cannot be read as YAML or JSON ({first}); mend the file.") from error
    return parse_spec(data, str(path))


def parse_spec(data: Any, name: str = "the specification") -> CohortSpec:
    """A specification from plain values; `name` is how errors call it. See `read_spec` for what is raised."""
    _keys(data, _COHORT, {"name", "cells_per_patient", "diagnoses"}, name)
    listed = data["diagnoses"]
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"'diagnoses' of {name} must be a list with one entry a diagnosis.")
    diagnoses = tuple(_diagnosis(entry, f"diagnosis {i + 1} of {name}") for i, entry in enumerate(listed))
    codes = [d.code for d in diagnoses]
    if len(set(codes)) < len(codes):
        raise UsageError(f"{name} has two diagnoses with one code ({', '.join(codes)}); give each its own.")
    where = data.get("from", [])
    if not isinstance(where, list) or not all(isinstance(w, str) for w in where):
        raise UsageError(f"'from' of {name} must be a list of column=value.")
    n_cells = _whole(data["cells_per_patient"], "cells_per_patient", name, 1)
    for d in diagnoses:
        if d.n_fixed > n_cells:
            raise UsageError(
                f"Diagnosis {d.code} of {name} fixes {d.n_fixed} cells a patient, but cells_per_patient is {n_cells}."
            )
    return CohortSpec(
        name=_text(data["name"], "name", name), cells_per_patient=n_cells, diagnoses=diagnoses, where=tuple(where),
        mixture_by=_text(data.get("mixture_by", "label"), "mixture_by", name),
        concentration=_positive(data.get("concentration", CohortSpec.concentration), "concentration", name),
    )  # fmt: skip


def _diagnosis(data: Any, name: str) -> DiagnosisSpec:
    _keys(data, _DIAGNOSIS, {"code", "name", "n_patients", "mixture"}, name)
    if not isinstance(data["mixture"], Mapping) or not data["mixture"]:
        raise UsageError(f"'mixture' of {name} must give label: weight, at least one.")
    mixture = {str(label): _positive(w, f"mixture of {label}", name) for label, w in data["mixture"].items()}
    fixed: dict[str, dict[str, int]] = {}
    wanted = data.get("fixed") or {}
    if not isinstance(wanted, Mapping) or not all(isinstance(v, Mapping) for v in wanted.values()):
        raise UsageError(f"'fixed' of {name} must give column: {{value: cells}}.")
    for column, values in wanted.items():
        fixed[str(column)] = {str(v): _whole(n, f"fixed {column} {v}", name, 1) for v, n in values.items()}
    code = _text(data["code"], "code", name)
    return DiagnosisSpec(
        code, _text(data["name"], "name", name), _whole(data["n_patients"], "n_patients", name, 1), mixture, fixed
    )


def _keys(data: Any, known: set[str], needed: Iterable[str], name: str) -> None:
    if not isinstance(data, Mapping):
        raise UsageError(f"{name} must be a mapping with the keys {', '.join(sorted(known))}.")
    for key in data:
        if key not in known:
            raise UsageError(f"{name} has the unknown key {str(key)!r}{nearest(str(key), known)}.")
    for key in sorted(needed):
        if key not in data:
            raise UsageError(f"{name} lacks the key {key!r}.")


def _whole(value: Any, key: str, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{key!r} of {name} is {value!r}; it must be a whole number, {least} or more.")
    return value


def _positive(value: Any, key: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise UsageError(f"{key!r} of {name} is {value!r}; it must be a number above 0.")
    return float(value)


def _text(value: Any, key: str, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{key!r} of {name} is {value!r}; it must be a word or a phrase in quotes.")
    return value.strip()
