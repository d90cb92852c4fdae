"""How many pictures that are no cell `cytosae explain` refuses, and how many cells it refuses wrongly.

Usage: ``python scripts/measure_refusals.py [--tokens NAME=CELLS,TOKENS[,COLUMN=VALUE] ...] [--folder NAME=FOLDER ...] [--out FILE]``

The pictures that are no cells are made here: photographs that come with scikit-image and scikit-learn, whole and cropped, noise,
plain colours, rendered text, drawn shapes. No network is asked. ``--folder`` takes at most ``--most`` images of each class folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cytosae import CytosaeError, TokenStore, load_backbone, read_cells
from cytosae.cells import image_paths, select
from cytosae.concepts import load_bundle, read_pixels
from cytosae.storage import write_json

Pixels = npt.NDArray[np.uint8]


def no_cells() -> Iterator[tuple[str, str, Pixels]]:
    """(kind, name, pixels) of pictures that are no cells."""
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        found = find_spec(package)
        assert found is not None
        assert found.origin is not None
        for path in sorted((Path(found.origin).parent / folder).glob("*")):
            if path.suffix not in (".png", ".jpg"):
                continue
            image = Image.open(path).convert("RGB")
            if min(image.size) < 32:
                continue
            width, height = image.size
            side = min(width, height) // 2
            left, top = (width - side) // 2, (height - side) // 2
            yield "photographs and figures", path.stem, np.asarray(image)
            yield (
                "photographs and figures",
                f"{path.stem}, cropped",
                np.asarray(image.crop((left, top, left + side, top + side))),
            )
    rng = np.random.Generator(np.random.Philox(0))
    for n in range(6):
        yield "noise", f"uniform {n}", rng.integers(0, 256, (224, 224, 3), np.uint8)
        small = rng.integers(0, 256, (2 ** (n + 1), 2 ** (n + 1), 3), np.uint8)
        yield "noise", f"smooth {n}", np.asarray(Image.fromarray(small).resize((224, 224), Image.Resampling.BICUBIC))
    for colour in ("white", "black", "#808080", "#e6c8d7", "#c8a0c8", "#783ca0"):
        yield "plain colour", colour, np.asarray(Image.new("RGB", (224, 224), colour))
    text = Path(__file__).read_text("utf-8").splitlines()
    for n, (size, paper, ink) in enumerate(((12, "white", "black"), (16, "#222222", "#dddddd"), (22, "white", "navy"),
                                            (14, "#fdf6e3", "#657b83"), (30, "white", "black"), (10, "black", "lime"))):  # fmt: skip
        image = Image.new("RGB", (640, 480), paper)
        draw = ImageDraw.Draw(image)
        for line, words in enumerate(text[10 * n : 10 * n + 480 // (size + 4)]):
            draw.text((8, 8 + line * (size + 4)), words, fill=ink, font=ImageFont.load_default(size))
        yield "text on a screen", str(n), np.asarray(image)
    for shape in ("ellipse", "rectangle"):
        for n in range(2):
            image = Image.new("RGB", (224, 224), "#ebcdd7")
            getattr(ImageDraw.Draw(image), shape)((60 + 5 * n, 60, 160, 160), fill="#6e3c96")
            yield "drawn shapes in a cell's colours", f"{shape} {n}", np.asarray(image)


def main() -> None:
    """Measure, print a table in Markdown, and keep the numbers."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--tokens", action="append", default=[], metavar="NAME=CELLS,TOKENS[,COLUMN=VALUE]")
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--most", type=int, default=30, help="images of each class folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/refusals.json"))
    options = parser.parse_args()
    bundle = load_bundle()
    backbone, known = load_backbone(bundle.sae.info["backbone"]["name"]), bundle.reference.known
    block = bundle.reference.manifest.get("unusual_block")
    block = backbone.block_number(bundle.sae.info["layer"]) if block is None else block
    rows: list[dict[str, Any]] = []

    def add(group: str, names: list[str], tokens: list[Any]) -> None:
        distance = known.distance(np.stack(tokens)) if tokens else np.zeros(0)
        refused = [n for n, d in zip(names, distance, strict=True) if d > known.limit]
        kept = [n for n, d in zip(names, distance, strict=True) if d <= known.limit]
        rows.append({"group": group, "n": len(names), "refused": len(refused), "median": float(np.median(distance)),
                     "names_refused": refused[:40], "names_kept": kept[:40]})  # fmt: skip
        print(f"| {group} | {len(names)} | {len(refused)} | {np.median(distance):.0f} |", flush=True)

    def seen(pixels: Pixels) -> Any:
        return backbone.tokens(np.stack([backbone.preprocessing.resize(pixels)]), block)[0, 0].numpy()

    print("| pictures | n | refused | median distance |\n| --- | --- | --- | --- |")
    for text in options.tokens:
        name, _, rest = text.partition("=")
        table, folder, *where = rest.split(",")
        frame = select(read_cells(table), where)
        store = TokenStore(folder)
        at = store.rows_of(frame["cell_id"].to_numpy(np.int64), frame["sha256"].tolist())
        parts = [
            store.read(at[i : i + 256], kind="class").float()[:, 0, -(store.d_in // store.n_blocks) :].numpy()
            for i in range(0, len(at), 256)
        ]
        add(name, frame["cell_id"].astype(str).tolist(), list(np.concatenate(parts)))
    for text in options.folder:
        name, _, place = text.partition("=")
        classes: dict[str, list[str]] = {}
        for path in image_paths(Path(place)):
            classes.setdefault(path.rpartition("/")[0], []).append(path)
        for label, paths in sorted(classes.items()):
            order = np.random.Generator(np.random.Philox(1)).permutation(len(paths))
            names, tokens = [], []
            for path in [paths[i] for i in (order[: options.most] if label else range(len(paths)))]:
                try:
                    tokens.append(seen(read_pixels(Path(place) / path)))
                    names.append(path)
                except CytosaeError:
                    continue
            add(f"{name}, {label}" if label else name, names, tokens)
    kinds: dict[str, tuple[list[str], list[Any]]] = {}
    for kind, name, pixels in no_cells():
        names, tokens = kinds.setdefault(kind, ([], []))
        names.append(name)
        tokens.append(seen(pixels))
    for kind, (names, tokens) in kinds.items():
        add(f"no cells: {kind}", names, tokens)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {"limit": known.limit, "dictionary": bundle.sae.hash, "rows": rows})


if __name__ == "__main__":
    main()
