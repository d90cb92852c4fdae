"""Matplotlib figures as SVG inside a page: the same bytes for the same numbers."""

from __future__ import annotations

import io
from typing import Any

import markupsafe


def figure_of(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure of so many inches and its axes, one a column, with two spines each."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    axes: Any = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    return figure, axes


def to_svg(figure: Any, **options: Any) -> markupsafe.Markup:
    """The ``<svg>`` element; `options` go to `savefig`."""
    import matplotlib as mpl

    figure.tight_layout()
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cytosae"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
    text = buffer.getvalue()
    return markupsafe.Markup(text[text.index("<svg") :])
