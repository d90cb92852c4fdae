"""The released statistics of the published CytoSAE become an index that says what they say, and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cytosae import CytosaeError
from cytosae.concepts import active_jaccard, import_statistics, infer_n_cells, landscape_numbers


def release(folder: Path, n: int = 30, cells: int = 523, seed: int = 0) -> Path:
    """A small release in the published layout: one latent that never fires, exemplars with labels."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    counts = rng.integers(1, cells, n)
    counts[4] = 0
    values = -np.sort(-rng.random((n, 10)).astype(np.float32), axis=1) * (np.arange(10) < counts[:, None])
    labels = rng.integers(0, 3, (n, 10))
    with np.errstate(invalid="ignore"):
        mean = rng.random(n).astype(np.float32) * counts / counts
    for name, array in {"max_activating_image_values": values, "max_activating_image_label_indices": labels,
                        "sae_mean_acts": mean, "sae_sparsity": (counts / cells).astype(np.float32)}.items():  # fmt: skip
        torch.save(torch.from_numpy(array), folder / f"{name}.pt")
    (folder / "classnames.txt").write_text("blast\nmonocyte\nplatelet\n")
    return folder


def test_a_release_becomes_an_index_and_what_it_cannot_tell_is_null(tmp_path: Path) -> None:
    index = import_statistics(release(tmp_path / "r"), tmp_path / "i")
    c = index.concepts
    assert index.n_cells == 523
    assert list(np.flatnonzero(c["dead"])) == [4]
    assert c.loc[4, ["mean_activation", "max_activation", "label_entropy", "top_label_share"]].isna().all()
    assert c["n_cells_active"].sum() == np.rint(c["frequency"] * 523).sum()
    assert c[["n_tokens_active", "class_entropy"]].isna().all(axis=None)
    assert index.exemplars[["cell_id", "patch"]].isna().all(axis=None)
    assert set(index.exemplars["label"]) == {"blast", "monocyte", "platelet"}
    assert index.semantics == "cytosae-2025"
    assert import_statistics(tmp_path / "r", tmp_path / "i").hash == index.hash, "not made twice"
    with pytest.raises(CytosaeError, match="no exact sums"):
        index.statistics()


def test_files_that_are_no_plain_tensors_are_refused_unread(tmp_path: Path) -> None:
    folder = release(tmp_path / "r")
    torch.save({"a": 1}, folder / "sae_sparsity.pt")
    with pytest.raises(CytosaeError, match=r"sae_sparsity\.pt does not hold one tensor"):
        import_statistics(folder, tmp_path / "i")

    torch.save(Path("x"), folder / "sae_sparsity.pt")  # a pickled object of some class
    with pytest.raises(CytosaeError, match="not a file of one plain tensor"):
        import_statistics(folder, tmp_path / "i")
    torch.save(torch.zeros(7), folder / "sae_sparsity.pt")
    with pytest.raises(CytosaeError, match="not of one dictionary"):
        import_statistics(folder, tmp_path / "i")
    (folder / "sae_sparsity.pt").unlink()
    with pytest.raises(CytosaeError, match="is missing"):
        import_statistics(folder, tmp_path / "i")


def test_labels_beyond_the_class_names_are_refused(tmp_path: Path) -> None:
    folder = release(tmp_path / "r")
    (folder / "classnames.txt").write_text("blast\n")
    with pytest.raises(CytosaeError, match="names 1 classes"):
        import_statistics(folder, tmp_path / "i")


def test_the_number_of_images_is_told_by_the_frequencies_or_asked_for() -> None:
    rng = np.random.default_rng(1)
    for n in (17, 523, 17_092):
        share = (rng.integers(1, n, 200) / n).astype(np.float32)
        share[0] = np.float32(1 / n)
        assert infer_n_cells(share) == n
    with pytest.raises(CytosaeError, match="--n-cells"):
        infer_n_cells(np.array([0.0, 1.0]))
    with pytest.raises(CytosaeError, match="--n-cells"):
        infer_n_cells(rng.random(500).astype(np.float32), most=20_000)


def test_the_numbers_of_a_landscape_by_hand(tmp_path: Path) -> None:
    a = import_statistics(release(tmp_path / "r"), tmp_path / "i")
    b = import_statistics(release(tmp_path / "s", seed=1), tmp_path / "j")
    numbers = landscape_numbers(a, above=0.5)
    mean = a.concepts["mean_activation"].fillna(0)
    assert numbers["active_a_cell"] == pytest.approx(a.concepts["frequency"].sum())
    assert numbers["n_above"] == (mean > 0.5).sum()
    assert numbers["idle_share"] == pytest.approx(1 - (mean > 0.5).mean())
    x, y = mean > 0.5, b.concepts["mean_activation"].fillna(0) > 0.5
    assert active_jaccard(a, b, above=0.5) == pytest.approx((x & y).sum() / (x | y).sum())
    assert active_jaccard(a, a, above=0.5) == 1


@pytest.mark.shared
@pytest.mark.parametrize(("name", "n_cells", "n_dead"), [("acevedo", 17_092, 203), ("mll23", 41_621, 0)])
def test_the_released_entropies_are_reproduced(
    golden: Path, tmp_path: Path, name: str, n_cells: int, n_dead: int
) -> None:
    folder = golden / "released" / name
    if not folder.is_dir():
        pytest.skip(f"{golden} holds no released statistics")
    index = import_statistics(folder, tmp_path / "i")
    released = torch.load(folder / "top_entropy.pt", map_location="cpu", weights_only=True).numpy()
    own = index.concepts["label_entropy"].to_numpy()
    known = ~np.isnan(released)
    assert np.abs(own[known] - released[known]).max() < 1e-5
    assert np.isnan(own[~known]).all()
    assert index.n_cells == n_cells
    assert index.concepts["dead"].sum() == n_dead == (~known).sum()
