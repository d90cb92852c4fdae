"""Large pages are advice: values and shapes are those of plain tensors, and on Linux the kernel knows of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from cytosae import _memory
from cytosae._memory import copy_of, large_pages, zeros_like
from cytosae.sae.ops import Weights


def test_copies_and_zeros_are_what_they_say() -> None:
    for shape in [(0, 3), (3, 5), (1500, 2000)]:
        t = torch.randn(shape)
        assert torch.equal(copy_of(t), t)
        assert copy_of(t).data_ptr() != t.data_ptr() or not t.numel()
        assert torch.equal(zeros_like(t), torch.zeros(shape))
    assert copy_of(torch.randn(4, 6).T).is_contiguous()


def test_the_start_leaves_what_it_was_given_alone() -> None:
    E, D = torch.randn(6, 4), torch.randn(6, 4)
    w = Weights.start(E, D)
    w.E.zero_()
    w.D.zero_()
    assert float(E.abs().sum()) > 0
    assert float(D.abs().sum()) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="madvise of Linux")
def test_the_kernel_knows_of_a_large_tensor() -> None:
    choice = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not choice.exists() or "[never]" in choice.read_text():
        pytest.skip("this system has no large pages")
    big = large_pages(torch.empty(64 << 20, dtype=torch.uint8))
    assert "hg" in _flags(big.data_ptr() + (32 << 20))


def test_only_whole_pages_inside_a_large_tensor_are_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        _memory, "_madvise", lambda: lambda start, size, advice: asked.append((start.value, size.value))
    )
    large_pages(torch.empty(1 << 20, dtype=torch.uint8))
    assert not asked
    big = torch.empty(64 << 20, dtype=torch.uint8)
    large_pages(big)
    ((start, size),) = asked
    assert start % (2 << 20) == 0 == size % (2 << 20)
    assert big.data_ptr() <= start
    assert start + size <= big.data_ptr() + (64 << 20)
    assert size >= 60 << 20


def _flags(address: int) -> list[str]:
    """VmFlags of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head and ":" not in head:
            low, high = (int(part, 16) for part in head.split("-"))
            inside = low <= address < high
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []
