"""What the published code computes of every concept, from its own tokens and dictionary."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from cytosae import ConceptIndex, SparseAutoencoder, index_concepts
from cytosae.cells import SCHEMA, Cells
from cytosae.concepts import patient_barcodes
from cytosae.concepts._codes import DenseEncoder
from cytosae.concepts._native import NativeEncoder
from cytosae.concepts._screen import ScreenedEncoder
from cytosae.sae.ops.native import native_library
from cytosae.storage import commit_folder, write_table
from cytosae.tokens import TokenStore


@pytest.fixture
def reference(golden: Path) -> dict[str, np.ndarray]:
    if not (golden / "statistics.npz").is_file():
        pytest.skip(f"{golden} holds no statistics.npz")
    with np.load(golden / "statistics.npz", allow_pickle=False) as found:
        return dict(found)


def made(reference: dict[str, np.ndarray], folder: Path, **options: Any) -> ConceptIndex:
    """The index of the golden tokens under the published semantics."""
    tokens, n = reference["tokens"].astype("<f4"), len(reference["tokens"])
    width = len(str(max(reference["labels"].max(), reference["patients"].max())))
    frame = pd.DataFrame({name: [None] * n for name in SCHEMA.names})
    frame["cell_id"], frame["status"], frame["image"] = np.arange(n), "ok", ""
    frame["label"] = [f"{k:0{width}d}" for k in reference["labels"]]
    frame["patient"] = [f"{k:0{width}d}" for k in reference["patients"]]
    with commit_folder(folder / "tokens", kind="tokens", version=1, inputs={}, config={}) as (work, extra):
        tokens.tofile(work / "tokens-00000.bin")
        rows = pa.table({"cell_id": np.arange(n)})
        write_table(work / "rows.parquet", rows, kind="token rows", version=1, atomic=False)
        extra |= {"n_rows": n, "n_tokens": tokens.shape[1], "n_prefix": 1, "d_in": tokens.shape[2], "dtype": "float32",
                  "grid": [1, tokens.shape[1] - 1], "precision": "float32", "backbone": {}, "layer": -2,
                  "token_kinds": ["class"] + ["patch"] * (tokens.shape[1] - 1)}  # fmt: skip
    sae = SparseAutoencoder(*(torch.from_numpy(reference[k]) for k in ("W_enc", "b_enc", "W_dec", "b_dec")))
    n_exemplars = reference["ref.max_activating_image_values"].shape[1]
    return index_concepts(
        Cells(frame, "", "golden"), sae, folder / "index", store=TokenStore(folder / "tokens"),
        semantics="cytosae-2025", thresholds=[float(reference["threshold"])], n_exemplars=n_exemplars, **options,
    )  # fmt: skip


@pytest.mark.parametrize("path", ["dense", "screened", "native"])
def test_golden_statistics_of_the_published_code_are_reproduced(
    reference: dict[str, np.ndarray], tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "native" and native_library() is None:
        pytest.skip("no compiler, or neither VNNI nor AVX2, on this machine")
    kind = {"dense": DenseEncoder, "screened": ScreenedEncoder, "native": NativeEncoder}[path]
    monkeypatch.setattr("cytosae.concepts._pass.choose_encoder", lambda sae, *_: kind(sae))
    index = made(reference, tmp_path)
    concepts = index.concepts
    values, indices, labels = (
        reference[f"ref.{k}"] for k in ("max_activating_image_values", "max_activating_image_indices", "top_labels")
    )
    assert len(concepts) == len(values)
    assert np.allclose(concepts["frequency"], reference["ref.sae_sparsity"], atol=1e-6)
    mean = reference["ref.sae_mean_acts"]
    assert np.array_equal(concepts["mean_activation"].isna(), np.isnan(mean)), "unknown is null where it was 0/0"
    assert np.allclose(concepts["mean_activation"].fillna(0), np.nan_to_num(mean), rtol=1e-5)
    entropy = reference["ref.label_entropy"]
    assert np.array_equal(concepts["label_entropy"].isna(), np.isnan(entropy))
    assert np.allclose(concepts["label_entropy"].fillna(0), np.nan_to_num(entropy), atol=1e-5)
    assert np.array_equal(concepts["dead"], values[:, 0] <= 0)
    own = np.zeros_like(values)
    e = index.exemplars
    own[e["latent"], e["rank"]] = e["value"]
    assert np.allclose(own, values, rtol=1e-5, atol=1e-7)
    filled = values[e["latent"], e["rank"]] > 0
    assert filled.all()
    # cells whose values tie within rounding may stand in either order
    same = e["cell_id"].to_numpy() == indices[e["latent"], e["rank"]]
    assert same.mean() > 0.99
    of_cell = reference["labels"][e["cell_id"]]
    assert (of_cell == labels[e["latent"], e["rank"]])[same].all()
    assert e["patch"].isna().all(), "the published code keeps no place"
    barcodes = patient_barcodes(index.statistics(), float(reference["threshold"]))
    wanted = reference["ref.patient_counts"]
    assert len(index.statistics().groups["patient"]) == len(np.unique(reference["patients"]))
    # a code within rounding of the threshold may fall on either side of it
    off = np.abs(barcodes - wanted) * len(concepts)
    assert off.max() <= 1
    assert (off > 0.5).mean() < 0.002


def test_golden_patient_barcodes_carry_the_published_divisor(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = made(reference, tmp_path)
    x, W, b = reference["tokens"], reference["W_enc"], reference["b_enc"]
    codes = np.maximum((x - reference["b_dec"]) @ W + b, 0)
    above = (codes > reference["threshold"]).sum(1)[reference["patients"] == reference["patients"].min()].sum(0)
    barcodes = patient_barcodes(index.statistics(), float(reference["threshold"]))
    assert np.allclose(barcodes[0], above / W.shape[1], atol=1.5 / W.shape[1])
    assert index.semantics == "cytosae-2025"
