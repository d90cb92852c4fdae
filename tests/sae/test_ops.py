"""Every path of a step against the dense reference: values, gradients, ties, zero rows, odd sizes, threads."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cytosae import CytosaeError
from cytosae.sae.ops import AdamStep, Codes, RowGradients, Rule, Term, Weights, choose
from cytosae.sae.ops.dense import DenseCodes
from cytosae.sae.ops.native import NativePath, native_library
from cytosae.sae.ops.portable import PortablePath
from cytosae.sae.ops.reference import ReferencePath

PATHS: dict[str, Callable[[], Any]] = {
    "portable-float32": PortablePath,
    "portable-bfloat16": lambda: PortablePath(torch.bfloat16),
    "native": NativePath,
}
SIZES = [(1, 3, 4), (7, 5, 13), (65, 17, 130), (200, 383, 300), (193, 64, 64)]
RULES = ["relu", "topk", "batchtopk", "threshold"]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Any:
    if request.param == "native" and native_library() is None:
        pytest.skip("no compiler, or neither VNNI nor AVX2, on this machine")
    return PATHS[request.param]()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def problem(n: int, d: int, m: int, seed: int = 0) -> tuple[torch.Tensor, Weights]:
    """Tokens of very unequal dimensions, as real ones are, with a row of zeros."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g) * torch.linspace(0.05, 3, d)
    x[n // 2] = 0
    D = torch.nn.functional.normalize(torch.randn(m, d, generator=g), dim=1)
    E = D + 0.3 * torch.randn(m, d, generator=g) / d**0.5
    moments = [0.01 * torch.rand(m, d, generator=g) for _ in range(4)]
    w = Weights(
        E,
        D,
        0.3 * torch.randn(m, generator=g),
        *moments,
        0.01 * torch.rand(m, generator=g),
        0.01 * torch.rand(m, generator=g),
    )
    return x, w


def rule_of(kind: str, m: int, k: int = 3) -> Rule:
    return Rule(kind, k=k, threshold=torch.linspace(-0.2, 1.5, m) if kind == "threshold" else None)  # type: ignore[arg-type]


def copy_of(w: Weights) -> Weights:
    return Weights(*(t.clone() for t in vars(w).values()))


def assert_same_codes(got: Codes, want: Codes) -> None:
    """Equal but for values within 1e-5 of where the rule cuts."""
    a, b = got.dense(), want.dense()
    different = (a > 0) != (b > 0)
    assert int(different.sum()) <= 2e-5 * a.numel()
    same = ~different
    assert torch.allclose(a[same], b[same], rtol=1e-5, atol=2e-6)
    assert bool((got.row_start.diff() >= 0).all())
    if len(got.latent):
        token = got.row_of() * got.n_latents + got.latent
        assert bool((token.diff() > 0).all()), "rows in order, latents ascending"


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize(("n", "d", "m"), SIZES)
def test_codes_equal_the_reference(path: Any, threads: int, kind: str, n: int, d: int, m: int) -> None:
    x, w = problem(n, d, m)
    want = ReferencePath().select(x, w.E, w.b_enc, rule_of(kind, m))
    for _ in range(3):  # the second and third time with what the path remembers of the first
        assert_same_codes(path.select(x, w.E, w.b_enc, rule_of(kind, m)), want)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_a_memory_of_larger_codes_does_not_lose_smaller_ones(path: Any, kind: str) -> None:
    x, w = problem(150, 20, 90)
    path.select(100 * x, w.E, w.b_enc, rule_of(kind, 90))
    assert_same_codes(
        path.select(x, w.E, w.b_enc, rule_of(kind, 90)), ReferencePath().select(x, w.E, w.b_enc, rule_of(kind, 90))
    )


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
@pytest.mark.parametrize("k", [1, 40, 1000])
def test_k_above_the_number_of_positives_takes_them_all(path: Any, kind: str, k: int) -> None:
    x, w = problem(30, 8, 40)
    assert_same_codes(
        path.select(x, w.E, w.b_enc, Rule(kind, k=k)), ReferencePath().select(x, w.E, w.b_enc, Rule(kind, k=k))
    )  # type: ignore[arg-type]


def test_of_exact_ties_the_lower_latent_wins_then_the_lower_token(path: Any) -> None:
    E = torch.eye(4).repeat(6, 1)  # latents 0, 4, 8, ... are the same
    x = torch.tensor([[2.0, 1, 0, 0], [2.0, 1, 0, 0], [0, 0, 0, 0]])
    rows = path.select(x, E, torch.zeros(24), Rule("topk", k=3)).dense()
    assert torch.nonzero(rows[0]).flatten().tolist() == [0, 4, 8]
    assert torch.nonzero(rows[2]).numel() == 0
    batch = path.select(x, E, torch.zeros(24), Rule("batchtopk", k=3)).dense()
    assert torch.nonzero(batch[0]).flatten().tolist() == [0, 4, 8, 12, 16, 20]
    assert torch.nonzero(batch[1]).flatten().tolist() == [0, 4, 8]


def test_tokens_that_are_not_numbers_are_refused(path: Any) -> None:
    x, w = problem(5, 6, 8)
    x[2, 3] = float("nan")
    with pytest.raises(CytosaeError, match="not numbers"):
        path.select(x, w.E, w.b_enc, Rule("topk", k=2))


@pytest.mark.parametrize("bounds", [(1.0,), (0.1, 0.5, 1.0)])
@pytest.mark.parametrize(("n", "d", "m"), SIZES)
def test_decoding_equals_the_reference(
    path: Any, threads: int, n: int, d: int, m: int, bounds: tuple[float, ...]
) -> None:
    x, w = problem(n, d, m)
    ends = tuple(max(1, int(b * m)) for b in bounds)
    codes = ReferencePath().select(x, w.E, w.b_enc, rule_of("relu", m))
    assert torch.allclose(path.decode(codes, w.D, ends), ReferencePath().decode(codes, w.D, ends), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize(("n", "d", "m"), SIZES)
def test_an_update_equals_the_reference(
    path: Any, threads: int, kind: str, n: int, d: int, m: int, normalise: bool
) -> None:
    """Two groups, a term over a subset, an L1 weight, and gradients computed elsewhere, all at once."""
    x, w = problem(n, d, m)
    g = torch.Generator().manual_seed(9)
    reference, bounds = ReferencePath(), tuple(sorted({max(1, m // 3), m}))
    codes = reference.select(x, w.E, w.b_enc, rule_of(kind, m))
    subset = torch.arange(0, m, 3)
    aux = reference.select(x, w.E[subset], w.b_enc[subset], Rule("topk", k=2))
    terms = [Term(codes, torch.randn(len(bounds), n, d, generator=g), bounds, 0.05),
             Term(aux, torch.randn(1, n, d, generator=g), (len(subset),), latents=subset)]  # fmt: skip
    some = torch.arange(1, m, 4)
    extra = RowGradients(some, *(torch.randn(len(some), *shape, generator=g) for shape in ((d,), (d,), ())))
    a, b = copy_of(w), copy_of(w)
    adam = AdamStep(7, 0.01)
    got = path.update(a, x, terms, adam, normalise=normalise, extra=extra)
    want = reference.update(b, x, terms, adam, normalise=normalise, extra=extra)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    for name, value in vars(a).items():
        ref = getattr(b, name)
        assert float((value - ref).abs().max()) <= 1e-4 * max(float(ref.abs().max()), 1e-6), name
    assert_same_codes(
        path.select(x, a.E, a.b_enc, rule_of(kind, m)), reference.select(x, a.E, a.b_enc, rule_of(kind, m))
    )


def test_a_small_gradient_moves_a_weight_by_less_than_the_learning_rate(path: Any) -> None:
    """Adam's epsilon: without it, a gradient of 1e-11 would move a weight as far as one of 1."""
    w = Weights.start(torch.ones(4, 3), torch.eye(4, 3))
    codes = Codes(torch.tensor([0, 1]), torch.tensor([2], dtype=torch.int32), torch.tensor([1.0]), 4)
    path.update(
        w, torch.ones(1, 3), [Term(codes, torch.full((1, 1, 3), 1e-11), (4,))], AdamStep(1, 0.1), normalise=False
    )
    assert 0 < float((w.E - 1).abs().max()) < 0.01


def test_a_relu_dictionary_is_dense_at_first_and_sparse_later() -> None:
    """The dense way equals the reference in float32, and the switch is a function of the batch alone."""
    x, w = problem(193, 24, 64)
    path = choose("cpu", 24, 64, products="float32", dense_start=True)
    reference = ReferencePath()
    for bias, kind in ((0.3, DenseCodes), (-12.0, Codes)):
        w.b_enc[:] = bias
        codes, want = path.select(x, w.E, w.b_enc, Rule("relu")), reference.select(x, w.E, w.b_enc, Rule("relu"))
        assert type(codes) is kind
        assert torch.allclose(codes.dense(), want.dense(), atol=1e-5)
        assert (codes.n_codes, codes.fired().tolist()) == (want.n_codes, want.fired().tolist())
        assert codes.total() == pytest.approx(want.total(), rel=1e-5)
        assert torch.allclose(path.decode(codes, w.D, (64,)), reference.decode(want, w.D, (64,)), atol=1e-4)
        g_y, a, b = torch.randn(1, 193, 24, generator=torch.Generator().manual_seed(1)), copy_of(w), copy_of(w)
        got = path.update(a, x, [Term(codes, g_y, (64,), 0.1)], AdamStep(2, 0.01), normalise=True)
        carry = reference.update(b, x, [Term(want, g_y, (64,), 0.1)], AdamStep(2, 0.01), normalise=True)
        assert torch.allclose(got, carry, atol=1e-3)
        assert all(torch.allclose(value, getattr(b, name), atol=1e-4) for name, value in vars(a).items())
        low = choose("cpu", 24, 64, products="bfloat16", dense_start=True)
        assert torch.allclose(low.select(x, w.E, w.b_enc, Rule("relu")).dense(), want.dense(), atol=0.15)


def test_no_codes_at_all_still_move_the_moments(path: Any) -> None:
    x, w = problem(6, 5, 9)
    empty = Codes(torch.zeros(7, dtype=torch.int64), torch.empty(0, dtype=torch.int32), torch.empty(0), 9)
    a, b = copy_of(w), copy_of(w)
    term = [Term(empty, torch.randn(1, 6, 5), (9,))]
    assert float(path.update(a, x, term, AdamStep(3, 0.01), normalise=True).abs().max()) == 0
    ReferencePath().update(b, x, term, AdamStep(3, 0.01), normalise=True)
    assert torch.allclose(a.E, b.E, atol=1e-6)
    assert float(path.decode(empty, w.D, (9,)).abs().max()) == 0


def test_averages_too_small_for_normal_numbers_become_zero_and_move_nothing(threads: int) -> None:
    """Those of a latent without a gradient sink there; kept, they make every later step several times slower."""
    library = native_library()
    if library is None:
        pytest.skip("the compiled path cannot be built here")
    x, w = problem(40, 24, 130)
    for average in (w.E_avg, w.D_avg, w.E_square):
        average.fill_(1e-40)
    before, none = copy_of(w), ReferencePath().select(x[:0], w.E, w.b_enc, Rule("relu"))
    NativePath().update(w, x[:0], [Term(none, x[:0][None], (130,))], AdamStep(5000, 0.01), normalise=False)
    for average in (w.E_avg, w.D_avg, w.E_square):
        assert not average.any()
    assert torch.equal(w.E, before.E)
    assert torch.equal(w.D, before.D)
    assert float(torch.tensor([1e-40]).mul(0.5)) > 0, "the processor's mode is put back"


def test_a_changed_matrix_is_not_taken_for_the_former_one(path: Any) -> None:
    x, w = problem(40, 12, 50)
    path.select(x, w.E, w.b_enc, Rule("topk", k=3))
    w.E[:] = w.E.flip(0)
    assert_same_codes(
        path.select(x, w.E, w.b_enc, Rule("topk", k=3)), ReferencePath().select(x, w.E, w.b_enc, Rule("topk", k=3))
    )


def test_the_same_step_gives_the_same_bits_whatever_the_threads() -> None:
    if native_library() is None:
        pytest.skip("no compiler, or neither VNNI nor AVX2, on this machine")
    x, w = problem(500, 48, 400)
    results, before = [], torch.get_num_threads()
    for n_threads in (1, 2, 2):
        torch.set_num_threads(n_threads)
        path, own = NativePath(), copy_of(w)
        codes = path.select(x, own.E, own.b_enc, Rule("batchtopk", k=5))
        y = path.decode(codes, own.D, (400,))
        carry = path.update(own, x, [Term(codes, y - x, (400,))], AdamStep(1, 0.01), normalise=True)
        results.append([codes.value, y, carry, own.E, own.D])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.backbone
def test_codes_of_real_tokens_equal_the_reference(path: Any, demo_run: Path) -> None:
    from cytosae import TokenStore, load_sae

    sae, store = load_sae(demo_run / "sae"), TokenStore(demo_run / "tokens")
    x = store.read(torch.arange(0, 300, 30).numpy(), kind="patch").flatten(0, 1).float() - sae.b_dec
    E = sae.W_enc.T.contiguous()
    for rule in (sae.rule(), Rule("topk", k=8), Rule("batchtopk", k=8), Rule("relu")):
        assert_same_codes(path.select(x, E, sae.b_enc, rule), ReferencePath().select(x, E, sae.b_enc, rule))


def test_choosing_records_the_path_and_float32_is_respected() -> None:
    assert choose("cpu", 384, 768, products="float32").name == "portable-float32"
    assert choose("cpu", 384, 768, products="bfloat16").name == "portable-bfloat16"
    name = choose("cpu", 384, 768).name
    assert name in (
        ("native-int8-amx", "native-int8", "native-int16")
        if native_library() is not None
        else ("portable-float32", "portable-bfloat16")
    )


@pytest.mark.parametrize("kind", ["relu", "threshold"])
def test_what_is_proven_holds_every_code_of_very_unequal_tokens_and_weights(kind: str) -> None:
    if native_library() is None:
        pytest.skip("no compiler, or neither VNNI nor AVX2, on this machine")
    x, w = problem(300, 130, 517)
    g = torch.Generator().manual_seed(1)
    x *= 10 ** (4 * torch.rand(300, 1, generator=g) - 2)
    E = w.E * 10 ** (3 * torch.rand(517, 1, generator=g) - 2)
    E[:, 7] *= 300  # one dimension sets the scale of the integers, so that all others are rounded coarsely
    rule = Rule(kind, threshold=0.3 * torch.rand(517, generator=g) if kind == "threshold" else None)
    path, want = NativePath(proven=True), ReferencePath().select(x, E, w.b_enc, rule)
    got = path.select(x, E, w.b_enc, rule)
    size = x.norm(dim=1, keepdim=True) * E.norm(dim=1) + w.b_enc.abs()
    assert bool(((got.dense() - want.dense()).abs() <= 1e-6 * size)[(got.dense() > 0) == (want.dense() > 0)].all())
    least = rule.threshold if rule.threshold is not None else torch.zeros(517)
    pre = x.double() @ E.double().T + w.b_enc - least
    assert bool((pre.abs() <= 1e-6 * size)[(got.dense() > 0) != (want.dense() > 0)].all())
    assert len(got.value) <= path.n_candidates
    assert 0 < path.n_misjudged < path.n_candidates


SCRIPT = """
import sys; from cytosae._progress import enable_progress; enable_progress()
from cytosae.sae.ops import choose; print(choose('cpu', 384, 768).name)
"""


def test_without_a_compiler_there_is_one_line_and_the_portable_path(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": str(tmp_path), "CYTOSAE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.startswith("portable")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "g++" in done.stderr


def test_a_compiler_that_fails_is_one_line_and_the_portable_path(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'this compiler is broken' >&2\nexit 1\n")
    compiler.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "CYTOSAE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.startswith("portable")
    assert "this compiler is broken" in done.stderr
    assert not list((tmp_path / "cache" / "native").glob("*.so"))


def test_two_processes_that_want_the_library_at_once_build_it_once(tmp_path: Path) -> None:
    if native_library() is None:
        pytest.skip("no compiler, or neither VNNI nor AVX2, on this machine")
    env = {**os.environ, "CYTOSAE_CACHE": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [p.communicate()[0].strip() for p in processes] == [NativePath().name] * 3
    built = list((tmp_path / "native").glob("*"))
    assert len([p for p in built if p.suffix == ".so"]) == 1
    ctypes.CDLL(str(next(p for p in built if p.suffix == ".so")))


@pytest.mark.parametrize("products", ["bfloat16", "auto"])
def test_dense_codes_are_counted_exactly_and_the_step_is_near_the_reference(products: str) -> None:
    """More tokens and latents than a block has; the bias is added before rounding; extra rows; memory is lent once."""
    x, w = problem(4500, 40, 1100)
    path, reference = choose("cpu", 40, 1100, products=products, dense_start=True), ReferencePath()
    w.b_enc[:] = 30.0 + 0.01 * torch.arange(
        1100
    )  # a pre-activation of 30 with its bias rounded would be off by 0.06 alone
    codes, want = path.select(x, w.E, w.b_enc, Rule("relu")), reference.select(x, w.E, w.b_enc, Rule("relu"))
    assert isinstance(codes, DenseCodes)
    assert float((codes.dense() - want.dense()).abs().max() / want.dense().abs().max()) < 2**-8
    w.b_enc[:] = torch.linspace(-3, 3, 1100)
    other = path.select(x, w.E, w.b_enc, Rule("relu"))
    assert isinstance(other, DenseCodes)
    assert codes.full.data_ptr() != other.full.data_ptr(), "codes that are still held keep their memory"
    place, dense = other.full.data_ptr(), other.dense()
    assert other.n_codes == int((dense > 0).sum())
    assert other.total() == pytest.approx(float(dense.double().sum()), rel=1e-3)
    assert torch.equal(other.fired(), (dense > 0).any(0))
    del other
    again = path.select(x, w.E, w.b_enc, Rule("relu"))
    assert isinstance(again, DenseCodes)
    assert again.full.data_ptr() == place, "codes nobody holds give their memory back"
    want = reference.select(x, w.E, w.b_enc, Rule("relu"))
    g = torch.Generator().manual_seed(1)
    extra = RowGradients(
        torch.tensor([1, 1030, 1099]), *(torch.randn(3, 40, generator=g) for _ in range(2)), torch.ones(3)
    )
    g_y, a, b = torch.randn(1, 4500, 40, generator=g), copy_of(w), copy_of(w)
    got = path.update(a, x, [Term(again, g_y, (1100,), 0.1)], AdamStep(2, 0.01), normalise=True, extra=extra)
    carry = reference.update(b, x, [Term(want, g_y, (1100,), 0.1)], AdamStep(2, 0.01), normalise=True, extra=extra)
    assert float((got - carry).norm() / carry.norm()) < 0.02
    for name in ("E_avg", "D_avg", "b_avg"):
        one, two = getattr(a, name), getattr(b, name)
        off = float((one - two).norm() / two.norm())
        assert off < 0.05, (name, off)
