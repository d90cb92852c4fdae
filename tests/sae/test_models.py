"""Every kind of dictionary against automatic differentiation, and the identities of what is done for dead latents."""

from __future__ import annotations

import math

import pytest
import torch

from cytosae import CytosaeError, SparseAutoencoder
from cytosae._errors import UsageError
from cytosae.sae.models import (
    AuxK,
    Error,
    JumpRelu,
    auxiliary_term,
    cluster_rows,
    ghost_gradients,
    group_bounds,
    resample,
)
from cytosae.sae.ops import AdamStep, Codes, Room, Term, Weights, choose
from cytosae.training import TokenFacts, Trainer, override


def some_weights(n: int, d: int, seed: int = 0) -> Weights:
    g = torch.Generator().manual_seed(seed)
    D = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)
    E = D + 0.1 * torch.randn(n, d, generator=g)
    moments = [torch.zeros(n, d) for _ in range(4)]
    return Weights(E, D, 0.1 * torch.randn(n, generator=g), *moments, torch.zeros(n), torch.zeros(n))


def trainer_of(
    *settings: str, recipe: str = "default", n_steps: int = 100, d: int = 12
) -> tuple[Trainer, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    tokens = torch.randn(96, d, generator=g) * torch.linspace(0.3, 2, d) + 3
    facts = TokenFacts.of(tokens, tokens.view(8, 12, d))
    chosen = override(recipe, ["expansion=4", "k=3", "warmup=0", "decay=0", "products=float32", *settings])
    trainer = Trainer(chosen, 0, facts, choose("cpu", d, 4 * d, products="float32"), n_steps)
    trainer.weights.E.add_(0.05 * torch.randn(trainer.weights.E.shape, generator=g))
    trainer.weights.b_enc.add_(0.1 * torch.randn(len(trainer.weights.E), generator=g))
    trainer.b_dec.add_(0.1 * torch.randn(d, generator=g))
    return trainer, tokens


def dense_loss(trainer: Trainer, tokens: torch.Tensor, leaves: list[torch.Tensor], dead: torch.Tensor) -> torch.Tensor:
    """The loss as the formulas stand, by dense tensors; `leaves` are E, D, b_enc, b_dec."""
    E, D, b_enc, b_dec = leaves
    r, model = trainer.recipe, trainer.model
    x = (tokens - trainer.shift) * trainer.scale
    pre = (x - b_dec) @ E.T + b_enc
    h = pre.relu()
    if r.model == "topk":
        h = h * (h >= h.topk(r.k, dim=1).values[:, -1:])
    elif r.model in ("batchtopk", "matryoshka"):
        h = h * (h >= h.flatten().topk(r.k * len(x)).values[-1])
    elif r.model == "jumprelu":
        h = h * (h > model.threshold())
    recons = [h[:, :b] @ D[:b] + b_dec for b in model.bounds]
    variance = trainer.error.variance
    loss = sum((y - x).square().sum(1).mean() / variance for y in recons) / len(recons) + r.l1 * h.sum(1).mean()
    if len(dead):
        top = pre[:, dead].topk(min(r.aux_k, len(dead)), dim=1)
        z = torch.zeros_like(pre[:, dead]).scatter(1, top.indices, top.values.relu())
        left = (x - recons[-1]).detach() - z @ D[dead]
        loss = loss + r.aux_weight * left.square().sum(1).mean() / variance
    return loss


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("model", ["relu-l1", "topk", "batchtopk", "jumprelu", "matryoshka"])
def test_a_step_follows_the_gradient_of_the_loss(model: str, dead: bool) -> None:
    trainer, tokens = trainer_of(
        f"model={model}", "beta1=0", "l1=0.05" if model == "relu-l1" else "l1=0", "aux_k=2", "levels=0.1,0.5"
    )
    if dead:
        trainer.silent[::3] = trainer.recipe.dead_after + 1
    which = torch.nonzero(trainer.silent > trainer.recipe.dead_after).flatten()
    w = trainer.weights
    leaves = [t.detach().clone().requires_grad_(True) for t in (w.E, w.D, w.b_enc, trainer.b_dec)]
    loss = dense_loss(trainer, tokens, leaves, which)
    loss.backward()  # type: ignore[no-untyped-call]
    before = w.D.clone()
    line = trainer.step(tokens, 0)
    assert line["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    gE, gD, gb, g_bias = (leaf.grad for leaf in leaves)
    assert gE is not None
    assert gD is not None
    assert gb is not None
    assert g_bias is not None
    gD = gD - (gD * before).sum(1, keepdim=True) * before
    # with beta1 = 0 Adam's first moment is the gradient itself
    for got, want in ((w.E_avg, gE), (w.D_avg, gD), (w.b_avg, gb), (trainer.b_dec_avg, g_bias)):
        assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max())


def test_adam_and_the_unit_norm_are_those_of_torch() -> None:
    trainer, tokens = trainer_of("model=topk", "beta1=0.9", "lr=1e-2")
    w = trainer.weights
    leaves = [t.detach().clone().requires_grad_(True) for t in (w.E, w.D, w.b_enc, trainer.b_dec)]
    adam = torch.optim.Adam(leaves, lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    for step in range(5):
        adam.zero_grad()
        dense_loss(trainer, tokens, leaves, torch.empty(0, dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
        D = leaves[1]
        assert D.grad is not None
        D.grad -= (D.grad * D.detach()).sum(1, keepdim=True) * D.detach()
        adam.step()
        with torch.no_grad():
            D /= D.norm(dim=1, keepdim=True)
        trainer.step(tokens, step)
    for got, want in zip((w.E, w.D, w.b_enc, trainer.b_dec), leaves, strict=True):
        assert torch.allclose(got, want, atol=2e-5)


def test_a_small_gradient_moves_a_weight_by_less_than_the_learning_rate() -> None:
    """Adam's epsilon: without it, a gradient of 1e-12 would move a weight as far as one of 1."""
    w = some_weights(4, 3)
    before = w.E.clone()
    codes = Codes(torch.tensor([0, 1]), torch.tensor([2], dtype=torch.int32), torch.tensor([1.0]), 4)
    g_y = torch.full((1, 1, 3), 1e-11)
    choose("cpu", 3, 4, products="float32").update(
        w, torch.ones(1, 3), [Term(codes, g_y, (4,))], AdamStep(1, 0.1), normalise=False
    )
    assert 0 < float((w.E - before).abs().max()) < 0.01


def test_auxk_is_the_plain_problem_of_reconstructing_the_residual() -> None:
    """Its gradient equals that of fitting the residual as if it were the data, with no decoder bias in the reconstruction."""
    w, g = some_weights(20, 6), torch.Generator().manual_seed(1)
    x, residual, dead = torch.randn(32, 6, generator=g), torch.randn(32, 6, generator=g), torch.arange(0, 20, 2)
    E, D, b = (t[dead].clone().requires_grad_(True) for t in (w.E, w.D, w.b_enc))
    pre = x @ E.T + b
    z = pre.relu() * (pre >= pre.topk(3, dim=1).values[:, -1:])
    loss = (z @ D - residual).square().sum(1).mean() / 2.0 * 0.25
    loss.backward()  # type: ignore[no-untyped-call]
    path = choose("cpu", 6, 20, products="float32")
    value, term = auxiliary_term(path, x, residual, w, dead, AuxK(3, 0.25, 2.0))
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    path.update(w, x, [term], AdamStep(1, 0.0, beta1=0.0), normalise=False)
    assert E.grad is not None
    assert b.grad is not None
    assert torch.allclose(w.E_avg[dead], E.grad, atol=1e-6)
    assert torch.allclose(w.b_avg[dead], b.grad, atol=1e-6)
    assert float(w.E_avg[1::2].abs().max()) == 0, "latents that live are left alone"


def test_ghost_gradients_stay_numbers_when_the_ghosts_are_nothing() -> None:
    """The two epsilons: a ghost reconstruction of length 0, and one without error."""
    w = some_weights(6, 4)
    w.D[:] = 0
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    loss, rows = ghost_gradients(x, x, 0.1 * x, w, torch.arange(6))
    assert math.isfinite(loss)
    assert bool(torch.isfinite(rows.D).all())
    loss, rows = ghost_gradients(x, x, torch.zeros_like(x) + 1e-20, w, torch.arange(6))
    assert math.isfinite(loss)


def test_ghost_gradients_equal_automatic_differentiation() -> None:
    w, g = some_weights(10, 5), torch.Generator().manual_seed(3)
    x, residual, dead = torch.randn(40, 5, generator=g), torch.randn(40, 5, generator=g), torch.arange(1, 10, 2)
    E, D, b = (t[dead].clone().requires_grad_(True) for t in (w.E, w.D, w.b_enc))
    ghost = (x @ E.T + b).exp() @ D
    length = residual.norm(dim=1, keepdim=True)
    ghost = ghost * (length / (1e-6 + 2 * ghost.norm(dim=1, keepdim=True))).detach()
    error = (ghost - residual).square() / length
    main = residual.square() / x.norm(dim=1, keepdim=True)
    loss = (error * (main / (error + 1e-6)).detach()).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    value, rows = ghost_gradients(x, x, residual, w, dead)
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    for got, want in ((rows.E, E.grad), (rows.D, D.grad), (rows.b_enc, b.grad)):
        assert want is not None
        assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max())


def test_ghost_gradients_with_bfloat16_factors_are_near_those_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens and latents than a block has, sizes that nothing divides; the same twice in borrowed memory."""
    g = torch.Generator().manual_seed(4)
    x, residual, w = torch.randn(4500, 37, generator=g), torch.randn(4500, 37, generator=g), some_weights(2301, 37)
    x, dead = 4 * x, torch.arange(0, 2301, 2)
    w.D.abs_()
    residual = -residual.abs()  # the rescaling has poles where a ghost meets its residual: here it never does
    w.b_enc[dead] = -20.0  # an argument rounded to bfloat16 would make factors of up to 6%
    want_loss, want = ghost_gradients(x, x, residual, w, dead)
    same_loss, same = ghost_gradients(x, x, residual, w, dead, dtype=torch.bfloat16)  # too small for it
    assert same_loss == want_loss
    assert torch.equal(same.E, want.E)
    monkeypatch.setattr("cytosae.sae.models.dead._SMALL", 0)
    room = Room()
    for _ in range(2):
        loss, rows = ghost_gradients(x, x, residual, w, dead, dtype=torch.bfloat16, room=room)
        assert loss == pytest.approx(want_loss, rel=1e-2)
        for got, exact in ((rows.E, want.E), (rows.D, want.D), (rows.b_enc, want.b_enc)):
            assert 0 < float((got - exact).norm()) <= 0.01 * float(exact.norm())


def test_resampled_latents_point_at_what_is_reconstructed_worst() -> None:
    w = some_weights(8, 4)
    residual = torch.zeros(50, 4)
    residual[7] = torch.tensor([0.0, 3.0, 0.0, 0.0])
    w.E_avg += 1
    dead = torch.tensor([1, 5])
    living = w.E[[0, 2, 3, 4, 6, 7]].norm(dim=1).mean()
    resample(w, dead, residual, torch.Generator().manual_seed(0))
    assert torch.equal(w.D[dead], torch.tensor([[0.0, 1, 0, 0]] * 2))
    assert torch.allclose(w.E[dead].norm(dim=1), 0.2 * living)
    assert float(w.E_avg[dead].abs().max()) == 0
    assert float(w.E_avg[0].min()) == 1
    untouched = w.D.clone()
    resample(w, dead, torch.zeros(50, 4), torch.Generator().manual_seed(0))
    assert torch.equal(w.D, untouched), "nothing is left over, so there is nothing to point at"


def test_jumprelu_thresholds_follow_the_estimator_of_the_paper() -> None:
    """Pseudo-derivatives of equations 11 and 12: -(threshold / width) K for the code, -(1 / width) K for the step."""
    g = torch.Generator().manual_seed(2)
    model, w = JumpRelu(10, k=2, sparsity=0.3, bandwidth=0.4, start=0.5, device="cpu"), some_weights(10, 6)
    x = torch.randn(64, 6, generator=g)
    path = choose("cpu", 6, 10, products="float32")
    encoded = model.encode(path, x, w)
    pre = x @ w.E.T + w.b_enc
    edge = model.threshold()
    h = pre * (pre > edge) * (pre > 0)
    assert torch.allclose(encoded.codes.dense(), h, atol=1e-6)
    recon = path.decode(encoded.codes, w.D, model.bounds)
    _, g_y = model.loss(x, recon, encoded.codes, Error("fvu", 1.5))
    near = ((pre - edge).abs() < 0.2).float()
    l0 = (h > 0).sum(1).float().mean()
    through_codes = (g_y[-1] @ w.D.T) * (-edge / 0.4) * near
    through_penalty = 0.3 * 2 * (l0 / 2 - 1) / 2 / 64 * (-1 / 0.4) * near
    wanted = (through_codes + through_penalty).sum(0) * edge
    model.learn(encoded, g_y, w, 0.01)
    assert torch.allclose(model.avg, 0.1 * wanted, atol=1e-6)
    assert float((model.log_threshold - math.log(0.5)).abs().max()) == pytest.approx(0.01, rel=1e-3)


def test_matryoshka_with_one_level_is_batchtopk() -> None:
    a, tokens = trainer_of("model=matryoshka", "levels=")
    b, _ = trainer_of("model=batchtopk")
    for step in range(3):
        assert a.step(tokens, step) == b.step(tokens, step)
    assert torch.equal(a.weights.D, b.weights.D)


@pytest.mark.parametrize(("n", "levels", "bounds"), [
    (48, (1 / 16, 0.25), (3, 12, 48)), (10, (), (10,)), (10, (1.0,), (10,)), (5, (0.01, 0.02), (1, 5)), (8, (0.5, 0.25), (2, 4, 8)),
])  # fmt: skip
def test_group_bounds_ascend_and_end_with_the_whole(n: int, levels: tuple[float, ...], bounds: tuple[int, ...]) -> None:
    assert group_bounds(n, levels) == bounds


def test_matryoshka_keeps_the_first_latents_good_by_themselves() -> None:
    plain, tokens = trainer_of("model=batchtopk", "lr=3e-3", n_steps=400)
    nested, _ = trainer_of("model=matryoshka", "levels=0.1", "lr=3e-3", n_steps=400)
    for step in range(400):
        plain.step(tokens, step)
        nested.step(tokens, step)
    x = (tokens - plain.shift) * plain.scale
    left = []
    for t in (plain, nested):
        codes = t.path.select(x - t.b_dec, t.weights.E, t.weights.b_enc, t.model.rule())
        y = t.path.decode(codes, t.weights.D, (5, 48))[0] + t.b_dec
        left.append(float((y - x).square().sum()))
    assert left[1] < 0.8 * left[0]


@pytest.mark.parametrize("k", [1, 3, 48, 60])
def test_topk_in_inference_keeps_k_and_the_lower_latent_of_a_tie(k: int) -> None:
    sae = SparseAutoencoder(
        torch.eye(4).repeat(1, 12), torch.zeros(48), torch.zeros(48, 4), torch.zeros(4), "topk", k=k
    )
    codes = sae.encode(torch.tensor([[1.0, 2, 3, -4], [0, 0, 0, 0]]))
    assert int((codes[0] > 0).sum()) == min(k, 36)
    assert int((codes[1] > 0).sum()) == 0
    if k == 3:
        assert torch.nonzero(codes[0]).flatten().tolist() == [2, 6, 10]
    sparse = choose("cpu", 4, 48).select(
        torch.tensor([[1.0, 2, 3, -4], [0, 0, 0, 0]]), sae.W_enc.T.contiguous(), sae.b_enc, sae.rule()
    )
    assert torch.equal(sparse.dense(), codes)


def test_topk_without_k_is_refused() -> None:
    with pytest.raises(CytosaeError, match="needs k"):
        SparseAutoencoder(torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4), "topk")


def test_the_scale_of_the_inputs_is_folded_into_the_weights() -> None:
    trainer, tokens = trainer_of("model=topk")
    for step in range(10):
        trainer.step(tokens, step)
    sae, _ = trainer.finish(tokens)
    x = (tokens - trainer.shift) * trainer.scale
    codes = trainer.path.select(x - trainer.b_dec, trainer.weights.E, trainer.weights.b_enc, trainer.model.rule())
    y = trainer.path.decode(codes, trainer.weights.D, trainer.model.bounds)[0] + trainer.b_dec
    assert torch.allclose(sae.encode(tokens), codes.dense() / trainer.scale, atol=1e-4)
    assert torch.allclose(sae.decode(sae.encode(tokens)), y / trainer.scale + trainer.shift, atol=1e-4)


def test_clusters_are_where_the_tokens_are() -> None:
    g = torch.Generator().manual_seed(3)
    truth = torch.nn.functional.normalize(torch.randn(20, 32, generator=g), dim=1)
    which = torch.randint(20, (2000,), generator=g)
    points = truth[which] * (1 + 3 * torch.rand(2000, 1, generator=g)) + 0.05 * torch.randn(2000, 32, generator=g)
    points[7] = 0
    rows = cluster_rows(40, points, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(40))
    assert (truth @ rows.T).amax(1).min() > 0.98  # twice as many centres as directions: each direction has one
    assert (rows @ truth.T).amax(1).min() > 0.9  # and no centre is anywhere else
    assert torch.equal(rows, cluster_rows(40, points, torch.Generator().manual_seed(0)))
    other = cluster_rows(40, points, torch.Generator().manual_seed(1))
    assert not torch.equal(rows, other)


def test_with_fewer_tokens_than_latents_every_token_starts_one() -> None:
    points = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    rows = cluster_rows(12, torch.cat([points, torch.zeros(3, 8)]), torch.Generator().manual_seed(0))
    assert rows.shape == (12, 8)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(12))
    unit = torch.nn.functional.normalize(points, dim=1)
    torch.testing.assert_close((unit @ rows.T).amax(1), torch.ones(5))


def test_a_dictionary_may_start_at_clusters() -> None:
    trainer, _ = trainer_of("start=clusters", recipe="default")
    g = torch.Generator().manual_seed(5)
    tokens = torch.randn(96, 12, generator=g) * torch.linspace(0.3, 2, 12) + 3
    unit = torch.nn.functional.normalize(tokens - tokens.mean(0), dim=1)
    assert (trainer.weights.D @ unit.T).amax(1).min() > 0.7  # a centre of at least two tokens is near them
    first = [trainer.step(tokens, step)["error"] for step in range(60)]
    assert first[-1] < 0.7 * first[0] < 0.7  # alike centres do not overshoot: never worse than the mean token


def test_only_so_many_rows_start_at_clusters() -> None:
    all_of_them, _ = trainer_of("start=clusters", "clusters=4")
    assert torch.equal(all_of_them.weights.D, trainer_of("start=clusters", "clusters=9")[0].weights.D)
    some, tokens = trainer_of("start=clusters", "clusters=1")
    assert some.weights.D.shape == (48, 12)
    torch.testing.assert_close(some.weights.D.norm(dim=1), torch.ones(48))
    wanted = cluster_rows(12, tokens - tokens.mean(0), torch.Generator().manual_seed(0))
    assert torch.equal(some.weights.D[:12], wanted)
    assert len(torch.unique(some.weights.D, dim=0)) == 48
    with pytest.raises(UsageError, match="clusters=0"):
        override("default", ["clusters=0"])


def test_tokens_of_another_width_are_refused() -> None:
    sae = SparseAutoencoder(torch.eye(6, 8), torch.zeros(8), torch.eye(8, 6), torch.zeros(6))
    with pytest.raises(UsageError, match="4 wide, but the dictionary reads 6"):
        sae.encode(torch.zeros(2, 3, 4))
