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
    fixed: dict[str, dict[str, float]] = field(default_factory=dict)
    """Column -> value -> cells that every patient of it carries, beside the mixture; below 1: a share of its cells, one at least."""
    within: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Label of the mixture -> column -> value -> weight: which of the label's cells are drawn; the mixture stays the same."""

    def n_fixed(self, n_cells: int) -> int:
        """Fixed cells of a patient with `n_cells`."""
        return sum(fixed_cells(n, n_cells) for values in self.fixed.values() for n in values.values())

    @property
    def title(self) -> str:
        """The diagnosis as every table and figure names it."""
        return f"simulated {self.code} ({self.name})"


def fixed_cells(wanted: float, n_cells: int) -> int:
    """Cells that a number, or a share below 1, of `n_cells` means; of a share one at least."""
    return max(1, round(wanted * n_cells)) if wanted < 1 else int(wanted)


@dataclass(frozen=True)
class BatchSpec:
    """How one laboratory's pictures look. Without any effect they stay as they are."""

    name: str
    """Kept in the column ``batch``."""
    share: dict[str, float]
    """Code of a diagnosis -> weight of this batch among its patients; equal weights: not confounded."""
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factors of red, green and blue (a stain's or a lamp's cast)."""
    blur: float = 0.0
    """Standard deviation of a Gaussian blur, in pixels."""
    jpeg: int | None = None
    """Quality at which the picture is stored as JPEG."""
    scale: float = 1.0
    """How much larger everything in the picture is; its size in pixels stays."""


@dataclass(frozen=True)
class CohortSpec:
    """A simulated cohort: patients made of real labelled cells, each cell used at most once unless `reuse`."""

    name: str
    """Name of the cohort; kept in the column ``cohort``."""
    cells_per_patient: int | tuple[int, int]
    """Cells of every patient, fixed ones included; or the least and the most, drawn evenly on a logarithmic scale."""
    diagnoses: tuple[DiagnosisSpec, ...]
    """The diagnoses."""
    where: tuple[str, ...] = ()
    """``column=value`` conditions that choose the cells to draw from (``from`` in the file)."""
    mixture_by: str = "label"
    """Column whose values the mixtures weigh."""
    concentration: float = 40.0
    """Sum of the Dirichlet parameters: a patient's mixture ~ Dirichlet(concentration * weights). Small: patients differ."""

    reuse: bool = False
    """Whether patients may share cells (a patient has each once); the column ``reused`` then tells which."""
    label_noise: float = 0.0
    """Share of the cells whose label is replaced by another one of the cohort; ``true_label`` keeps it."""
    diagnosis_noise: float = 0.0
    """Share of the patients whose diagnosis is replaced by another one; ``true_diagnosis`` keeps it."""
    batches: tuple[BatchSpec, ...] = ()
    """Laboratories; with any, every picture is written anew beside the cohort."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the file; what was added to the format later stands only where it is used."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        out = {"from" if k == "where" else k: v for k, v in plain.items() if v or k not in _LATER}
        for diagnosis in out["diagnoses"]:
            if not diagnosis["within"]:
                del diagnosis["within"]
        return out


_LATER = ("reuse", "label_noise", "diagnosis_noise", "batches")
_COHORT = {"name", "cells_per_patient", "from", "mixture_by", "concentration", "diagnoses", *_LATER}
_DIAGNOSIS = {"code", "name", "n_patients", "mixture", "fixed", "within"}
_BATCH = {"name", "share", "cast", "blur", "jpeg", "scale"}


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
    if not path.is_file():  # a folder may be called like a packaged one: runs of the demo are
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
    n_cells = _n_cells(data["cells_per_patient"], name)
    least = n_cells if isinstance(n_cells, int) else n_cells[0]
    for d in diagnoses:
        if d.n_fixed(least) > least:
            raise UsageError(
                f"Diagnosis {d.code} of {name} fixes {d.n_fixed(least)} cells a patient, but cells_per_patient is {least}."
            )
    reuse = data.get("reuse", False)
    if not isinstance(reuse, bool):
        raise UsageError(f"'reuse' of {name} is {reuse!r}; it must be true or false.")
    listed = data.get("batches") or []
    if not isinstance(listed, list):
        raise UsageError(f"'batches' of {name} must be a list with one entry a batch.")
    batches = tuple(_batch(entry, codes, f"batch {i + 1} of {name}") for i, entry in enumerate(listed))
    if len({b.name for b in batches}) < len(batches):
        raise UsageError(f"{name} has two batches with one name; give each its own.")
    for code in codes if batches else []:
        if not any(b.share[code] for b in batches):
            raise UsageError(f"No batch of {name} takes patients of diagnosis {code}; give one a share of it.")
    return CohortSpec(
        name=_text(data["name"], "name", name), cells_per_patient=n_cells, diagnoses=diagnoses, where=tuple(where),
        mixture_by=_text(data.get("mixture_by", "label"), "mixture_by", name),
        concentration=_positive(data.get("concentration", CohortSpec.concentration), "concentration", name),
        reuse=reuse, batches=batches,
        label_noise=_between(data.get("label_noise", 0.0), "label_noise", name, 0, 1),
        diagnosis_noise=_between(data.get("diagnosis_noise", 0.0), "diagnosis_noise", name, 0, 1),
    )  # fmt: skip


def _diagnosis(data: Any, name: str) -> DiagnosisSpec:
    _keys(data, _DIAGNOSIS, {"code", "name", "n_patients", "mixture"}, name)
    if not isinstance(data["mixture"], Mapping) or not data["mixture"]:
        raise UsageError(f"'mixture' of {name} must give label: weight, at least one.")
    mixture = {str(label): _positive(w, f"mixture of {label}", name) for label, w in data["mixture"].items()}
    fixed: dict[str, dict[str, float]] = {}
    wanted = data.get("fixed") or {}
    if not isinstance(wanted, Mapping) or not all(isinstance(v, Mapping) for v in wanted.values()):
        raise UsageError(f"'fixed' of {name} must give column: {{value: cells}}.")
    for column, values in wanted.items():
        fixed[str(column)] = {_value(v): _cells(n, f"fixed {column} {v}", name) for v, n in values.items()}
    within: dict[str, dict[str, dict[str, float]]] = {}
    wanted = data.get("within") or {}
    nested = [v for columns in wanted.values() if isinstance(columns, Mapping) for v in columns.values()] if isinstance(
        wanted, Mapping) else [None]  # fmt: skip
    if len(nested) != len(wanted) or not all(isinstance(v, Mapping) and v for v in nested):
        raise UsageError(f"'within' of {name} must give label: {{column: {{value: weight}}}}, one column a label.")
    for label, columns in wanted.items():
        if str(label) not in mixture:
            raise UsageError(
                f"'within' of {name} names {str(label)!r}, which its mixture lacks{nearest(str(label), mixture)}."
            )
        within[str(label)] = {
            str(column): {_value(v): _positive(w, f"within {label} {column} {v}", name) for v, w in values.items()}
            for column, values in columns.items()
        }
    code = _text(data["code"], "code", name)
    n_patients = _whole(data["n_patients"], "n_patients", name, 1)
    return DiagnosisSpec(code, _text(data["name"], "name", name), n_patients, mixture, fixed, within)


def _value(key: Any) -> str:
    """A value of a column as the table has it: YAML takes a bare yes or no for true or false."""
    return ("yes" if key else "no") if isinstance(key, bool) else str(key)


def _batch(data: Any, codes: list[str], name: str) -> BatchSpec:
    _keys(data, _BATCH, {"name"}, name)
    share = data.get("share", 1)
    if isinstance(share, Mapping):
        for code in share:
            if str(code) not in codes:
                raise UsageError(f"'share' of {name} names the diagnosis {str(code)!r}{nearest(str(code), codes)}.")
        shares = {code: _between(share.get(code, 0), f"share {code}", name, 0, 1e9) for code in codes}
    else:
        shares = dict.fromkeys(codes, _positive(share, "share", name))
    cast = data.get("cast", [1, 1, 1])
    if not isinstance(cast, list) or len(cast) != 3:
        raise UsageError(f"'cast' of {name} must be three factors: red, green, blue.")
    red, green, blue = (_between(v, "cast", name, 0.1, 10) for v in cast)
    jpeg = data.get("jpeg")
    if jpeg is not None and not 1 <= _whole(jpeg, "jpeg", name, 1) <= 100:
        raise UsageError(f"'jpeg' of {name} is {jpeg}; a quality lies between 1 and 100.")
    return BatchSpec(
        _text(data["name"], "name", name), shares, (red, green, blue), _between(data.get("blur", 0), "blur", name, 0, 50),
        jpeg, _between(data.get("scale", 1), "scale", name, 0.25, 4),
    )  # fmt: skip


def _n_cells(value: Any, name: str) -> int | tuple[int, int]:
    if not isinstance(value, list):
        return _whole(value, "cells_per_patient", name, 1)
    if len(value) != 2:
        raise UsageError(f"'cells_per_patient' of {name} must be one number or [least, most].")
    least, most = (_whole(v, "cells_per_patient", name, 1) for v in value)
    if most < least:
        raise UsageError(f"'cells_per_patient' of {name} is [{least}, {most}]; the least comes first.")
    return least, most


def _cells(value: Any, key: str, name: str) -> float:
    if isinstance(value, float) and 0 < value < 1:
        return value
    return _whole(value, key, name, 1)


def _between(value: Any, key: str, name: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UsageError(f"{key!r} of {name} is {value!r}; it must be a number from {low:g} to {high:g}.")
    return float(value)


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
