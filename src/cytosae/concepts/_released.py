"""Statistics as the published code writes them -> a concept index.

Six tensors and the names of the classes say all there is: exemplar values and labels, mean activation and frequency. They
carry no cell, no place and no token count, and their image numbers belong to a shuffled order: what cannot be known is null.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytosae._errors import CytosaeError
from cytosae.concepts._entropy import N_JUDGED, PUBLISHED_EPSILON, entropies, top_labels
from cytosae.concepts._index import KIND, VERSION, ConceptIndex, write_tables
from cytosae.storage import commit_folder, hash_file, hash_json, same_work

#: file -> dimensions; ``top_entropy.pt`` is not read but computed again.
FILES = {
    "max_activating_image_values": 2,
    "max_activating_image_label_indices": 2,
    "sae_mean_acts": 1,
    "sae_sparsity": 1,
}
_NAMES = "classnames.txt"
#: A release is far smaller than this; more is not read.
_LARGEST = 2**31


def import_statistics(folder: Path | str, out: Path | str, *, n_cells: int | None = None) -> ConceptIndex:
    """Read a folder of released statistics into an index of the published semantics.

    Parameters
    ----------
    folder
        Holds ``max_activating_image_values.pt``, ``max_activating_image_label_indices.pt`` [n_latents, n], ``sae_mean_acts.pt``,
        ``sae_sparsity.pt`` [n_latents] and ``classnames.txt``. Only plain tensors are read; nothing in the files is executed.
    out
        Folder of the index.
    n_cells
        Images behind the numbers. Where None it is inferred: the smallest number of which every frequency is a whole share.

    Raises
    ------
    CytosaeError
        A file is missing, is no plain tensor, or does not fit the others.
    """
    folder, out = Path(folder), Path(out)
    paths = [folder / _NAMES, *(folder / f"{name}.pt" for name in FILES)]
    for path in paths:
        if not path.is_file():
            raise CytosaeError(
                f"{path} is missing; give a folder with {_NAMES} and {', '.join(f'{n}.pt' for n in FILES)}."
            )
    inputs = {path.name: hash_file(path) for path in paths}
    config = {"semantics": "cytosae-2025", "n_cells": n_cells, "n_judged": N_JUDGED}
    if same_work(out, KIND, inputs, config):
        return ConceptIndex(out)
    names = [line.strip() for line in (folder / _NAMES).read_text("utf-8").splitlines() if line.strip()]
    values, labels, mean, frequency = _read(folder)
    _check(folder, values, labels, mean, frequency, names)
    cells = n_cells if n_cells is not None else infer_n_cells(frequency)
    with commit_folder(out, kind=KIND, version=VERSION, inputs=inputs, config=config) as (work, extra):
        write_tables(work, _tables(values, labels, mean, frequency, names, cells), inputs)
        extra |= {
            "n_cells": cells,
            "n_latents": len(values),
            "n_quarantined": None,
            "n_tokens": None,
            "labels": dict.fromkeys(names),
            "imported_from": hash_json(inputs),
            "backbone": None,
            "layer": None,
            "precision": None,
            "token_kinds": ["all"],
        }
    return ConceptIndex(out)


def infer_n_cells(frequency: np.ndarray[Any, Any], most: int = 2_000_000) -> int:
    """The smallest number of which every frequency is a whole share, within the rounding of float32.

    Raises
    ------
    CytosaeError
        There is none up to `most`.
    """
    share = np.unique(frequency[(frequency > 0) & (frequency < 1)].astype(np.float64))
    if not len(share):
        raise CytosaeError("The frequencies do not tell the number of images; give it with --n-cells.")
    few = share[np.linspace(0, len(share) - 1, min(64, len(share))).astype(int)]
    for start in range(1, most, 65_536):
        n = np.arange(start, min(start + 65_536, most), dtype=np.float64)
        fits = np.ones(len(n), bool)
        for one in few:
            count = n * one
            fits &= np.abs(count - np.rint(count)) <= np.maximum(count * 2.0**-22, 1e-9)
            fits &= np.rint(count) >= 1
            if not fits.any():
                break
        for candidate in n[fits]:
            count = candidate * share
            if (np.abs(count - np.rint(count)) <= np.maximum(count * 2.0**-22, 1e-9)).all():
                return int(candidate)
    raise CytosaeError("The frequencies do not tell the number of images; give it with --n-cells.")


def _read(folder: Path) -> list[np.ndarray[Any, Any]]:
    """The tensors, read without executing anything."""
    import pickle

    import torch

    out = []
    for name, dimensions in FILES.items():
        path = folder / f"{name}.pt"
        if path.stat().st_size > _LARGEST:
            raise CytosaeError(f"{path} is larger than any release of statistics; it is not read.")
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
            raise CytosaeError(f"{path} is not a file of one plain tensor; download the release again.") from error
        if not isinstance(found, torch.Tensor) or found.ndim != dimensions:
            raise CytosaeError(
                f"{path} does not hold one tensor of {dimensions} dimensions; download the release again."
            )
        out.append(found.to(torch.int64).numpy() if name.endswith("label_indices") else found.float().numpy())
    return out


def _check(folder: Path, values: Any, labels: Any, mean: Any, frequency: Any, names: list[str]) -> None:
    if values.shape != labels.shape or not len(values) == len(mean) == len(frequency):
        raise CytosaeError(f"The tensors in {folder} are not of one dictionary; download the release again.")
    if not (np.isfinite(values).all() and np.isfinite(frequency).all()):
        raise CytosaeError(f"The tensors in {folder} hold values that are not numbers; download the release again.")
    if (values < 0).any() or (frequency < 0).any() or (frequency > 1).any():
        raise CytosaeError(f"The tensors in {folder} hold impossible values; download the release again.")
    if labels.min() < 0 or labels.max() >= len(names):
        raise CytosaeError(f"{folder / _NAMES} names {len(names)} classes, but the labels go to {labels.max()}.")


def _tables(
    values: Any, labels: Any, mean: Any, frequency: Any, names: list[str], n_cells: int
) -> dict[str, pd.DataFrame]:
    n = len(values)
    order = np.argsort(-values, axis=1, kind="stable")
    values, labels = np.take_along_axis(values, order, 1), np.take_along_axis(labels, order, 1)
    filled = values > 0
    active = np.rint(frequency.astype(np.float64) * n_cells).astype(np.int64)
    top, share = top_labels(np.where(filled, labels, -1)[:, :N_JUDGED], len(names))
    unknown = pd.array([None] * n, dtype="Int64")
    concepts = pd.DataFrame({
        "latent": np.arange(n, dtype=np.int64),
        "n_cells_active": active,
        "n_tokens_active": unknown,
        "frequency": frequency.astype(np.float64),
        "mean_activation": np.where(active > 0, mean.astype(np.float64), np.nan),
        "max_activation": np.where(filled[:, 0], values[:, 0].astype(np.float64), np.nan),
        "label_entropy": entropies(values[:, :N_JUDGED], labels[:, :N_JUDGED], len(names), PUBLISHED_EPSILON),
        "class_entropy": pd.array([None] * n, dtype="Float64"),
        "top_label": pd.array([names[i] if i >= 0 else None for i in top], dtype="string"),
        "top_label_share": share,
        "dead": active == 0,
    })  # fmt: skip
    latent, rank = np.nonzero(filled)
    exemplars = pd.DataFrame({
        "latent": latent.astype(np.int64),
        "rank": rank.astype(np.int32),
        "cell_id": pd.array([None] * len(latent), dtype="Int64"),
        "value": values[latent, rank],
        "patch": pd.array([None] * len(latent), dtype="Int32"),
        "shown": False,
        "label": pd.array([names[i] for i in labels[latent, rank]], dtype="string"),
    })  # fmt: skip
    empty = {
        "latent": pd.array([], dtype="int64"),
        "n_cells_active": pd.array([], dtype="int64"),
        "n_cells": pd.array([], dtype="int64"),
    }
    label_table = pd.DataFrame({**empty, "label": pd.array([], dtype="string")})
    groups = pd.DataFrame({**empty, "grouping": pd.array([], dtype="string"), "group": pd.array([], dtype="string")})
    return {"concepts": concepts, "exemplars": exemplars, "labels": label_table, "groups": groups}
