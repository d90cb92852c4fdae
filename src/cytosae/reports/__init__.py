"""Reports: static pages and figures made from the artifacts of a run. Imported when asked for: explaining an image needs few."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cytosae.reports._explain_files import Subject, explain_files, subjects_of
    from cytosae.reports._explained import draw_explanation, draw_field, save_explanation
    from cytosae.reports._fit_page import sweep_rows, write_fit_page, write_sweep_page
    from cytosae.reports._patient_page import write_predictions
    from cytosae.reports._report import write_report
    from cytosae.reports._scorecard_page import write_scorecard_page

#: name -> module of this room that holds it
_HERE = {
    "Subject": "_explain_files", "draw_explanation": "_explained", "draw_field": "_explained",
    "explain_files": "_explain_files", "save_explanation": "_explained", "subjects_of": "_explain_files",
    "sweep_rows": "_fit_page", "write_fit_page": "_fit_page", "write_predictions": "_patient_page",
    "write_report": "_report",
    "write_scorecard_page": "_scorecard_page", "write_sweep_page": "_fit_page",
}  # fmt: skip

__all__ = [
    "Subject", "draw_explanation", "draw_field", "explain_files", "save_explanation", "subjects_of", "sweep_rows",
    "write_fit_page", "write_predictions", "write_report", "write_scorecard_page", "write_sweep_page",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HERE:
        return getattr(importlib.import_module(f"{__name__}.{_HERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
