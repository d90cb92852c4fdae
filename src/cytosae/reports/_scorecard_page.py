"""`scorecard.html`: every section's question, numbers beside their controls, and what speaks against them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from cytosae.backbones import layer_text
from cytosae.reports._svg import figure_of, to_svg
from cytosae.storage import commit_file

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#8a4b00", "#7a3e9d", "#5a6675", "#CC79A7", "#E69F00")
_CONTROL = "#9aa5b1"
#: Letters of a line of what a row compares.
_ROW_WIDTH = 40
_VERDICTS = {"better": "better", "worse": "worse", "comparable": "comparable"}
_SETTINGS = {
    "inductive": "The dictionary was trained on none of the scored cells",
    "transductive": "Transductive: the dictionary was trained on scored cells",
    "unknown": "It is not known whether the dictionary was trained on scored cells",
}


def write_scorecard_page(path: Path, card: dict[str, Any]) -> Path:
    """Write the page of a scorecard (see `cytosae.evaluation.make_scorecard`): one file, nothing fetched."""
    sections = [{**section, "figures": _figures(section)} for section in card["sections"]]
    templates = files("cytosae.reports") / "templates"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "interval": _interval, "mark": _mark, "blocks": layer_text}
    page = environment.from_string((templates / "scorecard.html.j2").read_text("utf-8")).render(
        card=card, sections=sections, setting=_SETTINGS[card["cells"]["seen"]["setting"]], verdicts=_verdicts(card),
        style=markupsafe.Markup((templates / "report.css").read_text("utf-8")),
    )  # fmt: skip
    if not path.is_file() or path.read_text("utf-8", errors="replace") != page:
        with commit_file(path) as temporary:
            temporary.write_text(page, "utf-8")
    return path


def _verdicts(card: dict[str, Any]) -> list[dict[str, Any]]:
    """One line a section: how many comparisons ended how."""
    out = []
    for section in card["sections"]:
        found = [c["verdict"] for c in section.get("comparisons", ()) if c["verdict"]]
        out.append({"name": section["name"], "title": section["title"], "n": len(found),
                    **{v: found.count(v) for v in _VERDICTS}})  # fmt: skip
    return out


def _number(value: Any) -> str:
    """Numbers with three significant places after the point, counts with commas, text as it is."""
    if value is None:
        return "not measurable"
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def _interval(score: Any) -> str:
    """``.712 (.690 to .731)``."""
    if not score or score.get("value") is None:
        return "not measurable"
    if score.get("low") is None:
        return _number(score["value"])
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def _mark(verdict: str | None) -> markupsafe.Markup:
    if not verdict:
        return markupsafe.Markup("")
    return markupsafe.Markup(f'<b class="v {verdict}">{verdict}</b>')


def _figures(section: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    if section.get("comparisons"):
        out.append({"title": "", "svg": _comparison_figure(section["comparisons"])})
    out += [{"title": s["title"], "svg": _series_figure(s)} for s in section.get("series", ())]
    return out


def _comparison_figure(comparisons: Sequence[dict[str, Any]]) -> markupsafe.Markup:
    """The dictionary and its controls with their intervals, one row a comparison."""
    rows = [textwrap.fill(str(one["what"]), _ROW_WIDTH) for one in comparisons]
    figure, (axis,) = figure_of(8.6, 0.9 + (0.5 if any("\n" in r for r in rows) else 0.42) * len(comparisons))
    names = {c["name"]: c["title"] for one in comparisons for c in one["controls"]}
    colours = dict(zip(names, (*_COLOURS[1:], *[_CONTROL] * len(names)), strict=False))
    labelled: set[str] = set()
    for row, one in enumerate(comparisons):
        everyone = [("dictionary", "dictionary", _COLOURS[0], one["dictionary"])]
        everyone += [(c["name"], c["title"], colours[c["name"]], c) for c in one["controls"]]
        for i, (name, title, colour, score) in enumerate(everyone):
            if score["value"] is None:
                continue
            y = row + 0.62 * ((i + 0.5) / len(everyone) - 0.5)
            label = None if name in labelled else _short(title)
            labelled.add(name)
            if score["low"] is not None:
                axis.plot([score["low"], score["high"]], [y, y], color=colour, lw=1.4, solid_capstyle="butt")
            axis.plot([score["value"]], [y], "o" if name == "dictionary" else "D", color=colour, ms=6 if name == "dictionary" else 4,
                      label=label)  # fmt: skip
    axis.set_yticks(range(len(comparisons)), rows)
    axis.set_ylim(len(comparisons) - 0.5, -0.5)
    axis.grid(axis="x", color="#e8ecf0", lw=0.8)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return to_svg(figure, bbox_inches="tight")


def _series_figure(series: dict[str, Any]) -> markupsafe.Markup:
    figure, (axis,) = figure_of(8.0, 3.8)
    for i, line in enumerate(series["lines"]):
        points = [p for p in line["points"] if p[0] is not None and p[1] is not None]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        colour = _CONTROL if line.get("dashed") else _COLOURS[i % len(_COLOURS)]
        axis.plot(x, y, "o--" if line.get("dashed") else "o-", color=colour, label=line["name"], ms=5)
    axis.set(xlabel=series["x"], ylabel=series["y"])
    points = [p for line in series["lines"] for p in line["points"] if None not in p]
    for name, place in (("x", 0), ("y", 1)):
        if series.get(f"log_{name}"):
            _log_scale(axis, name, [p[place] for p in points])
    axis.legend(frameon=False, fontsize=9)
    return to_svg(figure, bbox_inches="tight")


def _log_scale(axis: Any, name: str, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers on it, where the values span more than a factor of two."""
    from matplotlib import ticker

    if not values or min(values) <= 0 or max(values) < 2 * min(values):
        return
    (axis.set_xscale if name == "x" else axis.set_yscale)("log")
    one = axis.xaxis if name == "x" else axis.yaxis
    one.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    one.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    one.set_minor_formatter(ticker.NullFormatter())


def _short(title: str) -> str:
    return title.split(",")[0]
