"""What a dictionary says of one image: its concepts, how strong, how rare, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cytosae._errors import CytosaeError
from cytosae.backbones import Backbone, Layer, same_layer
from cytosae.cells import UnreadableImageError, cell_share_of_patches, decode_image, estimate_cell
from cytosae.concepts._bundle import Bundle, load_bundle
from cytosae.concepts._index import ConceptIndex
from cytosae.concepts._names import named_concepts
from cytosae.concepts._reference import Reference
from cytosae.concepts._stream import backbone_of
from cytosae.concepts._unusual import Unusual, unusual_token
from cytosae.sae import SparseAutoencoder, is_bundled


@dataclass(frozen=True)
class Explanation:
    """The concepts of one image.

    Attributes
    ----------
    image
        Where it came from.
    pixels
        uint8 [height, width, 3], as decoded.
    concepts
        One row a concept, best first: ``latent``, ``value`` (largest code over the patches), ``patch``,
        ``n_patches``, ``score``; with an index also what the index says of it, and its ``name`` and ``named_by`` where
        ``names.parquet`` lies beside it; with the bundled dictionary also ``suggestion`` (a caption from enrichment, no
        name), ``suggestion_share``, ``suggestion_lift``, ``suggestion_q`` and ``technical`` (flags).
    maps
        float32 [len(concepts), rows, columns]: code on each patch.
    codes_shown
        Share of the sum of all codes that the listed concepts carry.
    similar
        Bundled dictionary: the most similar reference cells (see `Reference.similar`).
    unusual
        Backbone of the bundled dictionary: how unusual the image is. What is no cell is explained all the same here; look at
        ``unusual.is_cell``.
    """

    image: str
    pixels: npt.NDArray[np.uint8]
    concepts: pd.DataFrame
    maps: npt.NDArray[np.float32]
    codes_shown: float
    similar: pd.DataFrame | None = None
    unusual: Unusual | None = None


def rank_concepts(
    codes: npt.NDArray[Any], cell: npt.NDArray[Any] | None = None, index: ConceptIndex | None = None
) -> npt.NDArray[np.float64]:
    """Score of every concept in an image: how much of it lies on the cell, and with an index times its rarity.

    The score is the sum of the codes over the patches, each weighted by the share of the patch that the cell covers, and 0
    for a concept that lies mostly off the cell; with an index it is multiplied by ``-ln(frequency)``, as tf-idf does for words: what every cell has explains none.

    Parameters
    ----------
    codes
        [patches, n_latents].
    cell
        [patches] or [rows, columns]: share of each patch on the cell; all patches count alike where None.
    index
        Where the frequencies come from.

    Returns
    -------
    float64 [n_latents]
    """
    weight = np.ones(len(codes)) if cell is None else np.asarray(cell, dtype=np.float64).ravel()
    amount = weight @ codes.astype(np.float64)
    amount[amount < 0.5 * codes.sum(0)] = 0
    if index is None:
        return np.asarray(amount)
    # a concept seen in fewer than two of the cells indexed is too little known to be called rare
    frequency = np.maximum(index.concepts["frequency"].to_numpy(np.float64), 2 / max(index.n_cells, 2))
    return np.asarray(amount * -np.log(np.minimum(frequency, 1.0)))


def explain(
    image: Path | str,
    sae: SparseAutoencoder | None = None,
    backbone: Backbone | None = None,
    *,
    layer: Layer | None = None,
    index: ConceptIndex | None = None,
    n_concepts: int = 8,
) -> Explanation:
    """Explain one image file.

    Parameters
    ----------
    image
        The file.
    sae
        The dictionary; the bundled one where None.
    backbone
        Its backbone, loaded where None; load it once for many images.
    layer
        The block the dictionary reads; what it says of itself where None.
    index
        Where frequencies and labels come from; the bundled one where the dictionary is the bundled one.
    n_concepts
        How many concepts at most.

    Raises
    ------
    CytosaeError
        The file is missing or cannot be read whole.
    """
    pixels = read_pixels(image)
    return explain_pixels(str(image), pixels, sae, backbone, layer=layer, index=index, n_concepts=n_concepts)


def read_pixels(image: Path | str) -> npt.NDArray[np.uint8]:
    """Pixels of an image file.

    Raises
    ------
    CytosaeError
        The file is missing or cannot be read whole.
    """
    path = Path(image)
    try:
        return decode_image(path.read_bytes()).pixels
    except OSError as error:
        raise CytosaeError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnreadableImageError as error:
        raise CytosaeError(f"{path}: {error}; give an image file (JPEG, PNG, TIFF, BMP).") from error


def explain_pixels(
    name: str,
    pixels: npt.NDArray[np.uint8],
    sae: SparseAutoencoder | None = None,
    backbone: Backbone | None = None,
    *,
    layer: Layer | None = None,
    index: ConceptIndex | None = None,
    n_concepts: int = 8,
    refuse: bool = False,
) -> Explanation:
    """Explain decoded pixels, uint8 [height, width, 3]; otherwise as `explain`.

    With `refuse`, what is no cell is not explained: no concepts, no similar cells, only how unusual it is.
    """
    bundle = fitting_bundle(sae)
    if sae is None:
        bundle = bundle or load_bundle()
        sae = bundle.sae
    if backbone is None:
        backbone, own_layer = backbone_of(sae, str(sae.W_enc.device))
        layer = own_layer if layer is None else layer
    layer = sae.info.get("layer") if layer is None else layer
    layer = -2 if layer is None else layer
    if index is None and bundle is not None:
        index = bundle.index
    reference, unusual = _reference_of(backbone, layer), None
    images = np.stack([backbone.preprocessing.resize(pixels)])
    if reference is None:
        tokens = backbone.tokens(images, layer)[0]
    else:
        tokens, seen = _tokens(images, backbone, layer, reference.manifest.get("unusual_block"))
        unusual = reference.known.judge(unusual_token(seen.cpu().numpy(), backbone))
    codes = sae.encode(tokens[backbone.n_prefix :].to(sae.W_enc.device)).cpu().numpy()
    maximum, patch = codes.max(0), codes.argmax(0)
    refused = refuse and unusual is not None and not unusual.is_cell
    score = rank_concepts(codes, cell_share_of_patches(estimate_cell(pixels), backbone.grid), index)
    latents = np.argsort(-score, kind="stable")[: 0 if refused else n_concepts]
    latents = latents[(maximum[latents] > 0) & (score[latents] > 0)]
    table = pd.DataFrame({
        "latent": latents,
        "value": maximum[latents].astype(float),
        "patch": patch[latents],
        "n_patches": (codes[:, latents] > 0).sum(0),
        "score": score[latents],
    })  # fmt: skip
    if index is not None:
        kept = ["frequency", "max_activation", "top_label", "top_label_share", "name", "named_by"]
        known = named_concepts(index).set_index("latent").loc[latents, kept]
        table = pd.concat([table, known.reset_index(drop=True)], axis=1)
    if bundle is not None:
        table = pd.concat([table, bundle.said_of(latents.tolist()).drop(columns="latent")], axis=1)
    rows, columns = backbone.grid
    maps = codes[:, latents].T.reshape(len(latents), rows, columns)
    shown = float(codes[:, latents].sum() / codes.sum()) if codes.sum() > 0 else 0.0
    similar = bundle.reference.similar(maximum, 8) if bundle is not None and not refused else None
    return Explanation(name, pixels, table, maps, shown, similar, unusual)


def fitting_bundle(sae: SparseAutoencoder | None) -> Bundle | None:
    """The bundle, where this dictionary is the bundled one."""
    if sae is None or not is_bundled(sae.hash):
        return None
    return load_bundle()


def _reference_of(backbone: Backbone, layer: Layer) -> Reference | None:
    """The reference set of the bundle, where its cells were seen by this backbone and block."""
    try:
        reference = load_bundle().reference
    except CytosaeError:
        return None
    wanted = reference.manifest.get("backbone") or {}
    fits = wanted.get("sha256") == backbone.weights_sha256 and same_layer(
        reference.manifest.get("layer"), layer, backbone.depth
    )
    return reference if fits else None


def _tokens(
    images: npt.NDArray[np.uint8], backbone: Backbone, layer: Layer, block: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of one image for the dictionary [n_tokens, width], and of another block [n_tokens, d_in], in one forward pass.

    Without `block` the second are those of the last block of the first.
    """
    tap, d = backbone.tap(layer), backbone.d_in
    factors = dict(zip(tap.blocks, tap.factors, strict=True))
    if block is None or block in factors:
        tokens = backbone.tokens(images, layer)[0]
        at = len(tap.blocks) - 1 if block is None else tap.blocks.index(block)
        return tokens, tokens[:, at * d : (at + 1) * d] / factors[tap.blocks[at]]
    blocks = sorted([*tap.blocks, block])
    every = backbone.tokens(images, [[b, factors.get(b, 1.0)] for b in blocks])[0]
    parts = dict(zip(blocks, torch.split(every, d, dim=-1), strict=True))
    return torch.cat([parts[b] for b in tap.blocks], -1), parts[block]
