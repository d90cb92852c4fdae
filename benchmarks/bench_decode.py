"""Decode and resize: CytoSAE against the published path, as ratios of interleaved runs on one thread.

Usage: ``python benchmarks/bench_decode.py [--repeats 15] [--out benchmarks/results/decode.json]``

The published path is Pillow's open and ``convert("RGB")``, then torchvision's Resize((224, 224)), ToTensor and
Normalize. Three comparisons: decode and resize alone; with the float tensor that the network takes at the end (CytoSAE
scales a whole batch at once); and decoding alone. The cells are the bundled real ones, as JPEG at 360 px (their bytes
are at 224 px, so they are enlarged and written again) and as LZW TIFF of 288 px, the form of the Munich sets. Where the
data pack lies beside the repository, its 360 px JPEG originals are used.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

import cytosae
from cytosae.cells import ImageReader, bundled_path, read_cells, read_resized
from cytosae.cells._build import build_table
from cytosae.cells._resize import decode_fast

N_CELLS, SIDE, BATCH = 96, 224, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_resize = transforms.Resize((SIDE, SIDE))
_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def published_small(data: bytes) -> Image.Image:
    return _resize(Image.open(io.BytesIO(data)).convert("RGB"))  # type: ignore[no-any-return]


def published_pixels(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def each(call: Callable[[Any], object], items: Sequence[Any]) -> None:
    for item in items:
        call(item)


def published_batch(files: list[bytes]) -> torch.Tensor:
    return torch.stack([_tensor(published_small(data)) for data in files])


def our_batch(files: list[bytes]) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack([read_resized(data, SIDE) for data in files])).permute(0, 3, 1, 2)
    mean, std = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
    return (
        pixels.to(torch.float32, memory_format=torch.contiguous_format)
        .sub_(mean[:, None, None])
        .div_(std[:, None, None])
    )


def jpeg_files() -> tuple[list[bytes], str]:
    folder = Path(os.environ.get("CYTOSAE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "acevedo_pbc"
    originals = sorted(folder.glob("*/*.jpg"))
    if originals:
        return [
            p.read_bytes() for p in originals[:: len(originals) // N_CELLS][:N_CELLS]
        ], "Acevedo originals, 360 x 363 px"
    return [_encode(image, 360, "JPEG") for image in bundled_images()], "bundled cells enlarged to 360 px"


def tiff_files() -> tuple[list[bytes], str]:
    files, _ = jpeg_files()
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    return [_encode(image, 288, "TIFF") for image in images], "the same cells as LZW TIFF of 288 px"


def bundled_images() -> list[Image.Image]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cells = read_cells(build_table(bundled_path(), Path(folder) / "cells.parquet", near_duplicates=False).path)
    reader = ImageReader(cells.root)
    return [Image.open(io.BytesIO(reader.read(name))).convert("RGB") for name in cells.frame["image"][:N_CELLS]]


def _encode(image: Image.Image, side: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 92} if kind == "JPEG" else {"compression": "tiff_lzw"}
    image.resize((side, side), Image.Resampling.BILINEAR).save(buffer, kind, **options)
    return buffer.getvalue()


def ratio(first: Callable[[], object], second: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median of first's time over second's, run in turns; with the lowest and the highest ratio."""
    first(), second()
    found = []
    for turn in range(repeats):
        times = {}
        for name, call in ((0, first), (1, second)) if turn % 2 else ((1, second), (0, first)):
            started = time.perf_counter()
            call()
            times[name] = time.perf_counter() - started
        found.append(times[0] / times[1])
    return {
        "median": round(statistics.median(found), 3),
        "lowest": round(min(found), 3),
        "highest": round(max(found), 3),
    }


def differences(files: list[bytes]) -> dict[str, int]:
    """How often resized values differ from the published ones, by grey levels."""
    counts: dict[str, int] = {}
    for data in files:
        gap = np.abs(np.asarray(published_small(data)).astype(int) - read_resized(data, SIDE))
        for value, n in zip(*np.unique(gap, return_counts=True), strict=True):
            counts[str(value)] = counts.get(str(value), 0) + int(n)
    return counts


def machine() -> dict[str, Any]:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    return {"processor": model or platform.processor(), "cores": os.cpu_count(), "system": platform.system(),
            "python": platform.python_version(), "torch": torch.__version__, "threads": 1,
            "cpu_capability": torch.backends.cpu.get_cpu_capability()}  # fmt: skip


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decode.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "cytosae": cytosae.__version__,
        "machine": machine(),
        "repeats": given.repeats,
        "kinds": {},
    }
    for kind, (files, what) in {"JPEG": jpeg_files(), "TIFF": tiff_files()}.items():
        batches = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
        calls: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "decode_and_resize": (partial(each, published_small, files), partial(each, read_resized, files)),
            "to_normalised_tensor": (partial(each, published_batch, batches), partial(each, our_batch, batches)),
            "decode_and_resize_exact": (
                partial(each, published_small, files),
                partial(each, partial(read_resized, exact=True), files),
            ),
            "decode_alone": (partial(each, published_pixels, files), partial(each, decode_fast, files)),
        }
        rows: dict[str, Any] = {"files": what, "values_by_difference": differences(files)}
        rows |= {name: ratio(first, second, given.repeats) for name, (first, second) in calls.items()}
        result["kinds"][kind] = rows
        print(f"{kind} ({what}), published time over ours:")
        for name in calls:
            print(
                f"  {name:24} {rows[name]['median']:.2f}x  ({rows[name]['lowest']:.2f} to {rows[name]['highest']:.2f})"
            )
        print(f"  values by difference in grey levels: {rows['values_by_difference']}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(f"Wrote {given.out}.")


if __name__ == "__main__":
    main()
