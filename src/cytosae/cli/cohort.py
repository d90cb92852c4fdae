"""``cytosae cohort``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae._errors import UsageError, nearest
from cytosae.cli._common import done, verb


class _Cohort(click.Group):
    """A group that names the nearest verb."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise UsageError(f"There is no verb 'cohort {args[0]}'{nearest(args[0], self.commands)}.")
        return super().resolve_command(ctx, args)


@click.group("cohort", cls=_Cohort)
def command() -> None:
    """Make cohorts of patients."""


@verb("simulate", compute=False, out="The cells.parquet of the cohort to write.")
@click.argument("spec")
@click.option("--cells", type=click.Path(path_type=Path), required=True, help="The real cells (a cells.parquet).")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of the draw.")
def simulate(spec: str, cells: Path, out: Path, seed: int) -> None:
    """Make simulated patients of real labelled cells, as SPEC says (a YAML or JSON file, or 'demo').

    Every cell is used at most once, unless SPEC says reuse. Pictures of batches (colour cast, blur, JPEG, scale) are written
    beside the table. Patients and diagnoses are named as simulated wherever they appear.
    """
    from cytosae.cells import read_cells
    from cytosae.patients import simulate_cohort

    cohort = simulate_cohort(spec, read_cells(cells), out, seed=seed).frame
    n_cells = cohort["source_cell_id"].nunique()
    used = "each used once" if n_cells == len(cohort) else f"{n_cells:,} different ones"
    if "batch" in cohort:
        used += f"; pictures of {cohort['batch'].nunique()} batches in {out.stem}-images, extract their tokens anew"
    done(
        f"Wrote {out}: {cohort['patient'].nunique()} simulated patients of {cohort['diagnosis'].nunique()} made-up "
        f"diagnoses, {len(cohort):,} real cells, {used}."
    )


command.add_command(simulate)
