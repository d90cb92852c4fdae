"""Reports: static pages and figures made from the artifacts of a run."""

from cytosae.reports._figures import save_explanation
from cytosae.reports._report import write_report

__all__ = ["save_explanation", "write_report"]
