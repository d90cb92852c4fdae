"""Pictures of a simulated batch: another lamp or stain, focus, compression and magnification, written as real files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageFilter

from cytosae._progress import Meter
from cytosae.cells import ImageReader, decode_image
from cytosae.patients._spec import BatchSpec
from cytosae.storage import commit_folder, hash_bytes, read_manifest, same_work

KIND, VERSION = "cohort_images", 1
Pixels = npt.NDArray[np.uint8]


def apply_batch(pixels: Pixels, batch: BatchSpec) -> bytes:
    """The file of a picture [height, width, 3] as this batch would have stored it: PNG, or JPEG where it has a quality.

    In the order of a microscope: magnification about the middle (edges are mirrored where it shrinks), focus, colour, file.
    """
    image = Image.fromarray(_scaled(pixels, batch.scale))
    if batch.blur:
        image = image.filter(ImageFilter.GaussianBlur(batch.blur))
    if batch.cast != (1.0, 1.0, 1.0):
        image = Image.fromarray(np.clip(np.rint(np.asarray(image) * np.array(batch.cast)), 0, 255).astype(np.uint8))
    out = io.BytesIO()
    if batch.jpeg is None:
        image.save(out, "PNG")
    else:
        image.save(out, "JPEG", quality=batch.jpeg)
    return out.getvalue()


def _scaled(pixels: Pixels, scale: float) -> Pixels:
    if scale == 1:
        return pixels
    height, width = pixels.shape[:2]
    if scale < 1:
        y, x = (round(n * (1 / scale - 1) / 2) for n in (height, width))
        pixels = np.pad(pixels, ((y, y), (x, x), (0, 0)), mode="symmetric")
    else:
        y, x = (round(n * (1 - 1 / scale) / 2) for n in (height, width))
        pixels = pixels[y : height - y, x : width - x]
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def render_batches(
    frame: pd.DataFrame, batches: Sequence[BatchSpec], root: str, folder: Path, *, inputs: dict[str, str],
    config: dict[str, Any],
) -> pd.DataFrame:  # fmt: skip
    """Write every picture of a cohort as its batch has it; an interrupted run goes on where it stopped.

    Parameters
    ----------
    frame
        The rows, with ``batch``.
    batches
        Their effects; a batch without any is stored too, as PNG with unchanged pixels.
    root
        Of the pictures as they are.
    folder
        Where the new ones go: ``CELL_ID.png`` or ``.jpg``.
    inputs, config
        Of the cohort, kept in the folder's manifest.

    Returns
    -------
    The frame with ``image``, ``sha256``, ``width``, ``height``, ``mode``, ``file_header`` and ``file_bytes`` of the new
    files, ``rendered_from`` (sha256 of the picture as it was), no mask, and no ``um_per_px`` where the scale changed.
    """
    by_name = {b.name: b for b in batches}
    names = [
        f"{i}.{'png' if by_name[b].jpeg is None else 'jpg'}"
        for i, b in zip(frame["cell_id"], frame["batch"], strict=True)
    ]
    if not same_work(folder, KIND, inputs, config):
        reader = ImageReader(root)
        with (
            commit_folder(folder, kind=KIND, version=VERSION, inputs=inputs, config=config, resume=True) as (work, _),
            Meter(len(frame), "pictures of batches", "pictures") as meter,
        ):
            for name, image, sha, batch in zip(names, frame["image"], frame["sha256"], frame["batch"], strict=True):
                if not (work / name).exists():
                    data = apply_batch(decode_image(reader.read(image, sha)).pixels, by_name[batch])
                    (work / f".{name}").write_bytes(data)
                    (work / f".{name}").rename(work / name)
                meter.add(1)
    read_manifest(folder, KIND, VERSION)
    out = frame.copy()
    out["rendered_from"] = out["sha256"]
    facts = [_facts((folder / name).read_bytes()) for name in names]
    for column in facts[0]:
        out[column] = [fact[column] for fact in facts]
    out["image"], out["mask"] = names, None
    scaled = out["batch"].map({b.name: b.scale != 1 for b in batches}).to_numpy(bool)
    out["um_per_px"] = out["um_per_px"].astype("float64").where(~scaled)
    return out


def _facts(data: bytes) -> dict[str, Any]:
    decoded = decode_image(data)
    height, width = decoded.pixels.shape[:2]
    return {"sha256": hash_bytes(data), "width": width, "height": height, "mode": decoded.mode,
            "file_header": decoded.header, "file_bytes": len(data)}  # fmt: skip
