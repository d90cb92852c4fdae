"""One cell: change its codes, put the change back into its tokens, and see what the rest of the network makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cytosae._errors import CytosaeError, UsageError
from cytosae.backbones import Backbone, Layer
from cytosae.cells import UnreadableImageError, decode_image
from cytosae.sae import SparseAutoencoder

#: codes [n, n_latents] -> changed codes of the same shape
Edit = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Spliced:
    """A cell before and after a change of its codes.

    Attributes
    ----------
    before, after
        float32 [n_tokens, d_in]: the network's normed final tokens.
    codes, edited
        float32 [n, n_latents]: codes of the tokens of the dictionary's kinds, and what `edit` made of them.
    token_kinds
        The kind of each token: ``class``, ``register`` or ``patch``.
    """

    before: torch.Tensor
    after: torch.Tensor
    codes: torch.Tensor
    edited: torch.Tensor
    token_kinds: list[str]

    def read_out(self, kind: str = "class") -> tuple[torch.Tensor, torch.Tensor]:
        """Mean final token of a kind before and after, float32 [d_in] each."""
        at = torch.tensor([i for i, k in enumerate(self.token_kinds) if k == kind])
        if not len(at):
            raise UsageError(f"This backbone has no {kind} token; use one of {', '.join(sorted(set(self.token_kinds)))}.")  # fmt: skip
        return self.before[at].mean(0), self.after[at].mean(0)


def splice(
    backbone: Backbone, sae: SparseAutoencoder, image: Path | str | npt.NDArray[np.uint8], edit: Edit, layer: Layer | None = None
) -> Spliced:  # fmt: skip
    """Change a cell's codes and run the rest of the network.

    Tokens x become x + (edited - codes) @ W_dec: what the dictionary does not explain stays as it was, so an edit that
    changes no code changes nothing. Of a dictionary on several blocks only the change at the last one has an effect, since the
    network goes on from there.

    Parameters
    ----------
    backbone, sae
        The network, and a dictionary of its tokens.
    image
        A file, or pixels uint8 [height, width, 3].
    edit
        Codes -> changed codes; see `remove_concepts`, `keep_concepts`, `steer`.
    layer
        The block whose output the dictionary reads. [default: what the dictionary says of itself]

    Raises
    ------
    CytosaeError
        An image that cannot be read, a dictionary of other tokens, or one that does not say its layer.
    UsageError
        Pixels of another shape, or an edit that gives another shape or what is no number.
    """
    at_layer: Layer | None = sae.info.get("layer") if layer is None else layer
    if at_layer is None:
        raise CytosaeError("The dictionary does not say which block it reads; give layer=.")
    width = backbone.width(at_layer)
    if sae.d_in != width:
        raise CytosaeError(
            f"The dictionary reads tokens of {sae.d_in} numbers, but {backbone.name} gives {width}; use the same backbone."
        )
    x = backbone.tokens(np.stack([backbone.preprocessing.resize(_pixels(image))]), at_layer)[0].cpu().clone()
    kinds = backbone.token_kinds
    at = torch.tensor([i for i, kind in enumerate(kinds) if kind in (sae.info.get("token_kinds") or ["patch"])])
    codes = sae.encode(x[at])
    edited = edit(codes.clone())
    if edited.shape != codes.shape or not bool(torch.isfinite(edited).all()):
        raise UsageError(
            f"The edit has to give numbers of the shape {list(codes.shape)}, but gave {list(edited.shape)} or values that are none."
        )
    changed = x.clone()
    changed[at] += (edited - codes) @ sae.W_dec
    with torch.inference_mode():
        before, after = (backbone.run_from(at_layer, t[None])[0].cpu() for t in (x, changed))
    return Spliced(before, after, codes, edited, kinds)


def remove_concepts(latents: Sequence[int]) -> Edit:
    """An edit that silences some concepts."""

    def edit(codes: torch.Tensor) -> torch.Tensor:
        codes[:, list(latents)] = 0
        return codes

    return edit


def keep_concepts(latents: Sequence[int]) -> Edit:
    """An edit that silences all concepts but some."""

    def edit(codes: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(codes)
        out[:, list(latents)] = codes[:, list(latents)]
        return out

    return edit


def steer(latent: int, amount: float) -> Edit:
    """An edit that adds to a concept's code on every token: the tokens move along its decoder direction."""

    def edit(codes: torch.Tensor) -> torch.Tensor:
        codes[:, latent] += amount
        return codes

    return edit


def _pixels(image: Path | str | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UsageError(f"Pixels have to be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}.")
        return image
    try:
        return decode_image(Path(image).read_bytes()).pixels
    except OSError as error:
        raise CytosaeError(f"{image} cannot be read ({error.strerror}); check the path.") from error
    except UnreadableImageError as error:
        raise CytosaeError(f"{image} cannot be read ({error}); give another image.") from error
