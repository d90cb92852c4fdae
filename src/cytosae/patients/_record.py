"""What `classification.json` says: scores with intervals, calibration, paired differences, what was chosen, predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cytosae.patients._calibration import brier, calibration_error, reliability
from cytosae.patients._cohort import Cohort, Floats, Ints
from cytosae.patients._linear import LinearModel
from cytosae.patients._methods import Answer
from cytosae.patients._plan import FixedFolds, Fold
from cytosae.patients._protocol import BASELINES, CONCEPTS, ClassifyConfig
from cytosae.patients._scores import METRICS, interval, patient_draws, score, verdict
from cytosae.patients._solvers import softmax


@dataclass(frozen=True)
class Sums:
    """Out-of-fold probabilities of one model, summed: as they come, and calibrated inside each training part."""

    raw: Floats
    calibrated: Floats
    temperatures: list[float]
    by_fold: list[Floats]

    def add(self, here: Ints, answer: Answer) -> None:
        P = softmax(answer.logits)
        self.raw[here] += P
        self.calibrated[here] += softmax(answer.logits / answer.temperature)
        self.temperatures.append(answer.temperature)
        self.by_fold.append(P)


@dataclass(frozen=True)
class Facts:
    """What the record is made from, beside the predictions."""

    cohort: Cohort
    config: ClassifyConfig
    classes: list[str]
    y_all: Ints
    patients: list[str]
    tested: Ints
    n_tested: Floats
    folds: list[Fold]
    fixed: FixedFolds | None

    @property
    def y(self) -> Ints:
        return self.y_all[self.tested]

    def mean(self, total: Floats) -> Floats:
        return np.asarray((total / np.maximum(self.n_tested, 1)[:, None])[self.tested])


def make_record(facts: Facts, sums: dict[str, Sums], fits: Sequence[Any]) -> dict[str, Any]:
    classes, y, config = facts.classes, facts.y, facts.config
    weights = patient_draws(y, config.n_bootstrap, config.seed)
    P = {name: facts.mean(s.raw) for name, s in sums.items()}
    scores = {name: score(p, y, weights) for name, p in P.items()}
    models, predictions = {}, {}
    for name, s in scores.items():
        models[name] = {
            "metrics": {m: interval(s[m]) for m in METRICS},
            "per_class": {c: {"f1": interval(s["f1"][:, k]), "n_patients": int((y == k).sum())}
                          for k, c in enumerate(classes)},
            "calibration": _calibration(P[name], facts.mean(sums[name].calibrated), y, weights),
            **_settings([f.models[name] for f in fits if name in f.models], sums[name].temperatures),
        }  # fmt: skip
        if facts.fixed is not None:
            models[name]["by_fold"] = _by_fold(facts, sums[name].by_fold)
        predictions[name] = [
            {"patient": facts.patients[facts.tested[i]], "true": classes[y[i]], "predicted": classes[int(p.argmax())],
             "probabilities": dict(zip(classes, map(float, p), strict=True))} for i, p in enumerate(P[name])
        ]  # fmt: skip
    differences: dict[str, Any] = {}
    for name in [n for n in scores if n != CONCEPTS]:
        differences[name] = {}
        for m in METRICS:
            d = interval(scores[CONCEPTS][m] - scores[name][m])
            differences[name][m] = {**d, "verdict": verdict(d)}
    rivals = [name for name in differences if name in BASELINES]
    best = max(rivals, key=lambda name: models[name]["metrics"][METRICS[0]]["value"])
    return {
        "target": facts.cohort.target, "simulated": facts.cohort.simulated, "classes": classes, "protocol": _protocol(facts),
        "folds": [{"repeat": f.repeat, "fold": f.fold, "test": list(f.test)} for f in fits],
        "model_order": list(models), "models": models, "differences": differences, "best_baseline": best,
        "primary_metric": METRICS[0], "verdict": differences[best][METRICS[0]]["verdict"], "predictions": predictions,
    }  # fmt: skip


def _settings(fitted: Sequence[Any], temperatures: list[float]) -> dict[str, Any]:
    """What was chosen in every fold."""
    linear = [m for m in fitted if isinstance(m, LinearModel)]
    chosen = {"C_chosen": [m.C for m in linear], "scaling_chosen": [m.scaling for m in linear],
              "n_features": [len(m.kept) for m in linear], "temperatures": temperatures}  # fmt: skip
    steps = [m.steps for m in fitted if not isinstance(m, LinearModel)]
    return chosen | ({"steps_chosen": steps} if steps else {})


def _calibration(P: Floats, calibrated: Floats, y: Ints, weights: Floats) -> dict[str, Any]:
    return {
        name: {"brier": interval(brier(p, y, weights)), "ece": interval(calibration_error(p, y, weights)),
               "log_loss": float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()),
               "reliability": reliability(p, y)}
        for name, p in (("as_fitted", P), ("calibrated", calibrated))
    }  # fmt: skip


def _by_fold(facts: Facts, P: list[Floats]) -> list[dict[str, Any]]:
    """Scores on each fold's own test patients, where every class is among them: how published tables are averaged."""
    out = []
    for fold, p in zip(facts.folds, P, strict=True):
        y = facts.y_all[fold.test]
        if len(np.unique(y)) == len(facts.classes):
            s = score(p, y, np.ones((1, len(y))))
            out.append({"fold": fold.fold, "n_test": len(y), **{m: float(s[m][0]) for m in METRICS}})
    return out


def make_curve(
    facts: Facts, sums: dict[int, Sums], every: Sums, chosen: dict[int, Counter[int]]
) -> list[dict[str, Any]]:
    """Scores against the number of concepts, and the concepts taken most often; the last entry has all of them."""
    weights = patient_draws(facts.y, facts.config.n_bootstrap, facts.config.seed)
    whole = score(facts.mean(every.raw), facts.y, weights)
    out: list[dict[str, Any]] = []
    for n, s in sums.items():
        here = score(facts.mean(s.raw), facts.y, weights)
        d = interval(here[METRICS[0]] - whole[METRICS[0]])
        often = sorted(chosen[n].items(), key=lambda item: (-item[1], item[0]))[:10]
        out.append({"n": n, "metrics": {m: interval(here[m]) for m in METRICS}, "against_all": {**d, "verdict": verdict(d)},
                    "chosen": [{"latent": latent, "n_folds": times} for latent, times in often]})  # fmt: skip
    return [*out, {"n": None, "metrics": {m: interval(whole[m]) for m in METRICS}}]


def _protocol(facts: Facts) -> dict[str, Any]:
    y, config = facts.y, facts.config
    trained = np.unique(
        np.concatenate([f.train for f in facts.folds] + [f.val for f in facts.folds if f.val is not None])
    )
    taking_part = {facts.patients[i] for i in np.union1d(trained, facts.tested)}
    settings = asdict(config)
    method = "repeated stratified cross-validation"
    nested = ["thresholds", "concept filter", "scaling", "C", "penalty", "concepts of a curve", "steps", "temperature"]
    if facts.fixed is not None:
        method = "fixed folds from files"
        with_val = any(f.val is not None for f in facts.folds)
        settings |= {"n_folds": len(facts.folds), "n_repeats": 1, "folds_from": facts.fixed.record,
                     "chosen_on": "validation patients of each fold" if with_val else "inner folds of the training part",
                     "tests_per_patient": sorted({int(n) for n in facts.n_tested[facts.tested]})}  # fmt: skip
    return {
        "unit": "patient", "method": method, **settings,
        "n_patients": len(y), "patients_by_class": {c: int((y == k).sum()) for k, c in enumerate(facts.classes)},
        "patients_left_out": sorted(set(facts.cohort.patients["patient"]) - taking_part),
        "n_trained_on_only": len(taking_part) - len(y), "nested": nested,
        "interval": "95%, percentiles over draws of patients within their class, on out-of-fold probabilities "
                    "averaged over the repetitions; it holds for these fitted models, not for another training "
                    "set, and has no width where a model made no mistake",
        "composition": "shares of the cells' labels as given (not predicted)",
        "raw_neurons": "every dimension twice: share of cells whose highest patch lies above the threshold, and whose lowest "
                       "lies below the opposite one",
        "pca": "components of mean patch tokens of training patients, counted on both sides",
        "calibration": "logits divided by one temperature, found inside the training part",
    }  # fmt: skip
