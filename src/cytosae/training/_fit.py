"""The fit loop, top to bottom: tokens in a reproducible order, a step for every dictionary, and the folders at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cytosae._errors import CytosaeError, UsageError
from cytosae._progress import Meter, say
from cytosae.cells import Cells, select
from cytosae.sae import KIND, VERSION, SparseAutoencoder, load_sae, save_sae
from cytosae.sae.ops import choose
from cytosae.storage import commit_folder, same_work
from cytosae.tokens import TokenStore, TokenStream, turned
from cytosae.training._checkpoint import load_checkpoint, readable_steps, save_checkpoint
from cytosae.training._log import forget_after
from cytosae.training._measure import measure
from cytosae.training._patches import training_patches
from cytosae.training._recipes import Recipe
from cytosae.training._stop import StopBetweenSteps
from cytosae.training._stream import SAMPLE, CellStream, Stream
from cytosae.training._trainer import TokenFacts, Trainer

_LOG_EVERY, _CHECKPOINT_EVERY = 20, 100
#: Multiplications of one product of a step, below which one thread is used.
_SMALL_STEP = 2**29
#: What all members of a sweep share, since they see the same tokens in the same steps.
SHARED = ("tokens", "background", "cells_per_step", "presentations", "batch")

Log = Callable[[str, dict[str, float]], None]


class Member(NamedTuple):
    """One dictionary to train: where it goes, its recipe, and the seed of its start."""

    out: Path
    recipe: Recipe
    seed: int


def fit(
    store: TokenStore,
    cells: Cells,
    recipe: Recipe,
    out: Path | str,
    *,
    seed: int = 0,
    where: Sequence[str] = ("split=train",),
    heldout: Sequence[str] = ("split!=train",),
    device: str = "cpu",
    log: Log | None = None,
) -> SparseAutoencoder:
    """Train a sparse autoencoder on the tokens of some cells.

    Parameters
    ----------
    store, cells
        Tokens, and the table that says which cells may be used.
    recipe
        Every number of the training.
    out
        The SAE folder to write.
    seed
        Of the order of tokens and of the start.
    where, heldout
        Conditions that choose the cells to train on, and those on which the final metrics are measured.
    device
        As torch names it.
    log
        Called with the folder's name and each line of ``metrics.jsonl`` (`tensorboard_log` makes one).

    Raises
    ------
    CytosaeError
        No cells, too few tokens, or the loss is no longer a number.
    """
    member = Member(Path(out), recipe, seed)
    fit_many(store, cells, [member], seed=seed, where=where, heldout=heldout, device=device, log=log)
    return load_sae(out, device=device)


def fit_many(
    store: TokenStore,
    cells: Cells,
    members: Sequence[Member],
    *,
    seed: int = 0,
    where: Sequence[str] = ("split=train",),
    heldout: Sequence[str] = ("split!=train",),
    device: str = "cpu",
    log: Log | None = None,
) -> None:
    """Train several dictionaries in one pass over the tokens; parameters as in `fit`.

    `seed` is that of the order of tokens, which all share. A member whose own seed is the same ends with the bytes that
    `fit` alone gives.

    Raises
    ------
    UsageError
        Recipes that differ in what has to be shared.
    """
    for key in SHARED:
        if len({getattr(m.recipe, key) for m in members}) > 1:
            raise UsageError(f"Dictionaries trained in one pass share {key}; give it with --set, or train them apart.")
    train_rows, test_rows = _rows(store, cells, where, heldout)
    first = members[0].recipe
    threads = training_threads(first, store.d_in, store.n_blocks)
    inputs = {"tokens": store.hash, "cells": cells.hash}
    open_members, configs = [], []
    for m in members:
        dense_start = m.recipe.model == "relu-l1"
        size = m.recipe.expansion * store.d_in // store.n_blocks
        if m.recipe.k > size:
            raise UsageError(
                f"k={m.recipe.k} is more than the {size:,} latents of the dictionary; take a smaller k or a larger expansion."
            )
        path = choose(device, store.d_in, size, products=m.recipe.products, dense_start=dense_start)
        config = {"recipe": m.recipe.as_dict(), "seed": m.seed, "order_seed": seed, "where": list(where), "heldout": list(heldout),
                  "path": path.name, "semantics": semantics(m.recipe), "threads": threads}  # fmt: skip
        if same_work(m.out, KIND, inputs, config):
            say(f"fit: {m.out} is there already")
        else:
            open_members.append((m, path))
            configs.append(config)
    if not open_members:
        return

    with ExitStack() as stack:
        folders = [
            stack.enter_context(commit_folder(m.out, kind=KIND, version=VERSION, inputs=inputs, config=c, resume=True))
            for (m, _), c in zip(open_members, configs, strict=True)
        ]
        stack.enter_context(_threads(threads))
        stack.enter_context(_no_denormals())
        stream = _stream(store, cells, where, train_rows, first, seed)
        n_steps = max(1, first.presentations // stream.batch)
        facts = TokenFacts.of(
            stream.sample(SAMPLE, seed), stream.cells_at(0) if isinstance(stream, CellStream) else None, store.n_blocks
        )
        trainers = [Trainer(m.recipe, m.seed, facts, path, n_steps, device) for m, path in open_members]
        names = [m.out.name for m, _ in open_members]
        train(trainers, stream, [folder for folder, _ in folders], n_steps, names=names, log=log)
        for (m, _), trainer, (folder, extra) in zip(open_members, trainers, folders, strict=True):
            sae, summary = trainer.finish(stream.sample(SAMPLE, seed + 1))
            metrics = measure(sae, store, test_rows, m.recipe.tokens, facts.sample, seed) if len(test_rows) else {}
            info = {
                "recipe": m.recipe.name, "hyperparameters": m.recipe.as_dict(), "seed": m.seed, "semantics": semantics(m.recipe),
                "token_kinds": ["class", "patch"] if m.recipe.tokens == "all" else [m.recipe.tokens],
                "backbone": store.manifest["backbone"], "layer": store.manifest["layer"],
                "preprocessing": store.manifest["preprocessing"], "precision": store.manifest["precision"],
                "tokens": store.hash, "n_cells_train": len(train_rows), "n_tokens_train": stream.n_tokens,
                **({"n_views": store.n_views} if store.n_views > 1 else {}), "n_cells_heldout": len(test_rows), "metrics": metrics, "training": {**summary, **stream.record},
            }  # fmt: skip
            save_sae(folder, sae, info)
            extra["metrics"] = metrics


def train(
    trainers: Sequence[Trainer],
    stream: Stream,
    folders: Sequence[Path],
    n_steps: int,
    *,
    names: Sequence[str] = (),
    log: Log | None = None,
) -> None:
    """The loop: every dictionary takes the same tokens, step by step, from the last checkpoint that all have.

    Parameters
    ----------
    trainers, folders
        The dictionaries, and the working folder of each (``metrics.jsonl`` and the checkpoints).
    stream
        Gives the tokens of a step.
    n_steps
        Steps in all.
    names, log
        What `log` is called with for each dictionary; see `fit`.
    """
    common = set(readable_steps(folders[0])).intersection(*(readable_steps(f) for f in folders[1:]))
    first = max(common, default=0)
    with ExitStack() as stack:
        files = [
            stack.enter_context((f / "metrics.jsonl").open("r+" if first else "w", encoding="utf-8")) for f in folders
        ]
        for trainer, folder, file in zip(trainers, folders, files, strict=True):
            if first:
                load_checkpoint(folder, first, trainer.state())
            forget_after(file, first)
        meter = stack.enter_context(Meter(n_steps * stream.batch, "fit", _unit(stream)))
        stop = stack.enter_context(StopBetweenSteps())
        meter.add(first * stream.batch)
        for step in range(first, n_steps):
            tokens = stream.at(step)
            for i, (trainer, file) in enumerate(zip(trainers, files, strict=True)):
                line = {"step": step, "tokens": (step + 1) * len(tokens), **trainer.step(tokens, step)}
                if step % _LOG_EVERY == 0 or step == n_steps - 1:
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                    if log is not None:
                        log(names[i], line)
            meter.add(stream.batch, f"error {line['error']:.3f}, {line['l0']:.1f} a token, {line['n_dead']} dead")
            last = step + 1 == n_steps
            if ((step + 1) % _CHECKPOINT_EVERY == 0 or stop.asked) and not last:
                for trainer, folder in zip(trainers, folders, strict=True):
                    if not trainer.is_finite():
                        raise CytosaeError(
                            f"The weights are no longer numbers after step {step}; the last checkpoint is whole; "
                            "lower the learning rate (--set lr=...)."
                        )
                    save_checkpoint(folder, step + 1, trainer.state())
            if stop.asked:
                stop.give_way()


def semantics(recipe: Recipe) -> str:
    """``cytosae-2025`` for the published loss on all tokens, else ``default``."""
    return "cytosae-2025" if recipe.error == "norm" and recipe.tokens == "all" else "default"


def _rows(store: TokenStore, cells: Cells, where: Sequence[str], heldout: Sequence[str]) -> tuple[Any, Any]:
    train, test = (
        store.rows_of(frame["cell_id"].to_numpy(), frame["sha256"].tolist())
        for frame in (select(cells, where), select(cells, heldout) if heldout else cells.frame.iloc[:0])
    )
    if len(np.intersect1d(train, test)):
        raise CytosaeError("Some cells are both trained on and held out; make the two selections disjoint.")
    return train, test


def _stream(store: TokenStore, cells: Cells, where: Sequence[str], rows: Any, recipe: Recipe, seed: int) -> Stream:
    every = store.views_of(rows)
    if recipe.cells_per_step:
        return CellStream(store, every, recipe.cells_per_step, seed, recipe.tokens)
    kept = None
    if recipe.background < 1:
        kept = training_patches(select(cells, where), cells.root, store.grid, recipe.background, seed)
        kept = np.concatenate([turned(kept.reshape(-1, *store.grid), v).ravel() for v in range(store.n_views)])
    return TokenStream(store, every, kept, recipe.batch, seed, recipe.tokens)


def _unit(stream: Stream) -> str:
    return "cells" if isinstance(stream, CellStream) else "tokens"


def training_threads(recipe: Recipe, d_in: int, n_blocks: int = 1) -> int:
    """Threads for a step: one where its products are so small that threads would mostly wait for each other.

    At 512 tokens and 768 latents a second thread adds a fifth on an idle machine, and beside another busy process costs a
    factor of ten.
    """
    work = recipe.batch * recipe.expansion * d_in * d_in // n_blocks
    return 1 if work < _SMALL_STEP else torch.get_num_threads()


@contextmanager
def _no_denormals() -> Iterator[None]:
    """Numbers below 1e-38 are zeros: Adam's averages of silent latents sink there, and slow every step down.

    For this thread and those of the compiled path; which of torch's others follow is not promised. They are started first, since
    one that starts in this mode would keep it.
    """
    torch.ones(1 << 20).mul_(0.5)
    before = float(torch.tensor([1e-40]).mul(0.5)) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
