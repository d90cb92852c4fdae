"""What every verb shares: its options, and how it says what was written."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cytosae._errors import UsageError
from cytosae._progress import enable_progress

F = TypeVar("F", bound=Callable[..., Any])


def verb(
    name: str, *, compute: bool = True, device: bool = True, out: str | None = None
) -> Callable[[F], click.Command]:
    """Make a click command of a function, with the options that every verb has.

    Parameters
    ----------
    name
        The verb.
    compute
        Whether it has ``--device``, ``--threads`` and ``--seed`` (set up before the function runs; the function
        receives ``device`` and ``seed``).
    device
        Whether ``--device`` is among them; without, the verb computes on the processor.
    out
        Help of ``--out``; no such option where None.
    """

    def wrap(function: F) -> click.Command:
        @functools.wraps(function)
        def call(**options: Any) -> None:
            options.pop("debug")
            enable_progress(not options.pop("quiet"))
            signal.signal(signal.SIGTERM, _terminated)
            if compute:
                chosen = set_up(options.pop("device", "cpu"), options.pop("threads"))
                options |= {"device": chosen} if device else {}
            function(**options)

        command: Any = call
        command = click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")(command)
        command = click.option("--quiet", is_flag=True, help="No progress, only the last line.")(command)
        if compute:
            command = click.option(
                "--threads",
                type=click.IntRange(1, 4096),
                default=None,
                help="Processor threads (default: all).",
            )(command)
            if device:
                command = click.option(
                    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
                )(command)
            command = click.option(
                "--seed",
                type=click.IntRange(0, 2**31 - 1),
                default=0,
                show_default=True,
                help="Seed of everything random.",
            )(command)
        if out is not None:
            command = click.option("--out", type=click.Path(path_type=Path), required=True, help=out)(command)
        return click.command(name)(command)

    return wrap


def set_up(device: str, threads: int | None) -> str:
    """Check the device, set the number of threads, and give the device's name."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.zeros(1, device=torch.device(device)).is_meta:
            raise ValueError("meta tensors hold nothing")
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise UsageError(f"The device {device!r} is not available here; use --device cpu.") from error
    return device


def where_option(function: Any) -> Any:
    """``--where``: which cells."""
    text = "Only cells that fulfil this; repeatable, all must hold. column!=value excludes, commas separate values."
    return click.option("--where", multiple=True, metavar="COLUMN=VALUE", help=text)(function)


def precision(wanted: str, device: str) -> str:
    """The precision of the forward pass; ``auto`` asks the processor."""
    if wanted != "auto":
        return wanted
    from cytosae.training import has_bfloat16

    return "bfloat16" if has_bfloat16(device) else "float32"


def find_cells(given: Path | None, beside: Path, wanted: str) -> Path:
    """The table an artifact was made from: the one given, or the one beside the artifact that has the recorded hash.

    Raises
    ------
    UsageError
        None is given and none fits.
    """
    from cytosae.storage import artifact_hash

    if given is not None:
        return given
    for path in sorted(beside.resolve().parent.glob("*.parquet")):
        if artifact_hash(path) == wanted:
            return path
    raise UsageError(f"The table that {beside} was made from does not lie beside it; give it with --cells.")


def chosen_sae(given: Path | None, verb: str) -> Path:
    """The dictionary given, or the bundled one, with a line that says so.

    Raises
    ------
    CytosaeError
        None is given, and the package holds none.
    """
    from cytosae._progress import say
    from cytosae.sae import bundled_folder, find_sae

    if given is not None:
        return find_sae(given)
    folder = bundled_folder()
    say(f"{verb}: with the bundled dictionary (its card: {folder / 'MODEL_CARD.md'}); another one with --sae")
    return folder / "sae"


def done(text: str) -> None:
    """The last line of a verb: what was written."""
    print(text, file=sys.stdout, flush=True)


def _terminated(signum: int, frame: Any) -> None:
    print(
        "cytosae: Terminated. What was finished is kept; the same command goes on from there.",
        file=sys.stderr,
    )
    sys.exit(143)
