"""A timm vision transformer, cut open between its blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cytosae._errors import UsageError
from cytosae.backbones._preprocess import Preprocessing, to_input

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Backbone:
    """A frozen vision transformer.

    Attributes
    ----------
    name, weights_sha256
        Which network with which weights.
    d_in
        Width of a token.
    depth
        Number of blocks.
    n_prefix
        Tokens before the patches: the class token, then registers.
    grid
        Rows and columns of patches.
    preprocessing
        What the checkpoint wants of an image.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        weights_sha256: str,
        preprocessing: Preprocessing,
        precision: str = "float32",
        device: str = "cpu",
    ) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"There is no precision {precision!r}; use float32 or bfloat16.")
        self.name, self.weights_sha256, self.preprocessing = name, weights_sha256, preprocessing
        self.precision, self.device = precision, device
        self.dtype = PRECISIONS[precision]
        self.model = model.eval().requires_grad_(False).to(device=device, dtype=self.dtype)
        self.d_in = int(model.embed_dim)
        self.depth = len(model.blocks)
        self.n_prefix = int(model.num_prefix_tokens)
        rows, columns = model.patch_embed.grid_size
        self.grid = (int(rows), int(columns))

    @property
    def n_tokens(self) -> int:
        """Tokens an image: prefix and patches."""
        return self.n_prefix + self.grid[0] * self.grid[1]

    @property
    def token_kinds(self) -> list[str]:
        """The kinds in the order in which they stand: class, registers, patches."""
        prefix = ["class"] * min(self.n_prefix, 1) + ["register"] * max(self.n_prefix - 1, 0)
        return prefix + ["patch"] * (self.grid[0] * self.grid[1])

    def block_number(self, layer: int) -> int:
        """Index from 0 of the block whose output `layer` names; negative counts from the end (-2: last but one)."""
        block = layer if layer >= 0 else self.depth + layer
        if not 0 <= block < self.depth:
            raise UsageError(
                f"--layer {layer} does not exist: {self.name} has {self.depth} blocks (0 to {self.depth - 1}, "
                f"or -{self.depth} to -1)."
            )
        return block

    @torch.inference_mode()
    def tokens(self, images: npt.NDArray[np.uint8] | torch.Tensor, layer: int = -2) -> torch.Tensor:
        """Output of one block, residual stream, no final norm.

        Parameters
        ----------
        images
            uint8 [batch, side, side, 3], resized by `preprocessing.resize`.
        layer
            Which block; later blocks are not computed.

        Returns
        -------
        float32 [batch, n_tokens, d_in]
        """
        x = self.embed(torch.as_tensor(images))
        for block in self.model.blocks[: self.block_number(layer) + 1]:
            x = block(x)
        return x.float()

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """What enters the first block: patches, position, prefix tokens; [batch, n_tokens, d_in]."""
        x = to_input(images.to(self.device), self.preprocessing).to(self.dtype)
        x = self.model._pos_embed(self.model.patch_embed(x))
        return self.model.norm_pre(self.model.patch_drop(x))  # type: ignore[no-any-return]

    def run_from(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """The rest of the network: the output of block `layer` -> the normed final tokens [batch, n_tokens, d_in]."""
        x = tokens.to(self.device, self.dtype)
        for block in self.model.blocks[self.block_number(layer) + 1 :]:
            x = block(x)
        return self.model.norm(x).float()  # type: ignore[no-any-return]
