"""Labels of different data sets under one name."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Names = npt.NDArray[Any]

#: Published abbreviations (Matek et al. 2021, doi 10.1182/blood.2020010568; Acevedo et al. 2020) -> common name; empty: of no type.
COMMON = {
    "BAS": "basophil", "BLA": "blast", "EBO": "erythroblast", "EOS": "eosinophil", "LYT": "lymphocyte", "MON": "monocyte",
    "NGS": "neutrophil", "NGB": "neutrophil", "PLM": "plasma cell", "PMO": "immature granulocyte", "MYB": "immature granulocyte",
    "MMZ": "immature granulocyte", "ig": "immature granulocyte", "NIF": "", "OTH": "", "ART": "", "wbc": "", "wbc_unspecified": "",
}  # fmt: skip


def common_labels(frame: pd.DataFrame) -> Names:
    """The label of every cell under its common name; empty where it has none. A column ``harmonised`` goes first."""
    labels = frame["label"].astype("string").fillna("").to_numpy(str)
    named = np.array([COMMON.get(v, v.replace("_", " ")) for v in labels], object)
    if "harmonised" in frame:
        given = frame["harmonised"].astype("string")
        named = np.where(given.notna(), given.fillna("").str.replace("_", " "), named)
    return named.astype(str)


def origins(frame: pd.DataFrame) -> Names:
    """The data set of every cell; empty where unknown."""
    return np.asarray(frame["dataset"].astype("string").fillna("").to_numpy(str))
