"""Telling diagnoses apart: repeated stratified cross-validation by patient, every choice made inside the training part."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytosae._errors import CytosaeError, UsageError
from cytosae._progress import Meter
from cytosae.patients._cohort import Cohort, Floats, Ints
from cytosae.patients._linear import SCALINGS, LinearModel, fit_l2
from cytosae.patients._profiles import CellValues, ProfileRule, frequent
from cytosae.patients._scores import METRICS, interval, patient_draws, score, verdict

CONCEPTS, BASELINES = "concept_profile", ("mean_tokens", "composition", "majority")


@dataclass(frozen=True)
class ClassifyConfig:
    """The protocol."""

    n_folds: int = 5
    """Folds; each diagnosis needs as many patients."""
    n_repeats: int = 5
    """Repetitions with other folds; a patient's out-of-fold probabilities are averaged over them."""
    n_inner: int = 3
    """Folds within the training part, in which scaling and C are chosen by log loss."""
    Cs: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
    """Inverse penalties to choose from; the smallest of equals."""
    n_bootstrap: int = 2_000
    """Draws of patients for the intervals."""
    seed: int = 0
    """Of folds and draws."""
    rule: ProfileRule = field(default_factory=ProfileRule)
    """How profiles are counted and concepts filtered."""

    def __post_init__(self) -> None:
        if self.n_folds < 2 or self.n_repeats < 1 or self.n_inner < 2 or not self.Cs or self.n_bootstrap < 100:
            raise UsageError("n_folds and n_inner must be 2 or more, n_repeats 1, n_bootstrap 100, and Cs not empty.")


@dataclass(frozen=True)
class FoldFit:
    """What one fold of one repetition fitted: the test patients (names) and the models by name."""

    repeat: int
    fold: int
    test: tuple[str, ...]
    models: dict[str, LinearModel]


@dataclass(frozen=True)
class Classification:
    """The record as it stands in `classification.json`, the fitted folds, and the model of all patients."""

    record: dict[str, Any]
    folds: list[FoldFit]
    final: LinearModel


class _Design(Protocol):
    """Features that may be calibrated on the training patients."""

    def features(self, train: Ints) -> tuple[Floats, npt.NDArray[np.bool_], Floats]:
        """(X of all patients, features to keep, thresholds), looking at the patients `train` alone."""


class _Profiles:
    def __init__(self, cohort: Cohort, rule: ProfileRule) -> None:
        self.values, self.rule = CellValues(cohort.maximum, cohort.owner, len(cohort.patients)), rule

    def features(self, train: Ints) -> tuple[Floats, npt.NDArray[np.bool_], Floats]:
        thresholds = self.values.thresholds(self.rule.quantile, train)
        X = self.values.shares(thresholds)
        return X, frequent(X[train], self.rule.min_frequency), thresholds


class _Fixed:
    def __init__(self, X: Floats) -> None:
        self.X = X

    def features(self, train: Ints) -> tuple[Floats, npt.NDArray[np.bool_], Floats]:
        return self.X, np.ones(self.X.shape[1], bool), np.zeros(0)


def classify(cohort: Cohort, config: ClassifyConfig | None = None) -> Classification:
    """Measure how well concept profiles tell the target apart, beside its baselines on the same folds.

    Parameters
    ----------
    cohort
        From `read_cohort`. Patients without target or usable cells take no part and are listed.
    config
        The protocol.

    Returns
    -------
    The record (see `classification.json` in the artifact), every fitted fold, and the final model of all patients.

    Raises
    ------
    CytosaeError
        Fewer than two classes, or a class with fewer patients than folds.
    """
    with threadpool_limits(1):  # thousands of small products: threads only wait for one another
        return _classify(cohort, config or ClassifyConfig())


def _classify(cohort: Cohort, config: ClassifyConfig) -> Classification:
    rows = cohort.judged
    target = cohort.classes[rows].astype(str)
    classes = sorted({str(name) for name in target})
    y_rows = np.searchsorted(classes, target)
    _check(classes, np.bincount(y_rows, minlength=len(classes)), config, cohort.target)
    y = np.full(len(cohort.patients), -1, np.int64)
    y[rows] = y_rows
    designs, absent = _designs(cohort, config)
    names = [*designs, "majority"]
    total = {name: np.zeros((len(rows), len(classes))) for name in names}
    folds: list[FoldFit] = []
    with Meter(config.n_repeats * config.n_folds, "classification", "folds") as meter:
        for repeat in range(config.n_repeats):
            fold_of = np.full(len(cohort.patients), -1, np.int64)
            fold_of[rows] = stratified_folds(y_rows, config.n_folds, [config.seed, 2**38 + repeat])
            for fold in range(config.n_folds):
                train, test = rows[fold_of[rows] != fold], rows[fold_of[rows] == fold]
                here = np.searchsorted(rows, test)
                models = {}
                for name, design in designs.items():
                    models[name] = _fit(design, train, y, classes, config)
                    total[name][here] += models[name].probabilities(design.features(train)[0][test])
                total["majority"][here, np.bincount(y[train], minlength=len(classes)).argmax()] += 1
                folds.append(FoldFit(repeat, fold, tuple(cohort.patients["patient"].iloc[test]), models))
                meter.add(1)
    P = {name: value / config.n_repeats for name, value in total.items()}
    record = _record(cohort, config, classes, y_rows, P, folds) | {"absent": absent}
    return Classification(record, folds, _fit(designs[CONCEPTS], rows, y, classes, config))


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


def _fit(design: _Design, train: Ints, y: Ints, classes: list[str], config: ClassifyConfig) -> LinearModel:
    """Choose scaling and C within the training patients (thresholds, filter and scaling made anew in each inner part), then fit."""
    X, keep, thresholds = design.features(train)
    n_inner = min(config.n_inner, int(np.bincount(y[train], minlength=len(classes)).min()))
    settings = [(scaling, C) for scaling in SCALINGS for C in config.Cs]
    loss = np.zeros(len(settings))
    fold_of = stratified_folds(y[train], max(n_inner, 1), [config.seed, 2**39])
    for fold in range(n_inner if n_inner >= 2 else 0):
        part, rest = train[fold_of != fold], train[fold_of == fold]
        X_part, keep_part, thresholds_part = design.features(part)
        at = (X_part[part], y[part], classes, config.Cs, keep_part, thresholds_part)
        for i, model in enumerate(m for scaling in SCALINGS for m in fit_l2(*at, scaling)):
            p = model.probabilities(X_part[rest])[np.arange(len(rest)), y[rest]]
            loss[i] -= np.log(np.maximum(p, 1e-300)).sum()
    scaling, C = settings[int(np.flatnonzero(loss <= loss.min() + 1e-12)[0])]
    return fit_l2(X[train], y[train], classes, [C], keep, thresholds, scaling)[0]


def _designs(cohort: Cohort, config: ClassifyConfig) -> tuple[dict[str, _Design], dict[str, str]]:
    """The models that have features, in order, and why a baseline is not there."""
    designs: dict[str, _Design] = {CONCEPTS: _Profiles(cohort, config.rule)}
    absent = {}
    if cohort.tokens is None:
        absent["mean_tokens"] = "no token store was given"
    else:
        designs["mean_tokens"] = _Fixed(cohort.by_patient(cohort.tokens))
    types = sorted({label for label in cohort.labels if label is not None})
    if not types:
        absent["composition"] = "the cells have no labels"
    else:
        shares = np.array([[label == name for name in types] for label in cohort.labels], np.float64)
        designs["composition"] = _Fixed(cohort.by_patient(shares))
    return designs, absent


def _check(classes: list[str], sizes: Ints, config: ClassifyConfig, target: str) -> None:
    if len(classes) < 2:
        raise CytosaeError(f"Only one {target} has patients with usable cells; a classification wants two or more.")
    few = int(sizes.argmin())
    if sizes[few] < config.n_folds:
        remedy = f"use --folds {sizes[few]} or fewer" if sizes[few] >= 2 else "add patients or leave this one out"
        raise CytosaeError(
            f"{target} {classes[few]!r} has {sizes[few]} patient{'s' * bool(sizes[few] != 1)} with usable cells, but "
            f"{config.n_folds} folds want at least {config.n_folds}; {remedy}."
        )


def _record(
    cohort: Cohort, config: ClassifyConfig, classes: list[str], y: Ints, P: dict[str, Floats], folds: list[FoldFit]
) -> dict[str, Any]:
    weights = patient_draws(y, config.n_bootstrap, config.seed)
    scores = {name: score(p, y, weights) for name, p in P.items()}
    patients = cohort.patients["patient"].iloc[cohort.judged].tolist()
    models: dict[str, Any] = {}
    predictions: dict[str, Any] = {}
    for name, s in scores.items():
        fitted = [f.models[name] for f in folds if name in f.models]
        models[name] = {
            "metrics": {m: interval(s[m]) for m in METRICS},
            "per_class": {c: {"f1": interval(s["f1"][:, k]), "n_patients": int((y == k).sum())}
                          for k, c in enumerate(classes)},
            "C_chosen": [m.C for m in fitted],
            "scaling_chosen": [m.scaling for m in fitted],
            "n_features": [len(m.kept) for m in fitted],
        }  # fmt: skip
        predictions[name] = [
            {"patient": patients[i], "true": classes[y[i]], "predicted": classes[int(p.argmax())],
             "probabilities": dict(zip(classes, map(float, p), strict=True))} for i, p in enumerate(P[name])
        ]  # fmt: skip
    differences: dict[str, Any] = {}
    for name in [b for b in BASELINES if b in scores]:
        differences[name] = {}
        for m in METRICS:
            d = interval(scores[CONCEPTS][m] - scores[name][m])
            differences[name][m] = {**d, "verdict": verdict(d)}
    best = max(differences, key=lambda name: models[name]["metrics"][METRICS[0]]["value"])
    left_out = sorted(set(cohort.patients["patient"]) - set(patients))
    return {
        "target": cohort.target, "simulated": cohort.simulated, "classes": classes,
        "protocol": {
            "unit": "patient", "method": "repeated stratified cross-validation", **asdict(config),
            "n_patients": len(y), "patients_by_class": {c: int((y == k).sum()) for k, c in enumerate(classes)},
            "patients_left_out": left_out, "nested": ["thresholds", "concept filter", "scaling", "C"],
            "interval": "95%, percentiles over draws of patients within their class, on out-of-fold probabilities "
                        "averaged over the repetitions; it holds for these fitted models, not for another training "
                        "set, and has no width where a model made no mistake",
            "composition": "shares of the cells' labels as given (not predicted)",
        },
        "folds": [{"repeat": f.repeat, "fold": f.fold, "test": list(f.test)} for f in folds],
        "model_order": list(models), "models": models, "differences": differences, "best_baseline": best, "primary_metric": METRICS[0],
        "verdict": differences[best][METRICS[0]]["verdict"], "predictions": predictions,
    }  # fmt: skip
