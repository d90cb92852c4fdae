"""Adapt the packaged DINOv2-S to blood cells and pack the difference that the package brings (``make adapt-default``).

Usage: ``python scripts/adapt_default.py [--cells CELLS] [--where column=value ...] [--seed N] [--set key=value ...]``

Without ``--cells`` it takes the bundled cells of peripheral blood. Only cells with a free licence get in. The adaptation in
``--work`` goes on from its last checkpoint; what is written to ``--out`` is at most 6 MB. Then ``make train-default``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cytosae import load_backbone, read_cells
from cytosae._errors import CytosaeError
from cytosae._progress import enable_progress
from cytosae.backbones import BLOOD, blood_folder, packaged_weights, write_blood
from cytosae.cells import build_cells, bundled_path, select
from cytosae.training import has_bfloat16, replace
from cytosae.training.adapt import Adaptation, adapt
from train_default import CREDITS, FREE

LIMIT_BYTES = 6_000_000


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--cells", type=Path, help="cells.parquet [default: the bundled cells of peripheral blood]")
    parser.add_argument("--where", action="append", default=[], help="cells to adapt to (column=value)")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="of `Adaptation`"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="[default: all]")
    parser.add_argument("--work", type=Path, default=Path("runs/adapted"))
    parser.add_argument("--out", type=Path, default=blood_folder())
    return parser.parse_args(given)


def main(given: Sequence[str]) -> None:
    """Adapt where it is not done, and pack."""
    options = arguments(given)
    if options.threads:
        torch.set_num_threads(options.threads)
    config: Adaptation = replace(Adaptation(), options.settings, "An adaptation")
    cells = read_cells(options.cells) if options.cells else build_cells(bundled_path(), options.work / "cells.parquet")
    where = options.where or ([] if options.cells else ["dataset=acevedo_pbc"])
    for name in sorted(select(cells, where)["dataset"].astype(str).unique()):
        if not CREDITS.get(name, "").endswith(FREE):
            raise CytosaeError(f"The cells of {name} have no free licence on record; leave them out with --where.")
    adapt(cells, load_backbone("dinov2-s"), options.work / "backbone", config, where=where, seed=options.seed,
          bfloat16=has_bfloat16("cpu"))  # fmt: skip
    write_blood(options.work / "backbone", packaged_weights(), options.out)
    size = sum(p.stat().st_size for p in options.out.rglob("*") if p.is_file())
    print(f"Wrote {options.out}: {BLOOD}, {size / 1e6:.1f} MB.")
    if size > LIMIT_BYTES:
        raise CytosaeError(f"{options.out} has {size:,} bytes, more than {LIMIT_BYTES:,}.")


if __name__ == "__main__":
    enable_progress()
    try:
        main(sys.argv[1:])
    except CytosaeError as error:
        sys.exit(f"adapt_default: {error}")
