"""The two fronts of `front.py` beside each other: ratio of the errors at equal L0 with its interval, a table and a picture.

Usage: ``python benchmarks/front_page.py FOLDER --picture docs/images/front.png`` with FOLDER holding ``front-default.json`` and
``front-relu-l1.json``.

At the L0 of each `default` dictionary the error of ReLU + L1 is read off that seed's front: straight lines between log L0 and
log FVU. A ratio is one of the same seed; its interval is Student's over the seeds, on the logarithm.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

Result = dict[str, Any]


def interpolated(front: list[Result], l0: float) -> float:
    """FVU of a front at `l0`; its ends are no further than 10% from what is asked.

    Raises
    ------
    SystemExit
        The front does not reach there.
    """
    points = sorted((math.log(r["l0"]), math.log(r["fvu"])) for r in front)
    x, y = np.array(points).T
    at = math.log(l0)
    if not x[0] - 0.1 <= at <= x[-1] + 0.1:
        raise SystemExit(
            f"The front of relu-l1 goes from L0 {math.exp(x[0]):.0f} to {math.exp(x[-1]):.0f}; {l0:.0f} lies outside."
        )
    i = int(np.clip(np.searchsorted(x, at), 1, len(x) - 1))
    slope = (y[i] - y[i - 1]) / (x[i] - x[i - 1])
    return math.exp(y[i] + slope * (at - x[i]))


def compare(default: list[Result], l1: list[Result], pca: dict[str, float]) -> list[dict[str, Any]]:
    """One line for each sparsity: means over seeds, the ratio with its 95% interval, principal components beside."""
    lines = []
    for k in sorted({r["k"] for r in default}):
        mine = [r for r in default if r["k"] == k]
        theirs = [interpolated([r for r in l1 if r["seed"] == m["seed"]], m["l0"]) for m in mine]
        logs = np.log([m["fvu"] / t for m, t in zip(mine, theirs, strict=True)])
        half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
        middle = logs.mean()
        lines.append(
            {
                "k": k,
                "l0": [round(m["l0"], 2) for m in mine],
                "fvu": float(np.mean([m["fvu"] for m in mine])),
                "relu_l1_at_that_l0": float(np.mean(theirs)),
                "ratio": [math.exp(middle), math.exp(middle - half), math.exp(middle + half)],
                "pca": pca[str(k)],
                "of_pca": float(np.mean([m["fvu"] for m in mine])) / pca[str(k)],
                "dead": [m["dead_share"] for m in mine],
            }
        )
    return lines


def draw(default: list[Result], l1: list[Result], pca: dict[str, float], out: Path) -> None:
    """Error against L0, both on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for part, front, colour in (("default (BatchTopK + AuxK)", default, "#1f6f8b"), ("relu-l1, tuned", l1, "#c8553d")):
        for i, seed in enumerate(sorted({r["seed"] for r in front})):
            points = sorted((r["l0"], r["fvu"]) for r in front if r["seed"] == seed)
            axes.plot(*zip(*points, strict=True), "o-", ms=4, lw=1.2, color=colour, label=part if not i else None)
    counts = sorted(int(k) for k in pca)
    axes.plot(
        counts, [pca[str(k)] for k in counts], "s--", ms=4, lw=1, color="#777777", label="as many principal components"
    )
    axes.set(
        xscale="log", yscale="log", xlabel="L0: active latents a patch, held-out cells", ylabel="FVU, held-out cells"
    )
    axes.set_xticks(counts, [str(k) for k in counts])
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    ticks = [t for t in (0.02, 0.03, 0.05, 0.1, 0.2, 0.3) if axes.get_ylim()[0] <= t <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=130)


def main() -> None:
    """Print the table as markdown, write ``front.json``, draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    records = [
        json.loads((arguments.folder / f"front-{part}.json").read_text("utf-8")) for part in ("default", "relu-l1")
    ]
    default, l1, pca = records[0]["results"], records[1]["results"], records[0]["pca"]
    lines = compare(default, l1, pca)
    print(
        "| k | L0 | FVU | ReLU + L1 at that L0 | ratio (95%) | as many principal components | dead |\n|" + " --- |" * 7
    )
    for r in lines:
        low, high = min(r["l0"]), max(r["l0"])
        dead = f"{min(r['dead']):.1%} - {max(r['dead']):.1%}"
        ratio = f"{r['ratio'][0]:.2f} ({r['ratio'][1]:.2f} - {r['ratio'][2]:.2f})"
        print(
            f"| {r['k']} | {low:.1f} - {high:.1f} | {r['fvu']:.4f} | {r['relu_l1_at_that_l0']:.4f} | {ratio} | {r['pca']:.3f} | {dead} |"
        )
    record = {"settings": [r["settings"] for r in records], "lines": lines}
    (arguments.folder / "front.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    if arguments.picture:
        draw(default, l1, pca, arguments.picture)


if __name__ == "__main__":
    main()
