"""L2 logistic regression on standardised features: fitting, prediction, and what each feature adds to each class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.patients._cohort import Floats, Ints
from cytosae.patients._solvers import lasso_path, ridge_path, rotated, softmax, span
from cytosae.storage import write_json

KIND, VERSION = "patient_model", 1
#: ``common``: one divisor for all features, so that those that vary most weigh most (shares have one unit already);
#: ``standard``: each by its own standard deviation. Either way the training patients' squared length is 1 on average,
#: so that one grid of C fits 8 features and 800.
SCALINGS = ("common", "standard")
_ARRAYS = ("kept", "centre", "scale", "coefficients", "intercepts", "thresholds")


@dataclass(frozen=True)
class LinearModel:
    """A multinomial logistic regression: logits = intercepts + coefficients @ ((x[kept] - centre) / scale).

    Attributes
    ----------
    classes
        Names of the K classes.
    kept
        int64 [m]: features used, positions in the whole vector.
    centre, scale
        float64 [m]: mean over the training patients; and what the differences to it are divided by (see `SCALINGS`).
    coefficients, intercepts
        float64 [K, m] and [K].
    C, scaling
        Inverse strength of the penalty, and one of `SCALINGS`.
    thresholds
        float64 [n_latents] of the concepts (what `x` was counted with); empty for features that have none.
    """

    classes: tuple[str, ...]
    kept: Ints
    centre: Floats
    scale: Floats
    coefficients: Floats
    intercepts: Floats
    C: float
    scaling: str
    thresholds: Floats

    def terms(self, x: Floats) -> Floats:
        """What each feature adds to each logit: [K, m] for x [n_features]; logits = intercepts + terms.sum(1)."""
        return np.asarray(self.coefficients * ((np.asarray(x, np.float64)[self.kept] - self.centre) / self.scale))

    def logits(self, X: Floats) -> Floats:
        """[n, K] for X [n, n_features]."""
        return np.asarray(((X[:, self.kept] - self.centre) / self.scale) @ self.coefficients.T + self.intercepts)

    def probabilities(self, X: Floats, temperature: float = 1.0) -> Floats:
        """[n, K]; each row adds up to 1. Logits are divided by the `temperature` first."""
        return softmax(self.logits(X) / temperature)

    def to_bytes(self) -> bytes:
        """Everything fitted, byte for byte."""
        head = json.dumps([list(self.classes), self.C, self.scaling]).encode()
        return head + b"".join(np.ascontiguousarray(getattr(self, name)).tobytes() for name in _ARRAYS)


@dataclass(frozen=True)
class Contributions:
    """One patient explained by a linear model: exact, since logit = intercept + sum of the contributions.

    Attributes
    ----------
    patient, classes
        Who, and the K classes.
    table
        One row a concept used: ``latent``, ``value`` (the patient's profile), ``cohort_mean``, then one column a class,
        the contribution to that class's logit.
    intercepts, logits, probabilities
        float64 [K].
    """

    patient: str
    classes: tuple[str, ...]
    table: pd.DataFrame
    intercepts: Floats
    logits: Floats
    probabilities: Floats

    def for_class(self, name: str) -> pd.DataFrame:
        """``latent, value, cohort_mean, contribution``, from what speaks most for the class to what speaks most against.

        Raises
        ------
        UsageError
            No such class.
        """
        if name not in self.classes:
            raise UsageError(f"The model has no class {name!r}{nearest(name, self.classes)}.")
        out = self.table[["latent", "value", "cohort_mean"]].assign(contribution=self.table[name])
        return out.sort_values(["contribution", "latent"], ascending=[False, True], ignore_index=True)


def contributions(model: LinearModel, profiles: Any, patient: str) -> Contributions:
    """What speaks for and against each class in one patient, concept by concept.

    Parameters
    ----------
    model
        A model of concept profiles.
    profiles
        AnnData counted with the model's thresholds.
    patient
        Its name.

    Raises
    ------
    UsageError
        No such patient.
    CytosaeError
        It has no usable cells, or the profiles were counted with other thresholds.
    """
    names = [str(v) for v in profiles.obs["patient"]]
    if patient not in names:
        raise UsageError(f"There is no patient {patient!r}{nearest(patient, names)}.")
    if not np.array_equal(profiles.var["threshold"].to_numpy(np.float64), model.thresholds):
        raise CytosaeError(
            "These profiles were counted with other thresholds than the model's; read both from one folder."
        )
    x = np.asarray(profiles.X, np.float64)[names.index(patient)]
    if np.isnan(x).any():
        raise CytosaeError(f"Patient {patient} has no usable cells, so there is nothing to explain.")
    return explain_profile(model, x, profiles.var["latent"].to_numpy(np.int64), patient)


def explain_profile(model: LinearModel, x: Floats, latents: Ints, patient: str) -> Contributions:
    """`contributions` of a profile x [n_latents], counted with the model's thresholds."""
    terms = model.terms(x)
    logits = model.intercepts + terms.sum(1)
    table = pd.DataFrame({"latent": latents[model.kept], "value": x[model.kept], "cohort_mean": model.centre})
    for k, name in enumerate(model.classes):
        table[name] = terms[k]
    return Contributions(patient, model.classes, table, model.intercepts, logits, softmax(logits[None])[0])


def fit_l2(
    X: Floats,
    y: Ints,
    classes: Sequence[str],
    Cs: Sequence[float],
    keep: npt.NDArray[np.bool_],
    thresholds: Floats,
    scaling: str = "common",
) -> list[LinearModel]:
    """Fit one model a penalty: minimise the sum of log losses + |coefficients|^2 / (2 C), intercepts free.

    Parameters
    ----------
    X, y
        [n, n_features] and int64 [n] (positions in `classes`): the training patients.
    keep
        bool [n_features]: features to use; constant ones are left out besides.
    thresholds
        Recorded in the models.
    scaling
        One of `SCALINGS`.

    Notes
    -----
    With fewer patients than features the penalised solution lies in the span of the patients, so the fit is made in
    that span and carried back: the same minimum, found in n dimensions. Predictions differ from the exact minimum's by
    less than 1e-4 (a test holds them against scikit-learn). With two classes this is the usual logistic regression at 2 C,
    since the penalty counts both rows of coefficients.
    """
    prepared = _standardise(X, keep, scaling)
    if prepared is None:
        return [_prior(y, classes, float(C), scaling, thresholds) for C in Cs]
    kept, centre, scale, Z = prepared
    few = len(kept) > len(y)
    small, back = span(Z) if few else rotated(Z)
    out = []
    for C, (W, b) in zip(Cs, ridge_path(small, y, len(classes), Cs), strict=True):
        carried = W @ back @ Z if few else W @ back
        out.append(
            LinearModel(tuple(classes), kept, centre, scale, carried, b - b.mean(), float(C), scaling, thresholds)
        )
    return out


def fit_l1(
    X: Floats, y: Ints, classes: Sequence[str], ratios: Sequence[float], keep: npt.NDArray[np.bool_], thresholds: Floats
) -> list[LinearModel]:
    """Fit one model a penalty: minimise the mean log loss + sum of |coefficients| / C, on standardised features.

    `ratios` are penalties as shares of the smallest at which no feature is used, falling; the rest as in `fit_l2`.
    Features without a coefficient are left out of the models.
    """
    prepared = _standardise(X, keep, "standard")
    if prepared is None:
        return [_prior(y, classes, float(ratio), "standard", thresholds) for ratio in ratios]
    kept, centre, scale, Z = prepared
    root = np.sqrt(len(kept))
    out = []
    for W, b, penalty in lasso_path(Z * root, y, len(classes), ratios):
        used = (W != 0).any(0)
        out.append(
            LinearModel(tuple(classes), kept[used], centre[used], scale[used] / root, W[:, used], b, 1 / penalty,
                        "standard", thresholds)
        )  # fmt: skip
    return out


def _standardise(X: Floats, keep: npt.NDArray[np.bool_], scaling: str) -> tuple[Ints, Floats, Floats, Floats] | None:
    """Features kept, their centre and scale, and the standardised features; None where none varies."""
    kept = np.flatnonzero(keep & (np.ptp(X, axis=0) > 1e-12))
    if not len(kept):
        return None
    centre, spread = X[:, kept].mean(0), X[:, kept].std(0)
    scale = spread * np.sqrt(len(kept)) if scaling == "standard" else np.full(len(kept), np.sqrt((spread**2).sum()))
    return kept, centre, scale, (X[:, kept] - centre) / scale


def _prior(y: Ints, classes: Sequence[str], C: float, scaling: str, thresholds: Floats) -> LinearModel:
    """Nothing to learn from: the class frequencies remain."""
    prior = np.log(np.bincount(y, minlength=len(classes)) / len(y))
    empty = np.zeros(0)
    W = np.zeros((len(classes), 0))
    kept = np.zeros(0, np.int64)
    return LinearModel(tuple(classes), kept, empty, empty, W, prior - prior.mean(), C, scaling, thresholds)


def save_model(folder: Path, model: LinearModel, info: dict[str, Any]) -> None:
    """Write `model.json` and `model.safetensors` (float64) into a folder that is being committed as a whole."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(getattr(model, name)) for name in _ARRAYS}
    save_file(arrays, folder / "model.safetensors", metadata={"simulated": json.dumps(bool(info.get("simulated")))})
    write_json(folder / "model.json", {
        **info, "kind": KIND, "version": VERSION, "classes": list(model.classes), "C": model.C, "scaling": model.scaling,
        "n_concepts_used": len(model.kept),
        "formula": "logits = intercepts + coefficients @ ((profile[kept] - centre) / scale); probabilities = softmax",
    })  # fmt: skip


def load_model(folder: Path | str) -> LinearModel:
    """Read it back.

    Raises
    ------
    CytosaeError
        Missing, or not whole.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    try:
        info = json.loads((folder / "model.json").read_text("utf-8"))
        arrays = load_file(folder / "model.safetensors")
        return LinearModel(
            classes=tuple(info["classes"]),
            C=float(info["C"]),
            scaling=str(info["scaling"]),
            **{name: arrays[name] for name in _ARRAYS},
        )
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CytosaeError(
            f"{folder} holds no whole model ({type(error).__name__}: {error}); make it again."
        ) from error
