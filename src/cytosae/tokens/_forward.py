"""Which forward pass an extraction uses, eager or compiled: chosen once, written down before the first shard, and kept."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae._progress import say
from cytosae.backbones import Backbone, Layer, probe, why_not_compiled
from cytosae.storage import commit_file, write_json

MODES = ("auto", "on", "off")
#: Lies beside the shards of a store whose forward pass is compiled, from before the first of them to the end: a hidden file
#: would go before the manifest is there. Shards without it are eager.
RECORD = "forward.json"
#: Seconds that compiling takes; measured 12 to 32 on two cores.
COST = 30.0
#: Compiling is tried where the rest takes this many times as long, so that at most 5% can be lost.
WORTH = 20
#: Batches below which nothing is even timed.
FEWEST = 64
#: Compiled code is kept where it is faster by this factor; below it is noise.
FASTER = 1.03
_ROUNDS = 3


def choose_forward(
    backbone: Backbone, layer: Layer, mode: str, *, batch: int, n_left: int, folder: Path
) -> dict[str, Any]:
    """Set `backbone` up to run eager or compiled, as recorded in `folder`, or else as it pays.

    ``auto`` compiles where the rest of the work, at the speed measured, takes `WORTH` times what compiling costs, and keeps
    the compiled code where it then is faster by `FASTER`. What cannot be compiled stays eager, which one line says.

    Parameters
    ----------
    backbone, layer
        The network, and the block whose output is wanted.
    mode
        ``auto``, ``on`` or ``off``.
    batch, n_left
        Images a batch; batches still to be done.
    folder
        Of the unfinished store.

    Returns
    -------
    dict
        For the manifest: ``compiled``, and where it is also ``torch`` and ``cpu``, with which the numbers may change.

    Raises
    ------
    CytosaeError
        The store was begun compiled, and here the same cannot be compiled.
    """
    backbone.compiled = 0
    path = folder / RECORD
    if path.is_file():
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if n_left:
            _compile_again(backbone, layer, batch, record, folder)
        return record
    begun = any(folder.glob("tokens-*.bin"))
    if mode == "off" or begun or not (_compile if mode == "on" else _pays)(backbone, layer, batch, n_left):
        return {"compiled": False}
    record = {"compiled": True, **_here()}
    with commit_file(path) as temporary:
        write_json(temporary, record)
    return record


def check_mode(mode: str) -> None:
    """Raise UsageError for a `mode` that does not exist."""
    if mode not in MODES:
        raise UsageError(f"There is no compile mode {mode!r}{nearest(mode, MODES)}.")


def _compile(backbone: Backbone, layer: Layer, batch: int, n_left: int) -> bool:
    """Compile; False, with one line on why, where that cannot be done."""
    say("tokens: compiling the forward pass")
    try:
        backbone.compile(batch, layer)
    except CytosaeError as error:
        say(f"tokens: the forward pass stays eager. {error}")
        return False
    return True


def _compile_again(backbone: Backbone, layer: Layer, batch: int, record: dict[str, Any], folder: Path) -> None:
    here = _here()
    differs = [f"{key} {record.get(key)} and here it is {here[key]}" for key in here if record.get(key) != here[key]]
    begun = f"The unfinished tokens in {folder} were begun with a compiled forward pass"
    if differs:
        raise CytosaeError(
            f"{begun} by {', '.join(differs)}, so that their numbers would not fit together; go on where it was begun, "
            "or begin anew with --compile off or another --out."
        )
    say("tokens: compiling the forward pass again, as this store was begun")
    try:
        backbone.compile(batch, layer)
    except CytosaeError as error:
        why = str(error).rpartition(";")[0]
        raise CytosaeError(
            f"{begun}, which would not fit eager tokens. {why}; mend that, or begin anew with --compile off or another --out."
        ) from error


def _pays(backbone: Backbone, layer: Layer, batch: int, n_left: int) -> bool:
    """Whether compiling pays for the batches left; the backbone is compiled if so, and eager if not."""
    if n_left < FEWEST or why_not_compiled(backbone.device):
        return False
    images = probe(batch, backbone.preprocessing.side)
    if n_left * _seconds(backbone, images, layer) < WORTH * COST:
        return False
    if not _compile(backbone, layer, batch, n_left):
        return False
    times: dict[int, list[float]] = {0: [], batch: []}
    for _ in range(_ROUNDS):
        for size in times:
            backbone.compiled = size
            times[size].append(_seconds(backbone, images, layer))
    gain = min(times[0]) / min(times[batch])
    keep = gain >= FASTER
    say(f"tokens: compiled it is {gain:.2f} times as fast{'' if keep else ', so the forward pass stays eager'}")
    backbone.compiled = batch if keep else 0
    return keep


def _seconds(backbone: Backbone, images: Any, layer: Layer) -> float:
    started = time.perf_counter()
    float(backbone.tokens(images, layer).sum())  # a number on the host: the device has finished
    return time.perf_counter() - started


def _here() -> dict[str, str]:
    """What compiled numbers depend on beside the network, its precision and the number of threads."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
