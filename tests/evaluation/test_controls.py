from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cytosae import CytosaeError, TokenStore, load_sae, read_cells
from cytosae.cells import cell_share_of_patches, estimate_cell, select
from cytosae.evaluation import controlled_entropy, measure_controls, on_cell_share
from cytosae.reports._report import _control


def planted(n: int = 240, latents: int = 120, knows: float = 1.0, seed: int = 0):  # type: ignore[no-untyped-def]
    """Values of concepts that are strong in the cells of one label, and of a control that knows none."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, n)
    values = np.maximum(rng.normal(size=(n, latents)), 0).astype(np.float32)
    own = np.arange(latents) % 6
    values += knows * 3 * (labels[:, None] == own) * (values > 0)
    control = np.maximum(rng.normal(size=(n, latents)), 0).astype(np.float32)
    return values, control, labels.astype(str)


def test_concepts_that_know_labels_pass() -> None:
    found = controlled_entropy(*planted())
    assert found.holds
    assert found.minus_random[1] < found.minus_random[0] < found.minus_random[2] < -0.5


def test_concepts_fail_when_the_labels_are_swapped_at_random() -> None:
    values, control, labels = planted()
    held = [
        controlled_entropy(values, control, np.random.default_rng(s).permutation(labels), seed=s).holds
        for s in range(10)
    ]
    assert sum(held) <= 1


def test_a_random_dictionary_is_not_praised() -> None:
    held = [controlled_entropy(*planted(knows=0, seed=s), seed=s).holds for s in range(10)]
    assert sum(held) <= 1


def test_the_order_of_the_cells_changes_nothing() -> None:
    values, control, labels = planted()
    order = np.random.default_rng(1).permutation(len(labels))
    a, b = controlled_entropy(values, control, labels), controlled_entropy(values[order], control[order], labels[order])
    assert a.concepts == pytest.approx(b.concepts)
    assert a.random == pytest.approx(b.random)


def test_one_label_or_silent_concepts_cannot_be_judged() -> None:
    values, control, labels = planted()
    with pytest.raises(CytosaeError, match="at least two labels"):
        controlled_entropy(values, control, np.full(len(labels), "a"))
    with pytest.raises(CytosaeError, match="No concept is active"):
        controlled_entropy(np.zeros_like(values), control, labels)


@pytest.mark.demo
def test_random_directions_fire_as_often_as_the_concepts(demo_run: Path) -> None:
    from cytosae import TokenStore, load_sae
    from cytosae.evaluation import random_directions
    from cytosae.evaluation._controls import _thresholds

    store, sae = TokenStore(demo_run / "tokens"), load_sae(demo_run / "sae")
    rows = np.arange(40)
    tokens = store.read(rows, kind="patch").float()
    fired = (sae.encode(tokens) > 0).sum((0, 1))
    W = torch.nn.functional.normalize(
        torch.randn(sae.d_in, sae.n_latents, generator=torch.Generator().manual_seed(0)), dim=0
    )
    threshold = _thresholds(W, sae.b_dec, store, rows, fired)
    again = (((tokens - sae.b_dec) @ W) > threshold).sum((0, 1))
    assert float((again - fired).abs().double().mean()) < 0.05, "up to ties in float16"
    values, control = random_directions(sae, store, rows, 0)
    assert values.shape == control.shape == (40, sae.n_latents)


@pytest.mark.demo
def test_the_dictionary_of_the_demo_beats_both_controls_and_not_with_swapped_labels(demo_run: Path) -> None:
    from cytosae import TokenStore, load_sae, read_cells
    from cytosae.cells import select
    from cytosae.evaluation import random_directions

    record = json.loads((demo_run / "controls.json").read_text())
    assert record["holds"], record
    store, sae, cells = (
        TokenStore(demo_run / "tokens"),
        load_sae(demo_run / "sae"),
        read_cells(demo_run / "cells.parquet"),
    )
    frame = select(cells, record["config"]["where"])
    values, control = random_directions(sae, store, store.rows_of(frame["cell_id"].to_numpy()), 0)
    labels = frame["label"].to_numpy(str)
    assert controlled_entropy(values, control, labels).holds
    swapped = [
        controlled_entropy(values, control, np.random.default_rng(s).permutation(labels)).holds for s in range(5)
    ]
    assert not any(swapped)


def test_the_share_on_the_cell_by_hand() -> None:
    cell = np.array([[[1.0, 0.0], [0.5, 0.0]]])
    assert on_cell_share(np.array([[[2.0, 0.0], [0.0, 0.0]]]), cell) == 1
    assert on_cell_share(np.array([[[1.0, 1.0], [2.0, 0.0]]]), cell) == 0.5
    assert np.isnan(on_cell_share(np.zeros((1, 2, 2)), cell))


def test_the_cell_in_the_middle_is_found() -> None:
    y, x = np.mgrid[:200, :200]
    image = np.full((200, 200, 3), 240, np.uint8)
    image[np.hypot(y - 100, x - 100) < 30] = (90, 40, 140)
    image[np.hypot(y - 20, x - 20) < 15] = (90, 40, 140)  # another cell at the edge
    found = estimate_cell(image, 100)
    assert found[50, 50]
    assert not found[10, 10]
    assert 0.07 < found.mean() < 0.16
    share = cell_share_of_patches(found, (4, 4))
    assert share[0, 0] == 0
    assert share.mean() == pytest.approx(found.mean())
    assert estimate_cell(np.full((50, 50, 3), 255, np.uint8)).shape == (112, 112)


def in_fields(n: int, fields: int) -> pd.DataFrame:
    """Cells of a few fields, in turn."""
    return pd.DataFrame({"cell_id": np.arange(n), "source_field": [f"field {i % fields}" for i in range(n)]})


def test_copies_of_a_cell_do_not_narrow_the_interval() -> None:
    values, control, labels = planted(n=120, knows=0.3)
    copied = [np.concatenate([part] * 4) for part in (values, control, labels)]
    alone = controlled_entropy(values, control, labels, frame=in_fields(120, 120))
    together = controlled_entropy(*copied, frame=in_fields(480, 120))
    apart = controlled_entropy(*copied)
    assert together.concepts == pytest.approx(alone.concepts), "one exemplar a field: the copies add none"
    width = [found.minus_random[2] - found.minus_random[1] for found in (alone, together, apart)]
    assert width[1] == pytest.approx(width[0], rel=0.25)
    assert apart.concepts < alone.concepts, "taken for other cells, copies make any concept look pure"


def test_cells_that_stand_alone_are_the_plain_case() -> None:
    values, control, labels = planted(n=120)
    assert controlled_entropy(values, control, labels, frame=in_fields(120, 120)) == controlled_entropy(
        values, control, labels
    )


def test_the_control_of_a_merged_index_is_of_the_cells_of_its_parts(demo_run: Path, tmp_path: Path) -> None:
    """And of no others of the table."""
    cells, store, sae = (
        read_cells(demo_run / "cells.parquet"),
        TokenStore(demo_run / "tokens"),
        load_sae(demo_run / "sae"),
    )
    parts = [["label=basophil", "dataset=acevedo_pbc"], ["label=monocyte", "dataset=acevedo_pbc"]]
    both = measure_controls(cells, store, sae, tmp_path / "a.json", wheres=parts)
    same = measure_controls(
        cells, store, sae, tmp_path / "b.json", where=["label=basophil,monocyte", "dataset=acevedo_pbc"]
    )
    assert both.pop("config") == {"wheres": parts, "seed": 0}
    assert same.pop("config") == {"where": ["label=basophil,monocyte", "dataset=acevedo_pbc"], "seed": 0}
    assert both == same
    assert both["n_cells"] < len(cells.ok)


def test_a_reports_control_takes_the_cells_of_a_merged_index(demo_run: Path, tmp_path: Path) -> None:
    parts = [["label=basophil", "dataset=acevedo_pbc"], ["label=monocyte", "dataset=acevedo_pbc"]]
    config: dict[str, Any] = {"merged": True, "where": [], "wheres": parts}
    manifest = {"labels": ["basophil", "monocyte"], "config": config}
    cells = read_cells(demo_run / "cells.parquet")
    run: Any = SimpleNamespace(
        index=SimpleNamespace(manifest=manifest, folder=tmp_path), cells=cells, folder=tmp_path,
        store=TokenStore(demo_run / "tokens"), sae=load_sae(demo_run / "sae"),
    )  # fmt: skip
    found = _control(run, 0)
    assert found is not None
    assert found["n_cells"] == len(select(cells, ["label=basophil,monocyte", "dataset=acevedo_pbc"]))
    (tmp_path / "controls.json").unlink()
    del config["wheres"]
    with pytest.raises(CytosaeError, match="merge them again"):
        _control(run, 0)
    assert not (tmp_path / "controls.json").exists(), "and not measured on the whole table"
