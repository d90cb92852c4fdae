"""Codes pooled by cell: the compiled way against the plain one, and sums that are too large for float64."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from cytosae._memory import kept_memory
from cytosae.concepts import _pool
from cytosae.concepts._codes import Codes, from_dense
from cytosae.concepts._exact import limbs_of, sums_by
from cytosae.concepts._pool import pool_codes
from cytosae.sae.ops.native import native_library, pool

FIELDS = ("cell", "latent", "value", "patch", "total", "n_active", "above")


def made_codes(n_cells: int, n_tokens: int, m: int, share: float, seed: int) -> Codes:
    """Codes over ten orders of magnitude, with equal ones among them."""
    g = torch.Generator().manual_seed(seed)
    shape = (n_cells * n_tokens, m)
    value = 10 ** (10 * torch.rand(shape, generator=g) - 6)
    value = torch.where(torch.rand(shape, generator=g) < 0.3, torch.ones(()), value)
    return from_dense(torch.where(torch.rand(shape, generator=g) < share, value, torch.zeros(())))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("n_cells", "n_tokens", "m", "share"),
    [(1, 1, 1, 1.0), (5, 7, 11, 0.3), (16, 65, 130, 0.05), (3, 4, 9, 0.0), (0, 4, 9, 0.5), (2, 300, 3, 1.0)],
)
def test_compiled_pooling_is_the_plain_one_to_the_last_bit(
    n_cells: int, n_tokens: int, m: int, share: float, threads: int
) -> None:
    lib = native_library()
    if lib is None:
        pytest.skip("nothing can be compiled here")
    codes = made_codes(n_cells, n_tokens, m, share, n_cells + m)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = pool(lib, codes, n_cells, n_tokens, (0.5, 1.0))
    finally:
        torch.set_num_threads(before)
    plain = _pool._pooled(codes, n_cells, n_tokens, (0.5, 1.0))
    for name, a, b in zip(fast._fields, fast, plain, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.tobytes() == b.tobytes(), name


@pytest.mark.parametrize("by", ["max", "mean"])
def test_without_a_compiler_pooling_says_the_same(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, ids = made_codes(6, 20, 40, 0.2, 1), np.arange(6)
    here = pool_codes(codes, ids, 20, (0.5,), by)
    monkeypatch.setattr(_pool, "native_library", lambda: None)
    there = pool_codes(codes, ids, 20, (0.5,), by)
    assert len(here) > 100
    for name in FIELDS:
        assert getattr(here, name).tobytes() == getattr(there, name).tobytes(), name


def test_pooled_values_are_those_of_a_plain_loop() -> None:
    codes = made_codes(4, 9, 12, 0.4, 2)
    dense = torch.zeros(36, 12, dtype=torch.float64)
    dense[codes.row_of(), codes.latent.long()] = codes.value.double()
    cells = pool_codes(codes, np.arange(4), 9, (1.0,))
    seen = 0
    for cell in range(4):
        part = dense[9 * cell : 9 * cell + 9]
        for latent in range(12):
            one = np.flatnonzero((cells.cell == cell) & (cells.latent == latent))
            column = part[:, latent]
            assert len(one) == int(bool(column.any()))
            if len(one):
                seen += 1
                assert cells.value[one[0]] == column.max()
                assert cells.patch[one[0]] == int(column.argmax())
                assert cells.total[one[0]] == pytest.approx(float(column.sum()), rel=1e-12)
                assert cells.n_active[one[0]] == int((column > 0).sum())
                assert cells.above[0, one[0]] == int((column > 1).sum())
    assert seen == len(cells) > 20


def test_sums_beyond_the_whole_numbers_of_float64_stay_exact() -> None:
    numbers = np.full(5, 2.0**52 - 1)
    numbers[0] = 1.0
    assert sums_by(np.zeros(5, np.int64), numbers, 2).tolist() == [4 * (2**52 - 1) + 1, 0]
    rng = np.random.default_rng(0)
    at, limbs = rng.integers(0, 3, 1000), limbs_of(rng.random(1000) * 1e9)
    for row in limbs:
        plain = [sum(int(v) for v in row[at == i]) for i in range(3)]
        assert sums_by(at, row, 3).tolist() == plain


def test_kept_memory_ends_with_what_it_began_even_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    with kept_memory():
        assert float(torch.ones(1 << 20).sum()) == 1 << 20
    monkeypatch.setattr("cytosae._memory._glibc", lambda: None)
    with pytest.raises(ValueError, match="inside"), kept_memory():
        raise ValueError("inside")


def test_what_was_kept_goes_back_to_the_system() -> None:
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("not glibc")

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    start = resident()
    with kept_memory():
        blocks = [np.ones(2 << 20) for _ in range(12)]  # 16 MB each
        del blocks
        within = resident()
    assert within - start > 150e6, "freed, but kept"
    assert resident() - start < 100e6
