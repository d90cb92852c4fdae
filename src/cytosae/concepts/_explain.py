"""What a dictionary says of one image: its concepts, how strong, how rare, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import CytosaeError
from cytosae.backbones import Backbone
from cytosae.cells import UnreadableImageError, cell_share_of_patches, decode_image, estimate_cell
from cytosae.concepts._index import ConceptIndex
from cytosae.concepts._names import named_concepts
from cytosae.sae import SparseAutoencoder


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
        ``names.parquet`` lies beside it.
    maps
        float32 [len(concepts), rows, columns]: code on each patch.
    codes_shown
        Share of the sum of all codes that the listed concepts carry.
    """

    image: str
    pixels: npt.NDArray[np.uint8]
    concepts: pd.DataFrame
    maps: npt.NDArray[np.float32]
    codes_shown: float


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
    sae: SparseAutoencoder,
    backbone: Backbone,
    *,
    layer: int = -2,
    index: ConceptIndex | None = None,
    n_concepts: int = 8,
) -> Explanation:
    """Explain one image file.

    Raises
    ------
    CytosaeError
        The file is missing or cannot be read whole.
    """
    path = Path(image)
    try:
        pixels = decode_image(path.read_bytes()).pixels
    except OSError as error:
        raise CytosaeError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnreadableImageError as error:
        raise CytosaeError(f"{path}: {error}; give an image file (JPEG, PNG, TIFF, BMP).") from error
    return explain_pixels(str(path), pixels, sae, backbone, layer=layer, index=index, n_concepts=n_concepts)


def explain_pixels(
    name: str,
    pixels: npt.NDArray[np.uint8],
    sae: SparseAutoencoder,
    backbone: Backbone,
    *,
    layer: int = -2,
    index: ConceptIndex | None = None,
    n_concepts: int = 8,
) -> Explanation:
    """Explain decoded pixels, uint8 [height, width, 3]."""
    tokens = backbone.tokens(backbone.preprocessing.resize(pixels)[None], layer)[0]
    codes = sae.encode(tokens[backbone.n_prefix :].to(sae.W_enc.device)).cpu().numpy()
    maximum, patch = codes.max(0), codes.argmax(0)
    score = rank_concepts(codes, cell_share_of_patches(estimate_cell(pixels), backbone.grid), index)
    latents = np.argsort(-score, kind="stable")[:n_concepts]
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
    rows, columns = backbone.grid
    maps = codes[:, latents].T.reshape(len(latents), rows, columns)
    shown = float(codes[:, latents].sum() / codes.sum()) if codes.sum() > 0 else 0.0
    return Explanation(name, pixels, table, maps, shown)
