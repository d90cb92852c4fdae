"""What the published code computes: a DinoBloom file, and the output of every block."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from cytosae import CytosaeError
from cytosae._errors import UsageError
from cytosae.backbones import Backbone, Preprocessing, load_backbone, to_input
from cytosae.cells import Cells
from cytosae.tokens import extract_tokens

REPOSITORY = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5


def golden_folder() -> Path:
    given = os.environ.get("CYTOSAE_GOLDEN")
    return Path(given) if given else REPOSITORY.parent / "shared" / "golden"


def load_like(weights: Path, reference: dict[str, np.ndarray]) -> Backbone:
    """Load by the family's rule; where that does not cover the file's width, the reference tells the heads."""
    width = reference["block_0"].shape[-1]

    def attempt(heads: int | None) -> Backbone | None:
        try:
            backbone = load_backbone("dinobloom", weights=weights, heads=heads)
        except UsageError:
            raise
        except CytosaeError:  # no rule for this width
            return None
        tokens = backbone.tokens(reference["pixels_uint8"][:1], 0).numpy()
        return backbone if fits(tokens, reference["block_0"][:1]) else None

    by_rule = attempt(None)
    if by_rule is not None:
        return by_rule
    fitting = [b for heads in range(1, width + 1) if width % heads == 0 and (b := attempt(heads)) is not None]
    assert len(fitting) == 1, f"{len(fitting)} numbers of heads reproduce block 0"
    return fitting[0]


def fits(tokens: np.ndarray, reference: np.ndarray) -> bool:
    return tokens.shape == reference.shape and bool(
        np.abs(tokens - reference).max() <= TOLERANCE * np.abs(reference).max()
    )


def check(weights: Path, reference: dict[str, np.ndarray]) -> None:
    backbone = load_like(weights, reference)
    blocks = sorted((k for k in reference if k.startswith("block_")), key=lambda k: int(k.removeprefix("block_")))
    assert len(blocks) == backbone.depth
    for number, name in enumerate(blocks):
        tokens = backbone.tokens(reference["pixels_uint8"], number).numpy()
        worst = np.abs(tokens - reference[name]).max() / np.abs(reference[name]).max()
        assert fits(tokens, reference[name]), f"{name}: {worst:.2e} of the largest value"


def test_golden_every_block_of_the_published_layout_is_reproduced() -> None:
    folder = golden_folder()
    if not (folder / "dinobloom_tiny.pth").is_file():
        pytest.skip(f"{folder} holds no dinobloom_tiny.pth")
    with np.load(folder / "dinobloom_tiny_tokens.npz", allow_pickle=False) as reference:
        check(folder / "dinobloom_tiny.pth", dict(reference))


def test_golden_tokens_survive_a_float16_store_at_every_block(tmp_path: Path) -> None:
    folder = golden_folder()
    if not (folder / "dinobloom_tiny.pth").is_file():
        pytest.skip(f"{folder} holds no dinobloom_tiny.pth")
    with np.load(folder / "dinobloom_tiny_tokens.npz", allow_pickle=False) as found:
        reference = dict(found)
    backbone = load_like(folder / "dinobloom_tiny.pth", reference)
    rows = []
    for i, pixels in enumerate(reference["pixels_uint8"]):  # PNG of the network's own size: decoding changes nothing
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append({"cell_id": i, "image": f"{i}.png", "sha256": None, "status": "ok"})
    cells = Cells(pd.DataFrame(rows), str(tmp_path))
    for block in range(backbone.depth):
        store = extract_tokens(cells, backbone, tmp_path / f"tokens-{block}", layer=block, store="float16")
        stored, wanted = store.read(np.arange(len(rows))).float().numpy(), reference[f"block_{block}"]
        worst = np.abs(stored - wanted).max() / np.abs(wanted).max()
        assert worst <= 1e-3, f"block {block}: {worst:.2e} of the largest value"


def test_golden_another_set_of_other_sizes_is_reproduced(tmp_path: Path) -> None:
    torch.manual_seed(7)
    side, width, depth = 98, 40, 3
    model = VisionTransformer(
        img_size=side, patch_size=14, embed_dim=width, depth=depth, num_heads=5, num_classes=0, init_values=1.0
    )
    state = {f"backbone.{k}": torch.randn_like(v) * 0.2 for k, v in model.state_dict().items()}
    model.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items()})
    state["backbone.mask_token"] = torch.zeros(1, width)
    state |= {"dino_head.mlp.0.weight": torch.zeros(8, width), "ibot_head.mlp.0.weight": torch.zeros(8, width)}
    torch.save({"teacher": state}, tmp_path / "other.pth")
    pixels = np.random.default_rng(7).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    reference: dict[str, np.ndarray] = {"pixels_uint8": pixels}
    with torch.inference_mode():
        x = model.eval()._pos_embed(model.patch_embed(to_input(torch.as_tensor(pixels), Preprocessing())))
        for number, block in enumerate(model.blocks):
            x = block(x)
            reference[f"block_{number}"] = x.numpy()
    # 40 wide: no rule can tell the heads, and the file must say so rather than guess
    with pytest.raises(CytosaeError, match="give it with --heads"):
        load_backbone("dinobloom", weights=tmp_path / "other.pth")
    check(tmp_path / "other.pth", reference)
