"""Which blocks a token is made of: the output of one, or those of several side by side, each times a factor.

Residual streams grow from block to block, so that of several blocks put together the last would drown the others; factors
bring them to one spread. They are powers of two, which change no digit of a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from cytosae._errors import UsageError

#: As manifests and ``sae.json`` keep it: a block (negative: counted from the end), or of several [[block, factor], ...].
Layer: TypeAlias = int | Sequence[int | Sequence[float]]

_PART = re.compile(r"(-?\d+)(?:x(\d+(?:\.\d+)?))?")
#: More blocks than this side by side are a mistake in the making: tokens would be as wide as thousands of numbers.
_MOST = 8


@dataclass(frozen=True)
class Tap:
    """Blocks in ascending order, and what the output of each is multiplied by.

    Attributes
    ----------
    blocks
        Indices from 0.
    factors
        One for each block.
    """

    blocks: tuple[int, ...]
    factors: tuple[float, ...]

    @property
    def several(self) -> bool:
        """Whether tokens are put together from more than one block."""
        return len(self.blocks) > 1

    def as_layer(self) -> list[list[float]]:
        """``[[block, factor], ...]``, as manifests keep several blocks."""
        return [[b, f] for b, f in zip(self.blocks, self.factors, strict=True)]


def tap_of(layer: Layer, depth: int, name: str) -> Tap:
    """What `layer` means for a network of `depth` blocks.

    Parameters
    ----------
    layer
        A block, or a list of blocks and of ``[block, factor]``; a block without a factor has 1.
    depth, name
        Number of blocks, and the network's name for messages.

    Raises
    ------
    UsageError
        A block that does not exist or stands twice, a factor that is not positive, or a list without a block.
    """
    if isinstance(layer, int):
        return Tap((_index(layer, depth, name),), (1.0,))
    parts = [(part, 1.0) if isinstance(part, int) else (int(part[0]), float(part[1])) for part in layer]
    if not 1 <= len(parts) <= _MOST:
        raise UsageError(f"--layer names {len(parts)} blocks; give one to {_MOST}.")
    found = sorted((_index(block, depth, name), factor) for block, factor in parts)
    blocks, factors = tuple(b for b, _ in found), tuple(f for _, f in found)
    if len(set(blocks)) < len(blocks):
        twice = next(b for b in blocks if blocks.count(b) > 1)
        raise UsageError(f"--layer names block {twice} of {name} twice; give every block once.")
    if not all(0 < f < float("inf") for f in factors):
        raise UsageError(f"--layer multiplies a block by {min(factors):g}; a factor has to be a positive number.")
    return Tap(blocks, factors)


def parse_layer(text: str) -> Layer:
    """The value of ``--layer``: ``-2``, ``5,8,10``, or with factors ``5x4,8x2,10x1``.

    Raises
    ------
    UsageError
        Anything else.
    """
    found = [_PART.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise UsageError(
            f"--layer {text!r} is no block; give one (-2), several side by side (5,8,10), or these with factors (5x4,8x2,10x1)."
        )
    parts = [(int(m[1]), m[2]) for m in found if m]
    if len(parts) == 1 and parts[0][1] is None:
        return parts[0][0]
    return [block if factor is None else [block, float(factor)] for block, factor in parts]


def known_layer(value: Any) -> Layer | None:
    """The value where it names blocks as an artifact keeps them, else None: for files of others."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    pair = (
        isinstance(value, list)
        and 1 <= len(value) <= _MOST
        and all(isinstance(p, list) and len(p) == 2 and all(type(x) in (int, float) for x in p) for p in value)
        and all(float(p[0]).is_integer() and 0 < p[1] < float("inf") for p in value)
    )
    return [[int(b), float(f)] for b, f in value] if pair else None


def layer_option(layer: Layer) -> str:
    """The value of ``--layer`` that names these blocks: ``-2`` or ``5x4,8x2,10x1``."""
    if isinstance(layer, int):
        return str(layer)
    return ",".join(str(part) if isinstance(part, int) else f"{int(part[0])}x{part[1]:g}" for part in layer)


def same_layer(a: Layer | None, b: Layer | None, depth: int | None) -> bool:
    """Whether two ways to name blocks name the same: of a backbone of 12 blocks, -2 is 10. `depth` None: not known."""
    if depth is not None:
        a, b = (layer % depth if isinstance(layer, int) and -depth <= layer < depth else layer for layer in (a, b))
    return a == b


def layer_text(layer: Layer | None) -> str:
    """For people: ``block -2``, ``blocks 5 (times 4), 8 (times 2) and 10 side by side``, or ``block not known``."""
    if layer is None:
        return "block not known"
    if isinstance(layer, int):
        return f"block {layer}"
    parts = [[part, 1.0] if isinstance(part, int) else part for part in layer]
    words = [f"{int(b)}" if f == 1 else f"{int(b)} (times {f:g})" for b, f in parts]
    if len(words) == 1:
        return f"block {words[0]}"
    return f"blocks {', '.join(words[:-1])} and {words[-1]} side by side"


def _index(layer: int, depth: int, name: str) -> int:
    block = layer if layer >= 0 else depth + layer
    if not 0 <= block < depth:
        raise UsageError(
            f"--layer {layer} does not exist: {name} has {depth} blocks (0 to {depth - 1}, or -{depth} to -1)."
        )
    return block
