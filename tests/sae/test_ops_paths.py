"""Paths on hard input: an outlier dimension, equal rows, weights that are not numbers, terms over dead latents, extra rows."""

from __future__ import annotations

import functools

import pytest
import torch

from cytosae import CytosaeError
from cytosae.sae.ops import AdamStep, Codes, Path, RowGradients, Rule, Term, Weights
from cytosae.sae.ops.native import NativePath, native_library
from cytosae.sae.ops.portable import PortablePath
from cytosae.sae.ops.reference import ReferencePath

REFERENCE = ReferencePath()


def compiled() -> list[NativePath]:
    """The build for this processor, and those for the lesser ones it could be."""
    if native_library() is None:
        return []
    found = [NativePath()]
    for flags in (("-mno-amx-int8",), ("-march=haswell",)):
        lib = native_library(*flags)
        other = None if lib is None else NativePath(lib=lib)
        if other is not None and other.name not in [p.name for p in found]:
            found.append(other)
    return found


COMPILED = compiled()


def paths() -> list[Path]:
    return [PortablePath(torch.bfloat16), PortablePath(torch.float32), *COMPILED]


PATHS = paths()
#: n, d, n_latents, k: small and odd ones go the dense way, the larger ones are screened.
SIZES = [
    (1, 5, 7, 2),
    (3, 17, 33, 40),
    (130, 17, 9001, 5),
    (4097, 5, 1003, 3),
    (257, 383, 1537, 8),
    (300, 384, 3072, 32),
]
RULES = ["relu", "topk", "batchtopk", "threshold"]


@pytest.fixture(params=PATHS, ids=lambda p: p.name)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def problem(n: int, d: int, n_latents: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens with an outlier dimension and a zero row, an encoder with equal rows, a bias."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    x[:, d // 2] *= 8
    x[n // 2] = 0
    E = torch.nn.functional.normalize(torch.randn(n_latents, d, generator=g), dim=1)
    E[n_latents // 2] = E[1]
    b = 0.1 * torch.randn(n_latents, generator=g) - 0.3
    b[n_latents // 2] = b[1]
    return x, E, b


def make_rule(kind: str, k: int, n_latents: int) -> Rule:
    threshold = torch.linspace(-0.5, 2.5, n_latents) if kind == "threshold" else None
    return Rule(kind, k=k, threshold=threshold)  # type: ignore[arg-type]


@functools.cache
def wanted(n: int, d: int, n_latents: int, k: int, kind: str, size: float = 1.0) -> Codes:
    """What the reference selects; the same for all paths."""
    x, E, b = problem(n, d, n_latents)
    return REFERENCE.select(size * x, E, b, make_rule(kind, k, n_latents))


def assert_same_codes(got: Codes, want: Codes, rule: Rule) -> None:
    """Equal where values differ by more than rounding: what only one of them has lies at the other's edge."""
    assert got.row_start.dtype == torch.int64
    assert got.latent.dtype == torch.int32
    assert got.value.dtype == torch.float32
    assert got.n_latents == want.n_latents
    assert got.n_tokens == want.n_tokens
    if len(got.value):
        assert float(got.value.min()) > 0
        inside = torch.ones(len(got.latent), dtype=torch.bool)
        inside[got.row_start[:-1][got.row_start[:-1] < len(inside)]] = False
        assert bool((got.latent.diff()[inside[1:]] > 0).all()), "latents ascend within a token"
    a, b = got.dense(), want.dense()
    size = float(b.max()) if b.numel() else 0.0
    both = (a > 0) & (b > 0)
    assert float((a - b)[both].abs().max() if both.any() else 0.0) <= 2e-6 * max(size, 1e-3)
    only = (a > 0) ^ (b > 0)
    edge = 1e-5 * max(size, 1.0)
    if rule.kind == "relu":
        assert float((a + b)[only].max() if only.any() else 0.0) <= edge
    elif rule.kind == "threshold":
        assert rule.threshold is not None
        assert float(((a + b) - rule.threshold.clamp(min=0))[only].abs().max() if only.any() else 0.0) <= edge
    else:
        assert int(only.sum()) <= 2e-3 * max(len(want.value), 1)
        if rule.kind == "topk":
            assert torch.equal((a > 0).sum(1), (b > 0).sum(1))
        else:
            assert len(got.value) == len(want.value)
        for t, s in only.nonzero().tolist():
            least = b[t][b[t] > 0].min() if rule.kind == "topk" else b[b > 0].min()
            assert abs(float(a[t, s] + b[t, s]) - float(least)) <= edge


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize(("n", "d", "n_latents", "k"), SIZES)
def test_a_path_selects_what_the_reference_selects(
    path: Path, n: int, d: int, n_latents: int, k: int, kind: str
) -> None:
    x, E, b = problem(n, d, n_latents)
    rule = make_rule(kind, k, n_latents)
    for _ in range(2):  # the second call starts from what the first one learnt
        assert_same_codes(path.select(x, E, b, rule), wanted(n, d, n_latents, k, kind), rule)
    assert_same_codes(path.select(0.05 * x, E, b, rule), wanted(n, d, n_latents, k, kind, 0.05), rule)


@pytest.mark.parametrize("kind", RULES)
def test_tiles_and_vectors_give_the_same_bits(kind: str) -> None:
    by_name = {p.name: p for p in COMPILED}
    if "native-int8-amx" not in by_name:
        pytest.skip("this processor has no AMX tiles")
    for n, d, n_latents, k in (*SIZES, (33, 64, 32, 4), (1025, 129, 4097, 16)):
        x, E, b = problem(n, d, n_latents)
        rule = make_rule(kind, k, n_latents)
        for proven in (False, True):
            ours = [NativePath(proven=proven, lib=by_name[name]._lib) for name in ("native-int8-amx", "native-int8")]
            for _ in range(2):
                a, c = (p.select(x, E, b, rule) for p in ours)
                assert torch.equal(a.row_start, c.row_start)
                assert torch.equal(a.latent, c.latent)
                assert torch.equal(a.value, c.value)
            if proven:  # the tiles multiply bfloat16 numbers then, whose margin is smaller
                assert ours[0].n_candidates <= ours[1].n_candidates
            else:
                assert ours[0].n_candidates == ours[1].n_candidates


def test_tiles_leave_other_products_of_the_process_as_they_were() -> None:
    """oneDNN keeps shapes of tiles of its own in the same registers."""
    a, b = torch.randn(300, 128).bfloat16(), torch.randn(128, 200).bfloat16()
    x, E, bias = problem(300, 384, 3072)
    before = a @ b
    for p in COMPILED:
        p.select(x, E, bias, Rule("relu"))
        assert torch.equal(a @ b, before)


@pytest.mark.parametrize("size", [1e-13, 1e-21, 1e-30])
def test_tokens_whose_squares_are_no_numbers_lose_no_code(path: Path, size: float) -> None:
    x, E, _ = problem(130, 48, 1503)
    x[::2] *= size
    for rule in (Rule("topk", k=5), Rule("relu")):
        got, want = (p.select(x, E, torch.zeros(len(E)), rule).dense() for p in (path, REFERENCE))
        scale = want.amax(1, keepdim=True).clamp(min=1e-37)
        assert float(((got - want) / scale).abs().max()) < (2e-2 if "bfloat16" in path.name else 1e-4)


def test_of_equal_values_the_lower_latent_then_the_lower_token_wins(path: Path) -> None:
    x = torch.ones(40, 64)
    E = torch.full((2048, 64), 0.25)  # exact in every type: all pre-activations are 16
    b = torch.zeros(2048)
    codes = path.select(x, E, b, Rule("topk", k=3))
    assert codes.latent.view(40, 3).tolist() == [[0, 1, 2]] * 40
    codes = path.select(x[:39], E[:2047], b[:2047], Rule("batchtopk", k=2))
    assert codes.latent.tolist() == list(range(78)), "the batch has 78 codes, and the first token comes first"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_input_that_is_not_a_number_is_refused(path: Path, bad: float) -> None:
    for n, d, n_latents in ((3, 5, 7), (300, 64, 2048)):
        x, E, b = problem(n, d, n_latents)
        x[n - 1, 2] = bad
        with pytest.raises(CytosaeError, match="not numbers"):
            path.select(x, E, b, Rule("topk", k=2))
        x, E, b = problem(n, d, n_latents)
        E[3, 1] = float("nan")
        with pytest.raises(CytosaeError, match="not numbers"):
            path.select(x, E, b, Rule("topk", k=2))


def make_weights(n_latents: int, d: int, seed: int = 5) -> Weights:
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    D = torch.nn.functional.normalize(randn(n_latents, d), dim=1)
    moments = [0.01 * randn(n_latents, d) for _ in range(4)]
    return Weights(D + 0.1 * randn(n_latents, d), D, 0.1 * randn(n_latents), moments[0], moments[1].square(), moments[2],
                   moments[3].square(), 0.01 * randn(n_latents), 1e-4 * randn(n_latents).square())  # fmt: skip


def copy_of(w: Weights) -> Weights:
    return Weights(**{name: t.clone() for name, t in vars(w).items()})


def random_codes(n: int, n_latents: int, density: float, seed: int) -> Codes:
    g = torch.Generator().manual_seed(seed)
    dense = torch.rand(n, n_latents, generator=g)
    keep = torch.rand(n, n_latents, generator=g) < density
    keep[n // 2] = False
    row, latent = keep.nonzero(as_tuple=True)
    start = torch.zeros(n + 1, dtype=torch.int64)
    start[1:] = keep.sum(1).cumsum(0)
    return Codes(start, latent.int(), dense[row, latent] + 0.01, n_latents)


@pytest.mark.parametrize(("n", "d", "n_latents"), [(1, 5, 7), (3, 17, 2500), (300, 383, 1100)])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_step_moves_the_weights_as_the_reference_does(
    path: Path, n: int, d: int, n_latents: int, groups: int
) -> None:
    g = torch.Generator().manual_seed(7)
    bounds = [n_latents] if groups == 1 else [n_latents // 5, n_latents // 2, n_latents]
    subset = torch.arange(1, n_latents, 3)
    x = torch.randn(n, d, generator=g)
    codes = random_codes(n, n_latents, 0.05, 1)
    terms = [
        Term(codes, torch.randn(groups, n, d, generator=g) / n, bounds, l1=0.02),
        Term(
            random_codes(n, len(subset), 0.1, 2), torch.randn(1, n, d, generator=g) / n, [len(subset)], latents=subset
        ),
    ]
    assert float((path.decode(codes, x[:1].expand(n_latents, d).contiguous(), bounds)
                  - REFERENCE.decode(codes, x[:1].expand(n_latents, d), bounds)).abs().max()) <= 1e-4  # fmt: skip
    start = make_weights(n_latents, d)
    for used, normalise in (
        (terms, True),
        (terms[:1], False),
        ([Term(random_codes(n, n_latents, 0.0, 3), terms[0].g_y, bounds)], True),
    ):
        got, want, adam = copy_of(start), copy_of(start), AdamStep(3, 0.01)
        ones = (torch.ones_like(t[subset]) / n for t in (start.E, start.D, start.b_enc))
        extra = RowGradients(subset, *ones) if normalise else None
        back, wanted_back = (
            p.update(w, x, used, adam, normalise=normalise, extra=extra) for p, w in ((path, got), (REFERENCE, want))
        )
        assert torch.allclose(back, wanted_back, atol=1e-5 * max(1.0, float(wanted_back.abs().max())))
        for name, value in vars(want).items():
            moved = float((value - getattr(start, name)).abs().max())
            assert float((getattr(got, name) - value).abs().max()) <= 1e-4 * moved + 1e-7, name


def test_the_same_step_twice_gives_the_same_bits(path: Path) -> None:
    x, E, b = problem(300, 96, 3000)
    results = []
    for _ in range(2):
        codes = path.select(x, E, b, Rule("topk", k=8))
        w = make_weights(3000, 96)
        path.update(w, x, [Term(codes, path.decode(codes, w.D, [3000]) - x, [3000])], AdamStep(1, 0.01), normalise=True)
        results.append((codes, w))
    (codes_a, w_a), (codes_b, w_b) = results
    assert all(torch.equal(s, t) for s, t in zip(codes_a[:3], codes_b[:3], strict=True))
    assert all(torch.equal(t, getattr(w_b, name)) for name, t in vars(w_a).items())
