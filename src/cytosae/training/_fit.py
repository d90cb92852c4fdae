"""The fit loop, top to bottom: tokens in a reproducible order, one step, the unit-norm decoder, and the folder at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cytosae._errors import CytosaeError
from cytosae._progress import Meter, say
from cytosae.cells import Cells, select
from cytosae.sae import KIND, VERSION, ReconstructionSums, SparseAutoencoder, load_sae, pca_fvu, save_sae
from cytosae.sae.ops import Parameters, auxiliary_step, main_step
from cytosae.storage import commit_folder, same_work
from cytosae.tokens import TokenOrder, TokenStore
from cytosae.training._calibrate import calibrate_threshold
from cytosae.training._checkpoint import load_checkpoint, save_checkpoint
from cytosae.training._patches import training_patches
from cytosae.training._recipes import Recipe

#: Tokens from which mean and scale are measured.
_SAMPLE = 100_000
_LOG_EVERY, _CHECKPOINT_EVERY = 20, 100
#: Multiplications of one product of a step, below which one thread is used.
_SMALL_STEP = 2**29


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
) -> SparseAutoencoder:
    """Train a sparse autoencoder on the patch tokens of some cells.

    Parameters
    ----------
    store, cells
        Tokens, and the table that says which cells may be used.
    recipe
        Every number of the training.
    out
        The SAE folder to write.
    where, heldout
        Conditions that choose the cells to train on, and those on which the final metrics are measured.

    Raises
    ------
    CytosaeError
        No cells, too few tokens, or the loss is no longer a number.
    """
    out = Path(out)
    train_cells = select(cells, where)
    train_rows = store.rows_of(train_cells["cell_id"].to_numpy())
    test_rows = store.rows_of(select(cells, heldout)["cell_id"].to_numpy()) if heldout else np.empty(0, np.int64)
    if len(np.intersect1d(train_rows, test_rows)):
        raise CytosaeError("Some cells are both trained on and held out; make the two selections disjoint.")
    dtype = product_dtype(recipe.products, device)
    threads = training_threads(recipe, store.d_in)
    inputs = {"tokens": store.hash, "cells": cells.hash}
    config = {
        "recipe": recipe.as_dict(), "seed": seed, "where": list(where), "heldout": list(heldout),
        "products": str(dtype).removeprefix("torch."), "semantics": "default", "threads": threads,
    }  # fmt: skip
    if same_work(out, KIND, inputs, config):
        say(f"fit: {out} is there already")
        return load_sae(out, device=device)

    with commit_folder(out, kind=KIND, version=VERSION, inputs=inputs, config=config, resume=True) as (folder, extra):
        kept = training_patches(train_cells, cells.root, store.grid, recipe.background, seed)
        x_train = store.read(train_rows, kind="patch").flatten(0, 1)[torch.from_numpy(kept)]
        with _threads(threads):
            sae, log = _train(x_train, recipe, seed, folder, device, dtype)
        metrics: dict[str, Any] = {}
        if len(test_rows):
            metrics = _measure(sae, store, test_rows)
            x_test = store.read(test_rows, kind="patch").flatten(0, 1)
            pick = torch.from_numpy(_sample(len(x_test), seed))
            components = max(1, min(round(metrics["l0"]), store.d_in - 1))
            metrics["pca_fvu"] = pca_fvu(
                x_train[torch.from_numpy(_sample(len(x_train), seed))], x_test[pick], components
            )
            metrics["pca_components"] = components
        info = {
            "recipe": recipe.name, "hyperparameters": recipe.as_dict(), "seed": seed, "semantics": "default",
            "token_kinds": ["patch"], "backbone": store.manifest["backbone"], "layer": store.manifest["layer"],
            "preprocessing": store.manifest["preprocessing"], "precision": store.manifest["precision"],
            "tokens": store.hash, "n_cells_train": len(train_rows), "n_tokens_train": len(x_train), "n_cells_heldout": len(test_rows),
            "metrics": metrics, "training": log,
        }  # fmt: skip
        save_sae(folder, sae, info)
        extra["metrics"] = metrics
    return load_sae(out, device=device)


def _train(
    tokens: torch.Tensor, recipe: Recipe, seed: int, folder: Path, device: str, dtype: torch.dtype
) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """The loop. `tokens` [n, d_in] in their stored type; gives the SAE in the tokens' own units, and a summary."""
    n, d = tokens.shape
    sample = tokens[torch.from_numpy(_sample(n, seed))].float()
    mean = sample.mean(0)
    norm = float((sample - mean).norm(dim=1).mean())
    if not norm > 0:
        raise CytosaeError("All tokens are equal, so there is nothing to learn; check the images.")
    scale = math.sqrt(d) / norm
    variance = float(((sample - mean) * scale).square().sum(1).mean())
    mean_d = mean.to(device)

    generator = torch.Generator().manual_seed(seed)
    D = torch.randn(recipe.expansion * d, d, generator=generator)
    D = torch.nn.functional.normalize(D, dim=1)
    if recipe.blend:
        points = sample[torch.randint(len(sample), (len(D),), generator=generator)] - mean
        D = (1 - recipe.blend) * D + recipe.blend * torch.nn.functional.normalize(points, dim=1)
    D = torch.nn.functional.normalize(D, dim=1).to(device)
    p = Parameters(D.clone(), D, torch.zeros(len(D), device=device), torch.zeros(d, device=device))
    weights = [p.E, p.D, p.b_enc, p.b_dec]
    adam = torch.optim.Adam(weights, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=1e-8, fused=True)
    silent = torch.zeros(len(D), dtype=torch.int64, device=device)  # tokens since a latent last fired
    order = TokenOrder(n, recipe.batch, seed)
    n_steps = max(1, recipe.presentations // order.batch)
    first = load_checkpoint(folder, weights, adam, silent)
    k = recipe.k if recipe.model == "batchtopk" else None

    with (
        (folder / "metrics.jsonl").open("r+" if first else "w", encoding="utf-8") as file,
        Meter(n_steps * order.batch, "fit", "tokens") as meter,
    ):
        _forget_after(file, first)
        meter.add(first * order.batch)
        for step in range(first, n_steps):
            x = (tokens[torch.from_numpy(order.at(step))].to(device).float() - mean_d) * scale
            dead = torch.nonzero(silent > recipe.dead_after).flatten()
            result = main_step(x, p, variance=variance, k=k, l1=recipe.l1, dead=dead, dtype=dtype)
            loss_aux = 0.0
            if result.dead_pre is not None and recipe.aux_weight and recipe.aux_k:
                loss_aux = auxiliary_step(
                    x, result.residual, result.dead_pre, dead, p, result.gradients,
                    variance=variance, k=recipe.aux_k, weight=recipe.aux_weight,
                )  # fmt: skip
            if not math.isfinite(result.loss + loss_aux):
                raise CytosaeError(
                    f"The loss is no longer a number at step {step}; lower the learning rate (--set lr=...)."
                )
            g = result.gradients
            g.D.sub_((g.D * p.D).sum(1, keepdim=True) * p.D)  # a step must not try to change the norm of a row
            for weight, gradient in zip(weights, g, strict=True):
                weight.grad = gradient
            adam.param_groups[0]["lr"] = recipe.lr * _schedule(step, n_steps, recipe)
            adam.step()
            p.D.div_(p.D.norm(dim=1, keepdim=True).clamp_(min=1e-12))
            fired = (result.codes > 0).sum(0)
            silent.add_(len(x)).masked_fill_(fired > 0, 0)

            meter.add(len(x), f"FVU {result.loss:.3f}")
            if step % _LOG_EVERY == 0 or step == n_steps - 1:
                line = {"step": step, "tokens": (step + 1) * order.batch, "loss": result.loss, "loss_aux": loss_aux,
                        "l0": float(fired.sum()) / len(x), "n_dead": len(dead), "lr": adam.param_groups[0]["lr"]}  # fmt: skip
                file.write(json.dumps(line) + "\n")
                file.flush()
            if (step + 1) % _CHECKPOINT_EVERY == 0 and step + 1 < n_steps:
                save_checkpoint(folder, step + 1, weights, adam, silent)

    summary = {"n_steps": n_steps, "n_dead": int((silent > recipe.dead_after).sum()), "mean_norm": norm, "n_tokens": n}
    trained = SparseAutoencoder(p.E.T.contiguous(), p.b_enc / scale, p.D, mean_d + p.b_dec / scale)
    if k is None:
        return trained, summary
    threshold = calibrate_threshold(trained, tokens[torch.from_numpy(_sample(n, seed + 1))], k)
    full = torch.full((len(D),), threshold, device=device)
    return SparseAutoencoder(trained.W_enc, trained.b_enc, trained.W_dec, trained.b_dec, "threshold", full), summary


def _schedule(step: int, n_steps: int, recipe: Recipe) -> float:
    """Linear warm-up, constant, linear decay to zero over the last share."""
    up = (step + 1) / recipe.warmup if recipe.warmup else 1.0
    down = (n_steps - step) / (recipe.decay * n_steps) if recipe.decay else 1.0
    return min(1.0, up, down)


def _measure(sae: SparseAutoencoder, store: TokenStore, rows: Any) -> dict[str, Any]:
    sums = ReconstructionSums(sae.d_in, sae.n_latents)
    for chunk in store.chunks(rows, 16, kind="patch"):
        x = chunk.flatten(0, 1).to(sae.W_enc.device)
        codes = sae.encode(x)
        sums.update(x, sae.decode(codes), codes)
    return sums.finish()


def _sample(n: int, seed: int) -> Any:
    """At most `_SAMPLE` positions, in order, without repetition."""
    if n <= _SAMPLE:
        return np.arange(n)
    return np.sort(np.random.Generator(np.random.Philox(key=[seed, 2**32])).choice(n, _SAMPLE, replace=False))


def product_dtype(name: str, device: str) -> torch.dtype:
    """The type of the factors of large products; ``auto`` asks the processor."""
    if name == "auto":
        name = "bfloat16" if has_bfloat16(device) else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def training_threads(recipe: Recipe, d_in: int) -> int:
    """Threads for a step: one where its products are so small that threads would mostly wait for each other.

    At 512 tokens and 768 latents a second thread adds a fifth on an idle machine, and beside another busy process costs a
    factor of ten.
    """
    work = recipe.batch * recipe.expansion * d_in * d_in
    return 1 if work < _SMALL_STEP else torch.get_num_threads()


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device != "cpu":
        return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()
    probes = (getattr(torch.cpu, f"_is_{name}_supported", lambda: False) for name in ("avx512_bf16", "amx_tile"))
    return any(probe() for probe in probes)


def _forget_after(file: Any, first: int) -> None:
    """Cut the log back to the checkpoint the run goes on from."""
    kept = [line for line in file if json.loads(line)["step"] < first] if first else []
    file.seek(0)
    file.truncate()
    file.writelines(kept)
