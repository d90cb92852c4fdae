"""`report.html`: one self-contained page of a run, for a reader who was not there."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from cytosae._errors import CytosaeError, UsageError
from cytosae._progress import say
from cytosae.concepts import indexed_cells, named_concepts, wheres_of
from cytosae.evaluation import TooFewCellsError, measure_controls
from cytosae.reports._facts import about_run, quality
from cytosae.reports._gallery import make_gallery
from cytosae.reports._landscape import landscape
from cytosae.reports._one_cell import explained_cells
from cytosae.reports._patients import patients_page
from cytosae.reports._run import Run
from cytosae.reports._transfer import transfer
from cytosae.storage import commit_file


def write_report(run: Path | str, out: Path | str | None = None, *, seed: int = 0) -> Path:
    """Write the report of a run folder.

    Parameters
    ----------
    run
        Folder with ``cells.parquet``, ``tokens/``, ``sae/`` and ``index/``; ``index-train/`` (the concepts shown are
        chosen on it) is used where it is there, ``controls.json`` is measured where it is not.
    out
        The page; ``report.html`` in the run where None.

    Raises
    ------
    CytosaeError
        An artifact is missing or has changed, or they do not belong together.
    UsageError
        `out` is no page.
    """
    if out is not None and Path(out).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{out} is no page; give --out a file that ends in .html.")
    folder = Run(Path(run))
    _check(folder)
    control = _control(folder, seed)
    target = Path(out) if out is not None else folder.folder / "report.html"
    say("report: drawing exemplars and maps")
    gallery = make_gallery(folder)
    moved = transfer(folder, gallery)
    people = patients_page(folder)
    n_labels = len(folder.index.manifest["labels"])
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            about=about_run(folder),
            quality=quality(folder, control),
            gallery=gallery,
            n_named=int(named_concepts(folder.index)["name"].notna().sum()),
            landscape=landscape(folder.index.concepts, {c.latent for c in gallery.concepts}, n_labels),
            cells=explained_cells(folder, gallery),
            transfer=moved,
            patients=people,
            sections=_sections(bool(gallery.concepts), moved is not None, people is not None),
        )
    )
    with commit_file(target) as temporary:
        temporary.write_text(page, "utf-8")
    return target


def _control(run: Run, seed: int) -> dict[str, Any] | None:
    """The control of the label entropy, measured where it is not there; None where these cells do not allow one."""
    if len(run.index.manifest["labels"]) < 2:
        say("report: no control of the label entropy, which needs cells of two labels")
        return None
    indexed_cells(run.index, run.cells)  # refuses an index that does not know its cells
    wheres = wheres_of(run.index)
    try:
        return measure_controls(run.cells, run.store, run.sae, run.folder / "controls.json", wheres=wheres, seed=seed)
    except TooFewCellsError as error:
        say(f"report: no control of the label entropy: {error}")
        return None


def _check(run: Run) -> None:
    """Refuse a folder whose parts were made from different things."""
    made_from = run.index.manifest["inputs"]
    if made_from.get("sae") != run.sae.hash:
        raise CytosaeError(
            f"{run.folder / 'index'} was made with another dictionary than {run.folder / 'sae'}; index again."
        )
    if made_from.get("cells") != run.cells.hash:
        raise CytosaeError(f"{run.folder / 'index'} was made from another cells.parquet than the run's; index again.")


def _sections(with_concepts: bool, with_transfer: bool, with_patients: bool) -> list[tuple[str, str]]:
    """Anchors and titles of the page's parts, for the line of links at the top."""
    return [
        ("run", "What was run"),
        ("quality", "How good it is"),
        ("landscape", "All concepts"),
        *([("gallery", "Concepts worth looking at"), ("cell", "A cell, patch by patch")] if with_concepts else []),
        *([("marrow", "On bone marrow")] if with_transfer else []),
        *([("patients", "Patients")] if with_patients else []),
        ("caveats", "What not to conclude"),
        ("provenance", "Provenance"),
    ]


def _environment() -> jinja2.Environment:
    loader = jinja2.FunctionLoader(_template)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = _percent
    environment.globals["style"] = markupsafe.Markup(_template("report.css"))
    return environment


def _template(name: str) -> str:
    return (files("cytosae.reports") / "templates" / name).read_text("utf-8")


def _percent(value: Any) -> str:
    """A share as per cent: one digit behind the point below ten."""
    number = 100 * float(value)
    if number != number:
        return "–"
    if 99.5 <= number < 100:
        return ">99%"  # not all
    if 0 < number < 0.05:
        return "<0.1%"  # not none
    return f"{number:.0f}%" if number >= 9.95 or number == 0 else f"{number:.1f}%"
