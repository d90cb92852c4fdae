"""``cytosae cells``, ``cytosae cells split`` and ``cytosae cells merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import click

from cytosae import _progress
from cytosae._errors import UsageError, nearest
from cytosae.cli._common import done, verb


@verb("cells", compute=False, out="The cells.parquet to write; cells.html goes beside it.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--layout",
    default="auto",
    show_default=True,
    help="auto, folder, manifest, hf-parquet, mll23, acevedo, matek19, bmc, aml_hehr or fields.",
)
@click.option(
    "--on-error",
    type=click.Choice(["quarantine", "fail"]),
    default="quarantine",
    show_default=True,
    help="What to do with an image that cannot be read whole.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=NAME",
    help="Manifest and image parquet: which column holds image, label, patient, diagnosis, dataset, split, "
    "mask or um_per_px.",
)
@click.option("--um-per-px", type=float, help="Micrometres per pixel, where the source does not say it.")
@click.option("--cut-um", type=float, help="Cut a square of so many micrometres around every cell.")
@click.option(
    "--box-factor",
    type=float,
    default=1.3,
    show_default=True,
    help="Fields: side of the square around a box, as a multiple of its longer side.",
)
@click.option(
    "--boxes",
    type=click.Choice(["auto", "voc", "coco", "yolo"]),
    default="auto",
    show_default=True,
    help="Fields: how the boxes are written.",
)
@click.option("--folds", type=click.Path(path_type=Path), help="aml_hehr: folder of the published folds.")
@click.option(
    "--fold",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="aml_hehr: the fold that becomes the column split.",
)
@click.option(
    "--near-duplicates/--no-near-duplicates",
    default=True,
    show_default=True,
    help="Search images that show the same cell.",
)
@click.option("--page/--no-page", default=True, show_default=True, help="Write cells.html.")  # fmt: skip
def read(source: Path, out: Path, **given: Any) -> None:
    """Read SOURCE (class folders, a manifest, an image parquet, a known data set, or 'bundled') into a table of cells.

    Every image is opened once. What cannot be read whole is kept in the table as quarantined, with the reason. What
    deserves a look is printed, and shown with pictures in cells.html. A killed run goes on from where it was.

    \b
    cytosae cells split CELLS --out X --by patient --parts train=0.8,test=0.2
    cytosae cells merge A B --out X
    """
    from cytosae.cells import Cut, LayoutOptions, audit_cells, build_table, bundled_path, write_page

    if str(source) == "bundled":
        source = bundled_path()
    options = LayoutOptions(_columns(given["columns"]), given["folds"], given["fold"], given["boxes"])
    cut = Cut(given["cut_um"], given["box_factor"], given["um_per_px"])
    built = build_table(source, out, layout=given["layout"], on_error=given["on_error"], options=options, cut=cut,
                        near_duplicates=given["near_duplicates"])  # fmt: skip
    audit = audit_cells(out)
    if _progress._enabled:  # --quiet leaves the last line only
        passed = [f"passed over: {n:,} {reason}" for reason, n in built.passed_over.items()]
        for line in [*audit.lines(), *(f"  {note}" for note in [*built.notes, *passed])]:
            click.echo(line)
    text = f"Wrote {out}"
    if given["page"]:
        page = out.with_suffix(".html")
        write_page(audit, out, page, notes=built.notes, passed_over=built.passed_over)
        text += f" and {page.name}"
    n_labels = sum(1 for name, _ in audit.counts.get("label", []) if name != "(none)")
    text += f": {built.n_cells:,} cells, {n_labels} labels"
    if built.n_quarantined:
        text += f"; {built.n_quarantined} quarantined (the first: {built.first})"
    done(text + ".")


@verb("split", compute=False, out="The cells.parquet to write.")
@click.argument("cells", type=click.Path(path_type=Path))
@click.option(
    "--by",
    default="",
    metavar="COLUMN,...",
    help="Columns whose groups stay together [default: patient, slide, source_field, as far as known]; "
    "near_duplicate_group always is one.",
)
@click.option("--parts", default="train=0.8,val=0.1,test=0.1", show_default=True, help="Names and shares.")
@click.option(
    "--stratify",
    default="label",
    show_default=True,
    metavar="COLUMN",
    help="Column whose mix every part should have; '' for none.",
)
@click.option("--keep", is_flag=True, help="Keep splits that cells already have; hand out only the rest.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of the ties.")  # fmt: skip
def split(cells: Path, out: Path, by: str, parts: str, stratify: str, keep: bool, seed: int) -> None:
    """Fill the column split so that no group (patient, slide, field, near-duplicate cluster) lies in two parts."""
    from cytosae.cells import parse_parts, split_cells

    columns = [name.strip() for name in by.split(",") if name.strip()]
    result = split_cells(
        cells, out, parts=parse_parts(parts), by=columns, stratify=stratify or None, keep=keep, seed=seed
    )
    counts = result.ok["split"].value_counts()
    done(
        f"Wrote {out}: " + ", ".join(f"{name} {int(counts.get(name, 0)):,}" for name in parse_parts(parts)) + " cells."
    )


@verb("merge", compute=False, out="The cells.parquet to write.")
@click.argument("tables", nargs=-1, type=click.Path(path_type=Path))
def merge(tables: tuple[Path, ...], out: Path) -> None:
    """Make one table of the cells of several; every cell keeps its source and its number there."""
    from cytosae.cells import merge_cells

    result = merge_cells(tables, out)
    text = f"Wrote {out}: {len(result):,} cells of {len(tables)} tables"
    done(text + (f"; {result.n_quarantined} quarantined." if result.n_quarantined else "."))


class _Cells(click.Command):
    """The verb itself, or one of its two words where the first argument names it (a folder of that name: ``./merge``)."""

    words: ClassVar[dict[str, click.Command]] = {"split": split, "merge": merge}

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None,
                     **extra: Any) -> click.Context:  # fmt: skip
        if args and args[0] in self.words:
            return self.words[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return read.make_context(info_name, args, parent, **extra)


command = _Cells("cells", help=read.help, params=read.params, callback=read.callback)


def _columns(given: tuple[str, ...]) -> dict[str, str]:
    fields = ("image", "label", "patient", "diagnosis", "dataset", "split", "mask", "um_per_px")
    found: dict[str, str] = {}
    for item in given:
        target, sign, name = item.partition("=")
        if not sign or not name:
            raise UsageError(f"--column {item!r} is not of the form field=name; for instance label=cell_type.")
        if target not in fields:
            raise UsageError(f"--column cannot set {target!r}{nearest(target, fields)}.")
        found[target] = name
    return found
