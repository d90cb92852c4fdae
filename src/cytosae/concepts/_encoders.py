"""Which encoder makes the codes of an index: one rule, settled on the first cells and kept for the whole index."""

from __future__ import annotations

import torch

from cytosae._errors import CytosaeError
from cytosae.concepts._codes import DenseEncoder, Encoder
from cytosae.concepts._native import NativeEncoder
from cytosae.concepts._screen import ROWS, ScreenedEncoder
from cytosae.sae import SparseAutoencoder
from cytosae.sae.ops import has_bfloat16
from cytosae.sae.ops.native import native_library

#: Above this share of candidates among all pre-activations the plain float32 product is faster.
TOO_DENSE = 0.06
#: Below so many latents nothing is won.
_TOO_FEW = 256


def choose_encoder(sae: SparseAutoencoder, device: str, sample: torch.Tensor) -> Encoder:
    """The fastest encoder here; all of them give float32 codes of which none is lost.

    Parameters
    ----------
    sample
        float32 [n, d_in]: the first tokens, on which the candidates are counted.

    Returns
    -------
    =========================================================  ============================
    on a processor, with few candidates among the sample's      encoder
    =========================================================  ============================
    the compiled library (any activation)                       `NativeEncoder`
    bfloat16 in hardware (an activation that looks at one        `ScreenedEncoder`
    latent at a time)
    else, on a graphics card, and for small dictionaries         `DenseEncoder`
    =========================================================  ============================
    """
    if torch.device(device).type != "cpu" or sae.n_latents < _TOO_FEW:
        return DenseEncoder(sae)
    if native_library() is not None:
        native = NativeEncoder(sae)
        if native.candidate_share(sample[:ROWS]) <= TOO_DENSE:
            return native
    if has_bfloat16(device) and sae.activation in ("relu", "threshold"):
        screened = ScreenedEncoder(sae)
        if screened.candidate_share(sample[:ROWS]) <= TOO_DENSE:
            return screened
    return DenseEncoder(sae)


def encoder_named(path: str, sae: SparseAutoencoder) -> Encoder:
    """The encoder with which an index was begun.

    Raises
    ------
    CytosaeError
        It is not available here.
    """
    if path == NativeEncoder.path and native_library() is None:
        raise CytosaeError(
            "This index was begun with the compiled path, which cannot be built here; install a C++ compiler (g++) to go on, "
            "or choose another --out to begin anew."
        )
    for kind in (NativeEncoder, ScreenedEncoder, DenseEncoder):
        if kind.path == path:
            return kind(sae)
    raise CytosaeError(f"This index was begun with the way of encoding {path!r}, which this program does not know.")
