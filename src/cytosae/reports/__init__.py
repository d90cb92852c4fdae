"""Reports: static pages and figures made from the artifacts of a run."""

from cytosae.reports._explain_files import explain_files, subjects_of
from cytosae.reports._explained import draw_explanation, draw_field, save_explanation
from cytosae.reports._fit_page import sweep_rows, write_fit_page, write_sweep_page
from cytosae.reports._report import write_report
from cytosae.reports._scorecard_page import write_scorecard_page

__all__ = [
    "draw_explanation", "draw_field", "explain_files", "save_explanation", "subjects_of", "sweep_rows", "write_fit_page", "write_report", "write_scorecard_page", "write_sweep_page",
]  # fmt: skip
