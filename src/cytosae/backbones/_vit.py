"""A timm vision transformer, cut open between its blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from cytosae._errors import CytosaeError, UsageError
from cytosae.backbones._compile import TOLERANCE, compile_blocks, compiler_settings, why_not_compiled
from cytosae.backbones._preprocess import Preprocessing, to_input
from cytosae.backbones._tap import Layer, Tap, layer_text, tap_of

_Blocks: TypeAlias = Sequence[Callable[..., torch.Tensor]] | Mapping[int, Callable[..., torch.Tensor]]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Backbone:
    """A frozen vision transformer.

    Attributes
    ----------
    name, weights_sha256
        Which network with which weights.
    d_in
        Width of one block's token; see `width`.
    depth
        Number of blocks.
    n_prefix
        Tokens before the patches: the class token, then registers.
    grid
        Rows and columns of patches.
    preprocessing
        What the checkpoint wants of an image.
    file
        Name of the weight file it came from; empty where the name alone finds the weights.
    options
        What was given to `load_backbone` beside name and file (``heads``, ``image_size``).
    base
        The record of the network from which it was adapted; empty where it was not.
    compiled
        Images a batch for which `tokens` runs compiled blocks (see `compile`); 0: none.
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
        file: str = "",
        options: Mapping[str, int] | None = None,
        base: Mapping[str, Any] | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"There is no precision {precision!r}; use float32 or bfloat16.")
        self.name, self.weights_sha256, self.preprocessing = name, weights_sha256, preprocessing
        self.precision, self.device = precision, device
        self.file, self.options, self.base = file, dict(options or {}), dict(base or {})
        self.dtype = PRECISIONS[precision]
        self.model = model.eval().requires_grad_(False).to(device=device, dtype=self.dtype)
        self.d_in = int(model.embed_dim)
        self.depth = len(model.blocks)
        self.n_prefix = int(model.num_prefix_tokens)
        self.n_class = int(getattr(model, "cls_token", None) is not None)
        self.compiled = 0
        self._compiled: list[Callable[..., torch.Tensor]] = []
        rows, columns = model.patch_embed.grid_size
        self.grid = (int(rows), int(columns))
        # rotary positions go into every block and depend on the grid alone: what timm computes, once
        self._rope = self._positions() if getattr(model, "rope", None) is not None else None

    @property
    def n_tokens(self) -> int:
        """Tokens an image: prefix and patches."""
        return self.n_prefix + self.grid[0] * self.grid[1]

    @property
    def token_kinds(self) -> list[str]:
        """The kinds in the order in which they stand: class (where there is one), registers, patches."""
        prefix = ["class"] * self.n_class + ["register"] * (self.n_prefix - self.n_class)
        return prefix + ["patch"] * (self.grid[0] * self.grid[1])

    @property
    def record(self) -> dict[str, Any]:
        """What an artifact keeps, to find this backbone again: name and sha256, and where given file, options and base."""
        record: dict[str, Any] = {"name": self.name, "sha256": self.weights_sha256}
        if self.file:
            record["file"] = self.file
        if self.options:
            record["options"] = self.options
        if self.base:
            record["base"] = self.base
        return record

    def tap(self, layer: Layer) -> Tap:
        """The blocks that `layer` names (an int, negative counted from the end, or several; see `tap_of`).

        Raises
        ------
        UsageError
            A block that does not exist or stands twice, or a factor that is not positive.
        """
        return tap_of(layer, self.depth, self.name)

    def block_number(self, layer: Layer) -> int:
        """Index from 0 of the block whose output `layer` names (-2: last but one); of several the last."""
        return self.tap(layer).blocks[-1]

    def width(self, layer: Layer) -> int:
        """Numbers in a token: `d_in` for each block."""
        return self.d_in * len(self.tap(layer).blocks)

    @torch.inference_mode()
    def tokens(self, images: npt.NDArray[np.uint8] | torch.Tensor, layer: Layer = -2) -> torch.Tensor:
        """Output of one block, or of several side by side, residual stream, no final norm.

        Parameters
        ----------
        images
            uint8 [batch, side, side, 3], resized by `preprocessing.resize`.
        layer
            Which block or blocks; later ones are not computed. Of several, each is multiplied by its factor.

        Returns
        -------
        float32 [batch, n_tokens, width(layer)]
        """
        tap, x = self.tap(layer), self.embed(torch.as_tensor(images))
        if len(x) != self.compiled or tap.blocks[-1] >= len(self._compiled):
            return self._tapped(x, tap)
        with compiler_settings():
            return self._tapped(x, tap, self._compiled)

    def compile(self, batch: int, layer: Layer = -2) -> None:
        """Have `tokens` run the blocks up to `layer` compiled for batches of `batch` images; the first is run here.

        Parameters
        ----------
        batch
            Images a batch; those of another size stay eager, as does `run_from`.
        layer
            The last block that is compiled.

        Raises
        ------
        CytosaeError
            Nothing can be compiled here, or what was compiled gives other tokens than the eager blocks; it stays eager.
        """
        why = why_not_compiled(self.device)
        if why:
            raise CytosaeError(f"The forward pass cannot be compiled: {why}; mend that, or use --compile off.")
        images = probe(batch, self.preprocessing.side)
        self.compiled = 0
        wanted = self.tokens(images, layer)
        self._compiled, self.compiled = compile_blocks(self.model.blocks[: self.block_number(layer) + 1]), batch
        try:
            error = float((self.tokens(images, layer) - wanted).abs().max() / wanted.abs().max())
        except Exception as failure:  # the compiler, its compiler, the disk: each has types of its own
            self.compiled, self._compiled = 0, []
            first = next(iter(str(failure).strip().splitlines()), "")
            raise CytosaeError(
                f"The forward pass cannot be compiled ({type(failure).__name__}: {first[:200]}); use --compile off."
            ) from failure
        if not error <= TOLERANCE[self.precision]:
            self.compiled, self._compiled = 0, []
            raise CytosaeError(
                f"The compiled forward pass differs from the eager one by {error:.2g} of the largest token; use --compile off."
            )

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """What enters the first block: patches, position, prefix tokens; [batch, n_tokens, d_in].

        Raises
        ------
        UsageError
            The images are not of the size that the position embedding fits.
        """
        side = self.preprocessing.side
        if images.ndim != 4 or tuple(images.shape[1:]) != (side, side, 3):
            raise UsageError(
                f"The images are {list(images.shape)}, but the position embedding of {self.name} fits [n, {side}, {side}, 3]; "
                "resize them with preprocessing.resize."
            )
        x = to_input(images.to(self.device), self.preprocessing).to(self.dtype)
        x = self.model._pos_embed(self.model.patch_embed(x))
        if isinstance(x, tuple):  # timm's Eva gives the rotary positions beside, and drops patches itself
            x = x[0]
        else:
            x = self.model.patch_drop(x)
        return self.model.norm_pre(x)  # type: ignore[no-any-return]

    def run_from(self, layer: Layer, tokens: torch.Tensor) -> torch.Tensor:
        """The rest of the network: tokens as `tokens` gives them -> the normed final tokens [batch, n_tokens, d_in].

        The network goes on from the last block alone, so of tokens of several blocks only that part has an effect.

        Raises
        ------
        UsageError
            The tokens are of another width.
        """
        tap = self.tap(layer)
        if tokens.shape[-1] != self.width(layer):
            raise UsageError(
                f"The tokens are {tokens.shape[-1]} wide, but those of {layer_text(layer)} are {self.width(layer)}."
            )
        last = tokens[..., -self.d_in :].to(self.device)
        if tap.factors[-1] != 1:
            last = last / tap.factors[-1]
        x = self.run_blocks(last.to(self.dtype), tap.blocks[-1] + 1, self.depth)
        return self.model.norm(x).float()  # type: ignore[no-any-return]

    def _tapped(
        self, x: torch.Tensor, tap: Tap, blocks: Sequence[Callable[..., torch.Tensor]] | None = None
    ) -> torch.Tensor:
        """float32 outputs of the blocks of a tap, times their factors, side by side."""
        out, start = [], 0
        for block, factor in zip(tap.blocks, tap.factors, strict=True):
            x, start = self.run_blocks(x, start, block + 1, blocks), block + 1
            out.append(x.float() if factor == 1 else x.float() * factor)
        return out[0] if len(out) == 1 else torch.cat(out, -1)

    def run_blocks(self, x: torch.Tensor, start: int, stop: int, blocks: _Blocks | None = None) -> torch.Tensor:
        """Blocks `start` to `stop` - 1 on [batch, n_tokens, d_in].

        Parameters
        ----------
        x
            What `embed` gives, or what block `start` - 1 does.
        start, stop
            Numbers of blocks.
        blocks
            By number, to be run instead of the network's own: compiled ones, or others of the same kind.
        """
        each = bool(getattr(self.model, "rope_mixed", False))
        for i in range(start, stop):
            block = (blocks or self.model.blocks)[i]
            if self._rope is None:
                x = block(x)
            else:
                x = block(x, rope=self._rope[i] if each else self._rope)
        return x

    @torch.no_grad()
    def _positions(self) -> torch.Tensor | None:
        side = self.preprocessing.side
        blank = torch.zeros(1, 3, side, side, device=self.device, dtype=self.dtype)
        return self.model._pos_embed(self.model.patch_embed(blank))[1]  # type: ignore[no-any-return]


def probe(batch: int, side: int) -> npt.NDArray[np.uint8]:
    """Images of noise, the same each time: uint8 [batch, side, side, 3]."""
    return np.random.Generator(np.random.Philox(0)).integers(0, 256, (batch, side, side, 3), np.uint8)
