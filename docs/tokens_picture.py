"""Draw how the orders of training mix, from the benchmark's figures.

Usage: ``python benchmarks/bench_tokens.py STORE``, then ``python docs/tokens_picture.py``
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent
NAMES = {
    "permutation": "permutation\n(all in memory)",
    "blocks": "blocks\n(a fifth in memory)",
    "whole_cells": "whole cells\na step",
}


def main() -> None:
    """Write ``images/tokens-mixing.png``."""
    mixing = json.loads((DOCS.parent / "benchmarks" / "results" / "tokens.json").read_text())["mixing"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    cells = [mixing[name]["distinct_cells_mean"] for name in NAMES]
    variance = [mixing[name]["variance_over_ideal"] for name in NAMES]
    for axis, values, title, ideal in (
        (axes[0], cells, f"Distinct cells in a batch of {mixing['batch']:,}", mixing["ideal_distinct_cells"]),
        (axes[1], variance, "Variance of batch means, over an ideal shuffle's", 1.0),
    ):
        bars = axis.bar(list(NAMES.values()), values, color="#5662b3", width=0.6)
        axis.bar_label(bars, [f"{v:,.0f}" if v >= 10 else f"{v:.2f}" for v in values], padding=2, fontsize=9)
        axis.axhline(ideal, color="#c0562f", linewidth=1.2, linestyle="--", label="ideal shuffle")
        axis.set_yscale("log")
        axis.set_ylim(top=max(*values, ideal) * 3)
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize=9, loc="upper left")
    figure.savefig(DOCS / "images" / "tokens-mixing.png", dpi=110)


if __name__ == "__main__":
    main()
