"""Build the documentation: the page of verbs from the command line itself, then the site, any warning being an error.

Usage: ``python docs/build.py [--verbs-only]``
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from cytosae.cli._main import VERBS, cli

DOCS = Path(__file__).parent
#: verb -> what its picture shows, and the picture
PICTURES = {
    "cells": ("The page that cells writes beside its table", "cells-page.png"),
    "explain": ("An eosinophil and seven of its concepts", "explain.jpg"),
    "patients": ("Profiles of 24 simulated patients", "heatmap.jpg"),
    "report": ("The head of a report", "report-top.jpg"),
}


def verbs_page() -> str:
    """Markdown of all verbs with their arguments, options and defaults."""
    parts = ["# The verbs\n", "Made from the command line itself by `make docs`.\n"]
    with click.Context(cli, info_name="cytosae") as top:
        for name in VERBS:
            command = cli.get_command(top, name)
            assert command is not None
            parts += _section(command, name, top, "##")
            if name in PICTURES:
                parts.append("![{}](images/{})\n".format(*PICTURES[name]))
    return "\n".join(parts).rstrip() + "\n"


def _section(command: click.Command, name: str, parent: click.Context, mark: str) -> list[str]:
    with click.Context(command, info_name=name, parent=parent) as context:
        usage = " ".join(command.collect_usage_pieces(context))
        parts = [f"{mark} {name}\n", f"```\n{context.command_path} {usage}\n```\n"]
        parts += [_paragraph(p) + "\n" for p in (command.help or "").split("\n\n")]
        options = [p for p in command.params if isinstance(p, click.Option) and p.name != "help"]
        rows = [record for option in options if (record := option.get_help_record(context))]
        parts += ["| option | meaning |", "| --- | --- |"]
        parts += [
            f"| `{left.replace('|', chr(92) + '|')}` | {right.replace('|', chr(92) + '|')} |" for left, right in rows
        ]
        parts.append("")
        if isinstance(command, click.Group):
            for below in command.list_commands(context):
                inner = command.get_command(context, below)
                if inner is not None:
                    parts += _section(inner, below, context, mark + "#")
    for word, inner in getattr(command, "words", {}).items():
        parts += _section(inner, f"{name} {word}", parent, mark + "#")
    return parts


def _paragraph(text: str) -> str:
    """A paragraph of a help; behind click's mark for lines as they are, a block of code."""
    if text.strip().startswith("\b"):
        return "```\n" + "\n".join(line.strip() for line in text.strip().splitlines()[1:]) + "\n```"
    return " ".join(text.split())


def main() -> None:
    """Write the page of verbs, then build the site."""
    (DOCS / "verbs.md").write_text(verbs_page(), "utf-8")
    if "--verbs-only" not in sys.argv:
        subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"],
            cwd=DOCS.parent,
            check=True,
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        )
        print(f"Wrote {DOCS.parent / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
