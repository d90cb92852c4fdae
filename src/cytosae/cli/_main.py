"""Entry point: finds the verb, runs it, and turns errors into one sentence and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NoReturn

import click

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae._version import __version__

#: verb -> (module below cytosae.cli, one line of help), in the order in which they are used
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Run every stage on the bundled real cells, from pixels to report.html."),
    "cells": ("cells", "Read a folder, manifest or image parquet into a checked cells.parquet."),
    "backbones": ("backbones", "List the backbones: size, licence, origin, present or not."),
    "adapt": ("adapt", "Adapt the later blocks of a backbone to your cells, without labels."),
    "tokens": ("tokens", "Run a frozen backbone over the cells and keep its tokens."),
    "fit": ("fit", "Train a sparse autoencoder on tokens."),
    "import": ("import_", "Make artifacts of other programs' files, without executing anything in them."),
    "index": ("index", "Find exemplars, statistics and labels of every concept."),
    "names": ("names", "Name concepts, with who says so and when, or list the names."),
    "compare": ("compare", "Lay the same concepts on several sets of cells side by side."),
    "atlas": ("atlas", "Lay the concepts of an index out on a map, with suggested captions."),
    "explain": ("explain", "Show which concepts an image carries, and where."),
    "evaluate": ("evaluate", "Score a dictionary beside its controls: what a concept is worth."),
    "cohort": ("cohort", "Simulate patients made of real labelled cells."),
    "patients": ("patients", "Describe, compare and classify patients by the concepts of their cells."),
    "report": ("report", "Write one self-contained report.html of a run."),
    "export": ("export", "Write a dictionary where other people are: SAELens, Hugging Face."),
    "doctor": ("doctor", "Say what is here, what is missing, and the command that mends it."),
}


class _LazyGroup(click.Group):
    """A group whose verbs are imported when they are called, so that ``--help`` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"cytosae.cli.{VERBS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise UsageError(f"There is no verb {args[0]!r}{nearest(args[0], VERBS)}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs, in the order of the data"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with 'cytosae demo'. Research use only: nothing here is a diagnosis.",
)
@click.version_option(__version__, prog_name="cytosae")
def cli() -> None:
    """Make a cell foundation model readable: concepts of blood cells by sparse autoencoders."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command line and give the exit status."""
    debug = "--debug" in arguments
    # OpenMP's threads spin while they wait for each other; beside another busy process that halves the speed or worse.
    # Read when torch is loaded, which no verb has done yet.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        cli.main(args=arguments, prog_name="cytosae", standalone_mode=False)
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except click.UsageError as error:
        message = error.format_message()
        hint = f" See '{error.ctx.command_path} --help'." if error.ctx else ""
        return _fail(message + hint, 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("Stopped. What was finished is kept; the same command goes on from there.", 130)
    except CytosaeError as error:
        if debug:
            raise
        return _fail(str(error), 2 if error.usage else 1)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ImportError):
            return _fail(f"A library does not load ({error}); 'cytosae doctor' says what is missing.", 1)
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            return _fail("There is not enough memory for this; close other programs, or ask for something smaller.", 1)
        first = (str(error).splitlines() or [""])[0]
        return _fail(
            f"Something unforeseen went wrong ({type(error).__name__}: {first}); "
            "run the same command with --debug and report what it prints.", 1
        )  # fmt: skip


def _fail(message: str, status: int) -> int:
    print(f"cytosae: {message}", file=sys.stderr)
    return status
