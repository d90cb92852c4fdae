"""A run of the paper at its full number of cells: time, memory and disk of every stage, on cells that can be had.

Usage: ``python benchmarks/paper_size.py CELLS --out FOLDER [--cells 42000] [--presentations 42000] [--threads N]``

MLL23 cannot be shipped, so the cells of CELLS (a cells.parquet) are repeated until there are as many as MLL23 has: the first round as
they are, every further one turned, mirrored and with other brightness and colour, each a JPEG file of its own, in a table that
says so (``dataset`` is "NAME, augmented"). Then ``scripts/reproduce_paper.py`` runs on that table. Everything resumes; seconds of stopped
calls are counted. The published recipe shows each cell 24 times; ``--presentations`` shortens that for both recipes.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cytosae import read_cells
from cytosae._progress import enable_progress, track
from cytosae.cells import ImageReader, decode_image
from cytosae.storage import commit_file

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "reproduce_paper.py"


def augmented(pixels: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.uint8]:
    """One of the eight turns and mirrorings [rows, columns, 3], with brightness and each colour changed by up to a tenth."""
    rng = np.random.default_rng(seed)
    turned = np.rot90(pixels, int(rng.integers(4)))
    turned = turned[:, ::-1] if rng.random() < 0.5 else turned
    factor = rng.uniform(0.9, 1.1) * rng.uniform(0.95, 1.05, 3)
    return np.clip(np.rint(turned * factor), 0, 255).astype(np.uint8)


def write_images(source: Path, out: Path, n_cells: int) -> Path:
    """Write the images that are missing, and the table of all; its path."""
    cells = read_cells(source)
    frame = cells.frame[cells.frame["status"] == "ok"]
    reader, rows = ImageReader(cells.root), []
    for number in track(range(n_cells), n_cells, "images", "images"):
        turn, row = divmod(number, len(frame))
        one = frame.iloc[row]
        path = out / "images" / f"{turn:02d}" / f"{int(one.cell_id):06d}.jpg"
        rows.append((path.relative_to(out), one.label, f"{one.dataset}{', augmented' if turn else ''}", one.cell_id))
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = decode_image(reader.read(one.image, one.sha256)).pixels
        with commit_file(path) as temporary:
            image = Image.fromarray(pixels if turn == 0 else augmented(pixels, number))
            image.save(temporary, "JPEG", quality=92)
    table = out / "cells.csv"
    with commit_file(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "dataset", "source_cell"))
        writer.writerows(rows)
    return table


def main() -> None:
    """Make the cells, run the reproduction on them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, metavar="CELLS", help="a cells.parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=42_000)
    parser.add_argument("--presentations", type=int, default=42_000, help="cells shown to each dictionary in training")
    parser.add_argument("--backbone", default="dinov2-s")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    enable_progress()
    table, made = write_images(given.source, given.out, given.cells), given.out / "cells.parquet"
    threads: list[Any] = ["--threads", given.threads] if given.threads else []
    call([sys.executable, "-m", "cytosae", "cells", table, "--layout", "manifest", "--out", made])
    call([sys.executable, SCRIPT, "--cells", f"mll23={made}", "--backbone", given.backbone, "--out", given.out / "paper",
          "--precision", given.precision, "--title", f"mll23={title_of(made)}",
          "--set", f"cytosae-2025:presentations={given.presentations}",
          "--set", f"default:presentations={256 * given.presentations}", *threads])  # fmt: skip


def title_of(table: Path) -> str:
    """The data sets of a table, and that there are augmented cells among them."""
    names = read_cells(table).frame["dataset"].astype(str)
    whole = sorted({name.partition(",")[0] for name in names})
    return " and ".join(whole) + (", augmented" if names.str.contains(", augmented").any() else "")


def call(command: list[Any]) -> None:
    """Run a command; end with its status if it fails."""
    if status := subprocess.run([str(word) for word in command], check=False).returncode:
        sys.exit(status)


if __name__ == "__main__":
    main()
