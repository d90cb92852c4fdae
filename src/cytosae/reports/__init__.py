"""Reports: static pages and figures made from the artifacts of a run."""

from cytosae.reports._figures import save_explanation
from cytosae.reports._fit_page import sweep_rows, write_fit_page, write_sweep_page
from cytosae.reports._patient_page import write_predictions
from cytosae.reports._report import write_report
from cytosae.reports._scorecard_page import write_scorecard_page

__all__ = [
    "save_explanation", "sweep_rows", "write_fit_page", "write_predictions", "write_report", "write_scorecard_page", "write_sweep_page",
]  # fmt: skip
