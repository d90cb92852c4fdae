"""The atlas: neighbours are near, and captions say only what the cells bear out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cytosae import CytosaeError, SparseAutoencoder, index_concepts
from cytosae.cells import SCHEMA, Cells
from cytosae.concepts import make_atlas
from cytosae.concepts._atlas import clusters, draw_atlas, layout, neighbours
from cytosae.storage import commit_folder, write_table
from cytosae.tokens import TokenStore


def study(folder: Path) -> tuple[Cells, SparseAutoencoder, TokenStore]:
    """240 cells of three labels, and 60 concepts in three bundles, each bundle active in the cells of one label."""
    import pyarrow as pa

    rng = np.random.default_rng(0)
    n, d = 240, 12
    label = np.arange(n) % 3
    tokens = 0.05 * rng.normal(size=(n, 4, d))
    tokens[np.arange(n), :, label] += 3
    frame = pd.DataFrame({name: [None] * n for name in SCHEMA.names})
    frame["cell_id"], frame["status"], frame["image"] = np.arange(n), "ok", ""
    frame["label"] = np.array(["blast", "monocyte", "platelet"])[label]
    frame["cell_size"] = np.where(rng.random(n) < 0.5, "big", "small")
    with commit_folder(folder / "t", kind="tokens", version=1, inputs={}, config={}) as (work, extra):
        tokens.astype("<f4").tofile(work / "tokens-00000.bin")
        rows = pa.table({"cell_id": np.arange(n)})
        write_table(work / "rows.parquet", rows, kind="token rows", version=1, atomic=False)
        extra |= {"n_rows": n, "n_tokens": 4, "n_prefix": 0, "d_in": d, "dtype": "float32", "grid": [2, 2],
                  "precision": "float32", "backbone": {}, "layer": -2}  # fmt: skip
    W = torch.from_numpy(np.eye(d)[np.arange(60) // 20] + 0.08 * rng.normal(size=(60, d))).float()
    sae = SparseAutoencoder(W.T.contiguous(), torch.full((60,), -1.0), W, torch.zeros(d), hash="bundles")
    return Cells(frame, "", "table"), sae, TokenStore(folder / "t")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout without UMAP, which takes long to compile."""
    monkeypatch.setattr("cytosae.concepts._atlas.layout", lambda rows, seed: rows[:, :2])


@pytest.mark.backbone
def test_the_layout_keeps_bundles_together_and_is_the_same_again() -> None:
    rows = np.repeat(np.eye(8)[:3], 12, axis=0) + 0.05 * np.random.default_rng(0).normal(size=(36, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    place = layout(rows, 0)
    assert np.array_equal(place, layout(rows, 0))
    near, _ = neighbours(rows, 3)
    away = np.linalg.norm(place[:, None] - place[None], axis=2)
    assert away[np.arange(36)[:, None], near].mean() < 0.5 * away.mean()


@pytest.mark.usefixtures("quick")
def test_clusters_are_captioned_by_what_their_exemplars_have(tmp_path: Path) -> None:
    cells, sae, store = study(tmp_path)
    index = index_concepts(cells, sae, tmp_path / "i", store=store)
    table = make_atlas(index, sae, cells, tmp_path / "a", n_clusters=3, n_neighbours=5)
    assert len(table) == 60
    assert table.groupby("cluster")["latent"].agg(lambda v: len(set(v // 20))).eq(1).all()
    said = pd.read_parquet(tmp_path / "a" / "captions.parquet")
    best = said.groupby("cluster").first()
    bundle = table.groupby("cluster")["latent"].min() // 20
    assert list(best["value"]) == [("blast", "monocyte", "platelet")[b] for b in bundle]
    assert (best["share"] == 1).all()
    assert best["lift"].to_numpy() == pytest.approx(3)
    assert set(said["column"]) == {"label"}, "a size that is the same everywhere suggests nothing"
    near = pd.read_parquet(tmp_path / "a" / "neighbours.parquet")
    assert (near["latent"] // 20 == near["neighbour"] // 20).all()
    assert (near["latent"] != near["neighbour"]).all()
    assert (tmp_path / "a" / "atlas.png").stat().st_size > 5_000
    again = make_atlas(index, sae, cells, tmp_path / "b", n_clusters=3, n_neighbours=5)
    assert again.equals(table)


@pytest.mark.usefixtures("quick")
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    cells, sae, store = study(tmp_path)
    index = index_concepts(cells, sae, tmp_path / "i", store=store)
    with pytest.raises(CytosaeError, match="not an index of this dictionary"):
        make_atlas(index, dataclasses.replace(sae, hash="x"), cells, tmp_path / "a")
    with pytest.raises(CytosaeError, match="not made over the table"):
        make_atlas(index, sae, dataclasses.replace(cells, hash="x"), tmp_path / "a")
    index.concepts["n_cells_active"] = 0
    with pytest.raises(CytosaeError, match="Fewer than three"):
        make_atlas(index, sae, cells, tmp_path / "a")


def test_neighbours_are_those_of_a_plain_search() -> None:
    rows = np.random.default_rng(1).normal(size=(50, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    near, cosine = neighbours(rows, 4)
    for i in range(50):
        order = sorted((j for j in range(50) if j != i), key=lambda j: -(rows[i] @ rows[j]))[:4]
        assert list(near[i]) == order
    assert (np.diff(cosine) <= 0).all()
    sizes = np.bincount(clusters(rows, 5, 0))
    assert (np.diff(sizes) <= 0).all()


def test_suggestions_lie_neither_over_one_another_nor_outside_and_the_strongest_stays():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"latent": range(200), "x": rng.random(200), "y": rng.random(200), "cluster": np.arange(200) % 50}
    )
    table.loc[table["cluster"] == 7, ["x", "y"]] = (0.0, 0.5)  # half of its long caption would be cut off
    said = pd.DataFrame({
        "cluster": range(50), "column": "nucleus_shape", "value": "unsegmented-band-like-and-more", "lift": np.linspace(5, 2, 50)
    })  # fmt: skip
    concepts = pd.DataFrame({"latent": range(200), "top_label": "monocyte", "top_label_share": 1.0})
    figure = draw_atlas(table, said, concepts)
    extents = [text.get_window_extent() for text in figure.axes[0].texts]
    assert 2 <= len(extents) < 50
    assert not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i])
    assert all(e.x0 >= 0 and e.x1 <= figure.bbox.x1 for e in extents)
    assert "(5.0x)" in figure.axes[0].texts[0].get_text()
    assert str(len(extents)) in figure.axes[0].get_title()
