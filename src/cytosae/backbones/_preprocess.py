"""From decoded pixels to what the backbone wants: its own size, its own mean and standard deviation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cytosae._errors import UsageError

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest")


@dataclass(frozen=True)
class Preprocessing:
    """How a checkpoint wants its images; stored with the tokens.

    Attributes
    ----------
    side
        Width and height in pixels after resizing; the aspect is not kept (as DinoBloom and the paper do it).
    interpolation
        PIL's, with antialiasing: ``bilinear``, ``bicubic``, ``lanczos`` or ``nearest``.
    mean, std
        Per channel (RGB), of pixels divided by 255.
    """

    side: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise UsageError(f"There is no interpolation {self.interpolation!r}; use one of {known}.")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def resize(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """uint8 [height, width, 3] -> uint8 [side, side, 3]."""
        if pixels.shape[:2] == (self.side, self.side):
            return pixels
        method = Image.Resampling[self.interpolation.upper()]
        image = Image.fromarray(pixels).resize((self.side, self.side), method)
        return np.asarray(image, dtype=np.uint8)


def to_input(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """uint8 [batch, side, side, 3] -> normalised float32 [batch, 3, side, side]."""
    import torch

    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(1, 3, 1, 1)
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
