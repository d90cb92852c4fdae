"""The published training reproduced: one step, twelve steps, the geometric median, from arrays the published code computed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cytosae.sae.models import Error, ReluL1, geometric_median, ghost_gradients
from cytosae.sae.ops import AdamStep, Term, Weights, reference
from cytosae.training import RECIPES, TokenFacts, Trainer

GOLDEN = Path(os.environ.get("CYTOSAE_GOLDEN") or Path(__file__).parents[1] / "golden")


def arrays(name: str) -> Any:
    return dict(np.load(GOLDEN / name).items())


def tensor(a: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(a)).contiguous()


def weights(W_enc: torch.Tensor, b_enc: torch.Tensor, W_dec: torch.Tensor) -> Weights:
    E, D = W_enc.T.contiguous(), W_dec.clone()
    moments = [torch.zeros_like(t) for t in (E, E, D, D)]
    return Weights(E, D, b_enc.clone(), *moments, torch.zeros_like(b_enc), torch.zeros_like(b_enc))


def gradients(w: Weights, x: torch.Tensor, terms: list[Term], extra: Any) -> tuple[torch.Tensor, ...]:
    """The gradients an update saw, read back from Adam's first moments (beta1 = 0), and the bias's carry."""
    carry = reference.ReferencePath().update(w, x, terms, AdamStep(1, 0.0, beta1=0.0), normalise=False, extra=extra)
    return w.E_avg, w.D_avg, w.b_avg, carry


@pytest.mark.parametrize("case", ["alive", "ghost"])
def test_golden_step(case: str) -> None:
    z = arrays("sae_step.npz")
    x = tensor(z["x"])
    n_images, n_tokens, _d = x.shape
    flat, b_dec = x.flatten(0, 1), tensor(z["b_dec"])
    w = weights(tensor(z["W_enc"]), tensor(z["b_enc"]), tensor(z["W_dec"]))
    path, model = reference.ReferencePath(), ReluL1(len(w.E), l1=float(z["hp.l1_coefficient"]))
    codes = model.encode(path, flat - b_dec, w).codes
    recon = path.decode(codes, w.D, model.bounds) + b_dec
    residual = flat - recon[-1]
    assert torch.allclose(codes.dense().view(n_images, n_tokens, -1), tensor(z[f"{case}.codes"]), rtol=1e-5, atol=1e-6)
    assert torch.allclose(recon[0].view(x.shape), tensor(z[f"{case}.recon"]), rtol=1e-5, atol=1e-6)
    losses, g_y = model.loss(flat, recon, codes, Error("norm", 1.0))
    ghost, extra = 0.0, None
    if z[f"{case}.dead_mask"].any():
        dead = torch.nonzero(tensor(z[f"{case}.dead_mask"])).flatten()
        ghost, extra = ghost_gradients(flat - b_dec, flat, residual, w, dead)
    assert losses["error"] == pytest.approx(float(z[f"{case}.mse_loss"]), rel=1e-5)
    assert losses["l1"] == pytest.approx(float(z[f"{case}.l1_loss"]), rel=1e-5)
    assert ghost == pytest.approx(float(z[f"{case}.mse_loss_ghost_resid"]), rel=1e-5)
    assert losses["loss"] + ghost == pytest.approx(float(z[f"{case}.loss"]), rel=1e-5)
    # the golden decoder gradient is the raw one, before the part along each row is removed
    raw = Weights(w.E, w.D, w.b_enc, *(torch.zeros_like(t) for t in (w.E, w.E, w.D, w.D, w.b_enc, w.b_enc)))
    term = Term(codes, g_y, model.bounds, model.l1 / len(flat))
    gE, gD, gb, carry = gradients(raw, flat - b_dec, [term], extra)
    wanted = tensor(z[f"{case}.grad.W_dec"])
    wanted = wanted - (wanted * w.D).sum(1, keepdim=True) * w.D
    for got, want in ((gE.T, tensor(z[f"{case}.grad.W_enc"])), (gb, tensor(z[f"{case}.grad.b_enc"])), (gD, wanted),
                      (g_y[0].sum(0) - carry, tensor(z[f"{case}.grad.b_dec"]))):  # fmt: skip
        assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max())


def golden_trainer(z: Any) -> Trainer:
    """The recipe ``cytosae-2025`` with the sizes and constants of the file, at the file's start."""
    d, n = z["init.W_enc"].shape
    recipe = replace(
        RECIPES["cytosae-2025"], expansion=n // d, cells_per_step=z["batches"].shape[1], lr=float(z["hp.lr"]),
        l1=float(z["hp.l1_coefficient"]), warmup=int(z["hp.warm_up_steps"]), dead_after=int(z["hp.dead_feature_window"]),
        products="float32",
    )  # fmt: skip
    facts = TokenFacts.of(tensor(z["batches"]).flatten(0, 2), tensor(z["batches"])[0])
    trainer = Trainer(recipe, 0, facts, reference.ReferencePath(), len(z["batches"]))
    trainer.weights.E.copy_(tensor(z["init.W_enc"]).T)
    trainer.weights.D.copy_(tensor(z["init.W_dec"]))
    trainer.weights.b_enc.copy_(tensor(z["init.b_enc"]))
    trainer.b_dec.copy_(tensor(z["init.b_dec"]))
    return trainer


def distances(trainer: Trainer, z: Any) -> dict[str, float]:
    """For each weight, ``||final - reference|| / ||reference - start||`` over its tolerance: below 1 is reproduced."""
    found = {
        "W_enc": trainer.weights.E.T,
        "W_dec": trainer.weights.D,
        "b_enc": trainer.weights.b_enc,
        "b_dec": trainer.b_dec,
    }
    out = {}
    for name, value in found.items():
        final, start = tensor(z[f"final.{name}"]), tensor(z[f"init.{name}"])
        out[name] = float((value - final).norm() / (final - start).norm()) / (2e-2 if name == "b_enc" else 1e-2)
    return out


def test_golden_training() -> None:
    z = arrays("sae_training.npz")
    trainer = golden_trainer(z)
    for step, batch in enumerate(z["batches"]):
        line = trainer.step(tensor(batch).flatten(0, 1), step)
        for name, key in (
            ("loss", "loss"),
            ("error", "mse_loss"),
            ("l1", "l1_loss"),
            ("ghost", "mse_loss_ghost_resid"),
        ):
            assert line.get(name, 0.0) == pytest.approx(float(z[f"log.{key}"][step]), rel=1e-5), (step, name)
        assert line["n_dead"] == z["log.n_dead"][step]
        assert line["lr"] == pytest.approx(float(z["log.lr"][step]))
    assert max(distances(trainer, z).values()) < 1, distances(trainer, z)
    assert np.array_equal(trainer.silent.numpy(), z["steps_since_fired"])


def test_golden_geometric_median() -> None:
    z = arrays("geometric_median.npz")
    assert np.abs(geometric_median(tensor(z["tokens"])).numpy() - z["b_dec"]).max() < 1e-5
    mean = z["tokens"].mean((0, 1))
    assert np.abs(mean - z["b_dec"]).max() > 1e-3, "the plain mean would not do"
