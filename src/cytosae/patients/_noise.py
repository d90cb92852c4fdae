"""What is put on a simulated cohort after its cells are drawn: batches of patients, wrong labels, wrong diagnoses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import CytosaeError
from cytosae.patients._spec import CohortSpec, DiagnosisSpec


def add_noise(
    frame: pd.DataFrame, spec: CohortSpec, patients: list[tuple[DiagnosisSpec, str]], seed: int
) -> pd.DataFrame:
    """Add the column ``batch``, and noise to ``diagnosis`` and ``label`` with ``true_diagnosis`` and ``true_label`` beside.

    Shares are kept as exactly as whole patients (cells) allow; which ones is drawn. A batch goes by the true diagnosis.
    """
    if spec.batches:
        of_patient: dict[str, str] = {}
        rng = np.random.Generator(np.random.Philox(key=[seed, 2**34 + 3]))
        for d in spec.diagnoses:
            mine = [name for other, name in patients if other.code == d.code]
            dealt = np.repeat(
                np.arange(len(spec.batches)), shared_out([b.share[d.code] for b in spec.batches], len(mine))
            )
            for name, i in zip(mine, rng.permutation(dealt), strict=True):
                of_patient[name] = spec.batches[i].name
        frame["batch"] = frame["patient"].map(of_patient)
    if spec.diagnosis_noise:
        frame["true_diagnosis"] = frame["diagnosis"]
        titles = sorted({d.title for d in spec.diagnoses})
        of_patient = {name: d.title for d, name in patients}
        wrong = _others(np.array(list(of_patient.values()), object), titles, spec.diagnosis_noise, seed, 4)
        frame["diagnosis"] = frame["patient"].map(dict(zip(of_patient, wrong, strict=True)))
    if spec.label_noise:
        frame["true_label"] = frame["label"]
        known = frame["label"].notna().to_numpy(bool)
        before = frame.loc[known, "label"].to_numpy(object)
        frame.loc[known, "label"] = _others(before, sorted(set(before)), spec.label_noise, seed, 5)
    return frame


def shared_out(weights: list[float], n: int) -> npt.NDArray[np.int64]:
    """n things by weights, by largest remainders (the first of equals)."""
    exact = np.array(weights) / sum(weights) * n
    out = np.floor(exact).astype(np.int64)
    out[np.argsort(-(exact - out), kind="stable")[: n - out.sum()]] += 1
    return out


def _others(
    values: npt.NDArray[np.object_], known: list[str], share: float, seed: int, what: int
) -> npt.NDArray[np.object_]:
    """`values` with a share of them replaced by another of `known`."""
    if len(known) < 2:
        raise CytosaeError(
            "Noise wants two values or more to be taken for one another; leave it out of the specification."
        )
    rng = np.random.Generator(np.random.Philox(key=[seed, 2**34 + what]))
    out = values.copy()
    for i in rng.permutation(len(values))[: round(share * len(values))]:
        others = [v for v in known if v != values[i]]
        out[i] = others[rng.integers(len(others))]
    return out
