"""``cytosae import``: a group, so that every legacy artifact is a verb of its own."""

from __future__ import annotations

import click

from cytosae._errors import UsageError, nearest
from cytosae.cli.import_statistics import command as statistics


class _Import(click.Group):
    """A group that names the nearest verb."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise UsageError(f"There is no verb 'import {args[0]}'{nearest(args[0], self.commands)}.")
        return super().resolve_command(ctx, args)


@click.group("import", cls=_Import)
def command() -> None:
    """Make artifacts of other programs' files. Nothing in them is executed."""


command.add_command(statistics)
