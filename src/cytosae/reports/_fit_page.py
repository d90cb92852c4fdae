"""`fit.html`: how a dictionary was trained; `sweep.html`: several of them in one table and one plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from cytosae.reports._svg import figure_of, to_svg
from cytosae.sae import SparseAutoencoder
from cytosae.storage import commit_file, created_by

_COLOURS = ("#1f5fa8", "#D55E00", "#009E73", "#8a4b00", "#7a3e9d", "#5a6675")


@dataclass(frozen=True)
class Section:
    """A heading with a sentence, a figure, and a table."""

    title: str
    text: str = ""
    figure: markupsafe.Markup | None = None
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = field(default_factory=list)


def write_fit_page(folder: Path, sae: SparseAutoencoder) -> Path:
    """Write ``fit.html`` into an SAE folder, from its ``metrics.jsonl`` and ``sae.json``: curves, metrics, the recipe."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    info, metrics = sae.info, sae.info.get("metrics") or {}
    sections = [
        Section(
            "Training",
            "Each curve is one number of metrics.jsonl, every twenty steps.",
            _curves(lines, info["hyperparameters"].get("dead") == "auxk"),
        )
    ]
    if metrics:
        text = f"On {info['n_cells_heldout']:,} cells outside the training part, {metrics['n_tokens']:,} tokens, in inference mode."
        sections.append(Section("What it is worth", text, header=("metric", "value"), rows=_metric_rows(metrics)))
        sections.append(Section(
            "How often its latents fire", "Number of latents by the share of held-out tokens on which they fire. The bar at the "
            "left are latents that never fired there.", _histogram(metrics["frequency_histogram"]),
        ))  # fmt: skip
    recipe = [(k, ", ".join(f"{v:.4g}" for v in value) if isinstance(value, list) else value)
              for k, value in info["hyperparameters"].items()]  # fmt: skip
    sections.append(Section("Recipe", header=("field", "value"), rows=recipe))
    title = f"A dictionary of {sae.n_latents:,} latents"
    views = f" in {info['n_views']} views" if info.get("n_views", 1) > 1 else ""
    lead = (
        f"Recipe {info['recipe']}, trained on {info['n_tokens_train']:,} tokens of {info['n_cells_train']:,} cells{views}, "
        f"seed {info['seed']}."
    )
    return _write(folder / "fit.html", title, lead, sections)


def sweep_rows(saes: dict[str, SparseAutoencoder], keys: Sequence[str]) -> list[dict[str, Any]]:
    """One row a dictionary: the swept keys, and its metrics on held-out cells (None where there were none)."""
    rows = []
    for name, sae in saes.items():
        metrics = sae.info.get("metrics") or {}
        own = {"seed": sae.info["seed"], **sae.info["hyperparameters"]}
        kept = ("l0", "fvu", "explained_variance", "cosine", "dead_share", "pca_fvu")
        rows.append({"name": name, **{k: own[k] for k in keys}, **{k: metrics.get(k) for k in kept}})
    return rows


def write_sweep_page(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write the table of `sweep_rows` and the plot of FVU against L0, the principal components beside it."""
    header = list(rows[0])
    cells = [[_text(row[name]) for name in header] for row in rows]
    sections = [Section("All of them", header=header, rows=cells)]
    if all(row["fvu"] is not None for row in rows):
        text = ("Fraction of variance unexplained against active latents a token, on held-out cells: lower left is better. "
                "The line is what as many principal components of the training tokens leave unexplained.")  # fmt: skip
        sections.insert(0, Section("Sparsity against error", text, _pareto(rows)))
    return _write(path, f"{len(rows)} dictionaries", "Trained in one pass over the same tokens.", sections)


def _metric_rows(m: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("explained variance", f"{m['explained_variance']:.4f}"),
        ("fraction of variance unexplained (FVU)", f"{m['fvu']:.4f}"),
        (f"FVU of the best {m['pca_components']} principal components", f"{m['pca_fvu']:.4f}"),
        ("active latents a token (L0)", f"{m['l0']:.2f}"),
        ("mean cosine of token and reconstruction", f"{m['cosine']:.4f}"),
        ("latents that fire on fewer than 1 in 100,000 tokens", f"{m['dead_share']:.2%}"),
    ]


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(lines: Sequence[dict[str, float]], dead: bool) -> markupsafe.Markup:
    tokens = [line["tokens"] / 1e6 for line in lines]
    figure, (left, middle, right) = figure_of(11, 3.2, 3)
    error = [line["error"] for line in lines]
    shown = error[len(error) // 100 :]  # the start is far above the rest, which would be one flat line beside it
    left.plot(tokens, error, color=_COLOURS[0])
    left.set(
        yscale="log", title="error in training", xlabel="million tokens", ylim=(0.9 * min(shown), 1.2 * max(shown))
    )
    middle.plot(tokens, [line["l0"] for line in lines], color=_COLOURS[1])
    middle.set(title="active latents a token", xlabel="million tokens", ylim=(0, None))
    right.plot(tokens, [line["n_dead"] for line in lines], color=_COLOURS[2])
    right.set(
        title="latents counted as dead for AuxK" if dead else "silent latents", xlabel="million tokens", ylim=(0, None)
    )
    return to_svg(figure)


def _histogram(histogram: dict[str, list[float]]) -> markupsafe.Markup:
    counts, lower = histogram["n_latents"], histogram["from"]
    figure, (axis,) = figure_of(8, 3.0, 1)
    axis.bar(range(len(counts)), counts, width=0.9, color=[_COLOURS[1], *[_COLOURS[0]] * (len(counts) - 1)])
    axis.set_xticks(
        range(len(counts)), ["never", *(f"{v:.0e}" if v < 0.01 else f"{v:.2f}" for v in lower[1:])], rotation=45
    )
    axis.set(ylabel="latents", xlabel="share of tokens, from")
    return to_svg(figure)


def _pareto(rows: Sequence[dict[str, Any]]) -> markupsafe.Markup:
    figure, (axis,) = figure_of(8, 4.2, 1)
    models = sorted({str(row.get("model", "")) for row in rows})
    for model, colour in zip(models, _COLOURS * len(models), strict=False):
        mine = sorted((row["l0"], row["fvu"]) for row in rows if str(row.get("model", "")) == model)
        axis.plot(*zip(*mine, strict=True), "o", color=colour, label=model or "dictionaries")
    line = sorted({(row["l0"], row["pca_fvu"]) for row in rows})
    axis.plot(*zip(*line, strict=True), "--", color="#5a6675", label="principal components")
    axis.set(xscale="log", yscale="log", xlabel="active latents a token (L0)", ylabel="FVU")
    axis.legend(frameon=False, fontsize=9)
    return to_svg(figure)


def _write(path: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    templates = files("cytosae.reports") / "templates"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string((templates / "fit.html.j2").read_text("utf-8")).render(
        title=title, lead=lead, sections=sections, made_by=created_by(),
        style=markupsafe.Markup((templates / "report.css").read_text("utf-8")),
    )  # fmt: skip
    if not path.is_file() or path.read_text("utf-8", errors="replace") != page:
        with commit_file(path) as temporary:
            temporary.write_text(page, "utf-8")
    return path
