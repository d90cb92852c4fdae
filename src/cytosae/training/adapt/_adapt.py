"""From cells to an adapted backbone: views once, then step by step from the last checkpoint, and the folder at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cytosae._errors import CytosaeError, UsageError
from cytosae._memory import kept_memory
from cytosae._progress import Meter, say
from cytosae.backbones import ADAPTED, ADAPTED_FILE, ADAPTED_VERSION, Backbone
from cytosae.cells import Cells, select
from cytosae.storage import commit_folder, same_work
from cytosae.tokens import load_images
from cytosae.training._checkpoint import load_checkpoint, readable_steps, save_checkpoint
from cytosae.training._log import forget_after
from cytosae.training._stop import StopBetweenSteps
from cytosae.training.adapt._adaptation import Adaptation
from cytosae.training.adapt._adapter import Adapter
from cytosae.training.adapt._views import Views, view

_LOG_EVERY, _CHECKPOINT_EVERY = 10, 100
#: Cells of the picture of views, and the side of one view in it.
_SHOWN, _SHOWN_SIDE = 8, 112
#: Tokens that spread over fewer than this share of the dimensions they had are called collapsed.
_COLLAPSED = 0.2


def adapt(
    cells: Cells,
    backbone: Backbone,
    out: Path | str,
    config: Adaptation | None = None,
    *,
    layer: int = -2,
    where: Sequence[str] = (),
    seed: int = 0,
    bfloat16: bool = False,
) -> dict[str, float]:
    """Train the later blocks of a backbone on cells without their labels, so that another stain changes tokens less.

    Parameters
    ----------
    cells
        The table.
    backbone
        Where it starts, in float32; it is not changed.
    out
        The folder to write: ``backbone.safetensors`` (the whole network), ``metrics.jsonl``, ``views.jpg``. Loaded by
        ``load_backbone("adapted", weights=out)``.
    config
        Every number of the training. [default: `Adaptation()`]
    layer
        The last block that is trained: the one whose tokens are wanted. Later blocks stay as they are.
    where
        Conditions that choose the cells. Labels are not looked at; leave out what is to be scored as another laboratory.
    seed
        Of heads, order, masks and drops; the views of a cell are the same for every seed.
    bfloat16
        Whether to multiply in bfloat16; weights and moments stay float32.

    Returns
    -------
    `Adapter.measure` before (``stain_before`` ...) and after.

    Raises
    ------
    CytosaeError
        Too few cells, a full disk, or a loss that is no longer a number.
    UsageError
        No block is left to train, or the network is not in float32.
    """
    out, config = Path(out), config or Adaptation()
    last = backbone.block_number(layer)
    first = round(config.frozen * backbone.depth)
    if first > last:
        raise UsageError(
            f"frozen={config.frozen:g} keeps blocks 0 to {first - 1} of {backbone.name} as they are, and --layer {layer} ends "
            f"at block {last}: nothing is left to train; take a smaller --set frozen=..., or a later --layer."
        )
    if backbone.precision != "float32":
        raise UsageError("An adaptation starts from weights in float32; load the backbone with precision='float32'.")
    frame = select(cells, where)
    if len(frame) < 2 * config.batch:
        raise CytosaeError(
            f"{len(frame)} cells are too few to adapt to: a step takes {config.batch} of them; choose more (--where), or set "
            "batch lower."
        )
    inputs = {"cells": cells.hash, "backbone": backbone.weights_sha256}
    record: dict[str, Any] = {
        "adaptation": config.as_dict(), "base": backbone.record, "blocks": [first, last], "where": list(where), "seed": seed,
        "products": "bfloat16" if bfloat16 else "float32", "threads": torch.get_num_threads(),
    }  # fmt: skip
    if same_work(out, ADAPTED, inputs, record):
        say(f"adapt: {out} is there already")
        found: dict[str, float] = json.loads((out / "manifest.json").read_text("utf-8"))["measures"]
        return found
    with commit_folder(
        out, kind=ADAPTED, version=ADAPTED_VERSION, inputs=inputs, config=record, resume=True
    ) as (folder, extra), kept_memory(), torch.random.fork_rng(devices=[]):  # fmt: skip
        _write_picture(folder / "views.jpg", frame, cells.root, backbone, config)
        views = Views(folder / ".views", config.views, len(frame), backbone.n_tokens, backbone.d_in)
        views.write(frame, cells.root, backbone, first, bfloat16)
        steps = readable_steps(folder)
        start = max(steps, default=0)
        if not start:
            say("adapt: prototypes")
        adapter = Adapter(views, backbone, config, first, last, seed, bfloat16=bfloat16, fresh=not start)
        before = folder / ".before.json"
        if start:
            load_checkpoint(folder, start, adapter.state())
            adapter.restore()
        else:
            before.write_text(json.dumps(adapter.measure()), "utf-8")
        _train(adapter, folder, start)
        was, now = json.loads(before.read_text("utf-8")), adapter.measure()
        if now["n_dimensions"] < _COLLAPSED * was["n_dimensions"]:
            raise CytosaeError(
                f"The tokens collapsed: they spread over {now['n_dimensions']:.1f} dimensions, {was['n_dimensions']:.1f} before; "
                "take a lower rate (--set lr=...) or more cells."
            )
        _save(folder / ADAPTED_FILE, adapter.weights(backbone))
        measures = {f"{name}_before": value for name, value in was.items()} | now
        extra |= {
            "base": backbone.record, "preprocessing": backbone.preprocessing.as_dict(), "blocks": [first, last],
            "n_cells": len(frame), "n_quarantined": cells.n_quarantined, "measures": measures,
        }  # fmt: skip
    return measures


def _train(adapter: Adapter, folder: Path, start: int) -> None:
    config = adapter.config
    with (folder / "metrics.jsonl").open("r+" if start else "w", encoding="utf-8") as file:
        forget_after(file, start)
        with Meter(config.steps, "adapt", "steps") as meter, StopBetweenSteps() as stop:
            meter.add(start)
            for step in range(start, config.steps):
                line = {"step": step, **adapter.step(step)}
                if not math.isfinite(line["class"] + line["patch"]):
                    raise CytosaeError(
                        f"The loss is no longer a number at step {step}; the last checkpoint is whole; lower the rate "
                        "(--set lr=...)."
                    )
                if step % _LOG_EVERY == 0 or step == config.steps - 1:
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                meter.add(1, f"class {line['class']:.2f}, patch {line['patch']:.2f}")
                last = step + 1 == config.steps
                if ((step + 1) % _CHECKPOINT_EVERY == 0 or stop.asked) and not last:
                    if not adapter.is_finite():
                        raise CytosaeError(
                            f"The weights are no longer numbers after step {step}; the last checkpoint is whole; lower the "
                            "rate (--set lr=...)."
                        )
                    save_checkpoint(folder, step + 1, adapter.state())
                if stop.asked:
                    stop.give_way()


def _write_picture(path: Path, frame: Any, root: str, backbone: Backbone, config: Adaptation) -> None:
    """A row for each of some cells: the cell, then its views."""
    some = np.unique(np.linspace(0, len(frame) - 1, _SHOWN).round().astype(int))
    images = load_images(frame.iloc[some], root, backbone)
    rows = [
        np.concatenate(
            [_small(image), *(_small(view(image, int(cell), number)) for number in range(config.views))], axis=1
        )
        for cell, image in zip(some, images, strict=True)
    ]
    Image.fromarray(np.concatenate(rows)).save(path, "JPEG", quality=90)


def _small(image: Any) -> Any:
    return np.asarray(Image.fromarray(image).resize((_SHOWN_SIDE, _SHOWN_SIDE), Image.Resampling.LANCZOS))


def _save(path: Path, weights: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
