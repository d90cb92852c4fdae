"""The compiled path: integer products propose, float32 decides, and each latent row is moved in one visit (`step.cpp`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cytosae._errors import CytosaeError
from cytosae._memory import large_pages
from cytosae.sae.ops._codes import check_finite
from cytosae.sae.ops._interface import AdamStep, Codes, RowGradients, Rule, Term, Weights
from cytosae.sae.ops.native._build import library

_KINDS = {"relu": 0, "topk": 1, "threshold": 2, "batchtopk": 3}
#: A hint lies so far below the least code of the batch before; a wrong one costs time only.
_HINT = 0.9
#: Matrices whose integers are kept.
_KEPT = 4


@cache
def native_library(*flags: str) -> ctypes.CDLL | None:
    """The library, with its types declared; None where it cannot be built or the processor has neither VNNI nor AVX2."""
    lib = library(*flags)
    if lib is None or not lib.cytosae_bits():
        return None
    lib.cytosae_packed_size.restype = ctypes.c_int64
    lib.cytosae_select.restype = lib.cytosae_pool.restype = ctypes.c_void_p
    return lib


class Pooled(NamedTuple):
    """Codes pooled by cell, one entry a (cell, latent), by latent, then cell: see `cytosae.concepts.PooledCells`."""

    cell: npt.NDArray[np.int32]
    latent: npt.NDArray[np.int32]
    top: npt.NDArray[np.float32]
    patch: npt.NDArray[np.int32]
    total: npt.NDArray[np.float64]
    n_active: npt.NDArray[np.int32]
    above: npt.NDArray[np.int32]


def pool(lib: ctypes.CDLL, codes: Codes, n_cells: int, n_tokens: int, thresholds: Sequence[float]) -> Pooled:
    """Pool the codes of `n_cells` cells of `n_tokens` tokens each, which lie together."""
    levels, m, n_levels = torch.tensor(thresholds, dtype=torch.float32), _long(codes.n_latents), _long(len(thresholds))
    size = ctypes.c_int64()
    handle = lib.cytosae_pool(
        _at(codes.row_start), _at(codes.latent), _at(codes.value), _long(n_cells), _long(n_tokens), m, _at(levels), n_levels,
        ctypes.byref(size), torch.get_num_threads(),
    )  # fmt: skip
    n = size.value
    out = Pooled(
        np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.float32), np.empty(n, np.int32), np.empty(n),
        np.empty(n, np.int32), np.empty((len(thresholds), n), np.int32),
    )  # fmt: skip
    lib.cytosae_take_pooled(ctypes.c_void_p(handle), m, n_levels, size, *map(_at, out), torch.get_num_threads())
    return out


class _Packed:
    """A matrix in integers, or in bfloat16 for tiles, as of one version of its tensor."""

    def __init__(self, lib: ctypes.CDLL, E: torch.Tensor, halves: bool) -> None:
        m, d = E.shape
        size = lib.cytosae_packed_size(_long(m), _long(d), int(halves))
        self.bytes = large_pages(torch.empty(size, dtype=torch.uint8))
        self.scale, self.norm = torch.empty(m), torch.empty(m)
        lib.cytosae_pack(
            _at(E),
            _long(m),
            _long(d),
            int(halves),
            _at(self.bytes),
            _at(self.scale),
            _at(self.norm),
            torch.get_num_threads(),
        )
        self.tensor, self.version = E, E._version


class NativePath:
    """See `cytosae.sae.ops.Path`; CPU tensors, float32.

    Attributes
    ----------
    name
        ``native-int8-amx`` (tiles), ``native-int8`` (VNNI) or ``native-int16`` (AVX2), by the integers that propose. The first
        two give the same codes to the last bit.
    proven
        Whether what is proposed provably holds every code. Else, with 8 bits, by six standard deviations of their rounding,
        which is faster; 16 bits are always proven. Proven, tiles multiply bfloat16 numbers.
    n_candidates, n_misjudged
        Codes proposed so far, and those of them on the wrong side of their threshold by the integers alone.
    """

    def __init__(self, *, proven: bool = False, lib: ctypes.CDLL | None = None) -> None:
        """`lib` is another build than that for this processor."""
        lib = lib or native_library()
        if lib is None:
            raise CytosaeError("The compiled path is not available here; use the portable one.")
        self._lib = lib
        bits = lib.cytosae_bits()
        self.name = f"native-int{bits}" + ("-amx" if lib.cytosae_tiles() else "")
        self.proven = proven or bits > 8
        self._halves = proven and bool(lib.cytosae_tiles())  # bfloat16 instead: a margin ten times smaller
        self.n_candidates = self.n_misjudged = 0
        self._packs: list[_Packed] = []
        self._hints: dict[tuple[str, int, int], float] = {}

    def select(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, rule: Rule) -> Codes:
        """Codes of centred tokens [n, d_in]."""
        x, b_enc = _floats(x), _floats(b_enc)
        (n, d), m = x.shape, len(E)
        check_finite(x, "tokens")
        packed = self._pack(E)
        check_finite(packed.norm, "weights")
        check_finite(b_enc, "weights")
        key = (rule.kind, m, rule.k)
        bound = ctypes.c_float(_HINT * self._hints.get(key, 0.0))
        counts = (ctypes.c_int64 * 3)()
        threshold = None if rule.threshold is None else _floats(rule.threshold)
        handle = self._lib.cytosae_select(
            _at(x), _long(n), _long(d), _at(packed.tensor), _at(b_enc), _long(m), _at(packed.bytes), _at(packed.scale),
            _at(packed.norm), int(self._halves), _KINDS[rule.kind], _long(min(rule.k, m)), _at(threshold), int(self.proven), ctypes.byref(bound),
            counts, torch.get_num_threads(),
        )  # fmt: skip
        self.n_candidates += counts[1]
        self.n_misjudged += counts[2]
        self._hints[key] = max(bound.value, 0.0)
        codes = Codes(
            torch.empty(n + 1, dtype=torch.int64),
            torch.empty(counts[0], dtype=torch.int32),
            torch.empty(counts[0]),
            m,
        )
        self._lib.cytosae_take(ctypes.c_void_p(handle), _at(codes.row_start), _at(codes.latent), _at(codes.value))
        return codes

    def decode(self, codes: Codes, D: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
        """Reconstructions without bias [n_groups, n, d_in]."""
        D = _floats(D)
        ends = np.asarray(bounds, np.int64)
        y = torch.empty(len(ends), codes.n_tokens, D.shape[1])
        self._lib.cytosae_decode(
            _at(codes.row_start), _at(codes.latent), _at(codes.value), _long(codes.n_tokens), _at(D), _long(D.shape[1]),
            _at(ends), _long(len(ends)), _at(y), torch.get_num_threads(),
        )  # fmt: skip
        return y

    def update(
        self,
        weights: Weights,
        x: torch.Tensor,
        terms: Sequence[Term],
        adam: AdamStep,
        *,
        normalise: bool,
        extra: RowGradients | None = None,
    ) -> torch.Tensor:
        """One Adam step; the integers of the encoder are refreshed in the same visit."""
        w, x = weights, _floats(x)
        m, d = w.E.shape
        parts = [_Arrays(term) for term in terms]
        position: torch.Tensor | None = None
        rows: tuple[torch.Tensor | None, ...] = (None, None, None)
        if extra is not None:
            position = torch.full((m,), -1, dtype=torch.int64)
            position[extra.latents] = torch.arange(len(extra.latents))
            rows = (_floats(extra.E), _floats(extra.D), _floats(extra.b_enc))
        if self._halves:  # not what the visit refreshes
            kept, self._packs = (_at(None),) * 3, []
        else:
            packed = self._pack(w.E)
            kept = (_at(packed.bytes), _at(packed.scale), _at(packed.norm))
        numbers = _numbers(adam)
        groups, l1s = np.array([len(p.bounds) for p in parts], np.int64), np.array([p.l1 for p in parts], np.float32)
        carry = torch.empty(d)
        self._lib.cytosae_update(
            _at(w.E), _at(w.D), _at(w.b_enc), _at(w.E_avg), _at(w.E_square), _at(w.D_avg), _at(w.D_square), _at(w.b_avg),
            _at(w.b_square), _long(m), _long(d), _at(x), _long(len(x)), _long(len(parts)),
            _list([p.row_start for p in parts]), _list([p.latent for p in parts]), _list([p.value for p in parts]),
            _list([p.g_y for p in parts]), _list([p.bounds for p in parts]), _at(groups), _at(l1s), _at(position),
            _at(rows[0]), _at(rows[1]), _at(rows[2]), _at(numbers), int(normalise), *kept, _at(carry), torch.get_num_threads(),
        )  # fmt: skip
        return carry

    def move(
        self, w: Weights, gE: torch.Tensor, gD: torch.Tensor, gb: torch.Tensor, adam: AdamStep, normalise: bool
    ) -> torch.Tensor:
        """From whole gradients to moved weights, as `cytosae.sae.ops.reference.move_weights`, in one visit per row."""
        m, d = w.E.shape
        self._packs = []  # of the matrix that moves
        numbers, carry, none = _numbers(adam), torch.empty(d), _at(None)
        rows = [torch.arange(m), *(_floats(g) for g in (gE, gD, gb))]  # held until the call is over
        self._lib.cytosae_update(
            _at(w.E), _at(w.D), _at(w.b_enc), _at(w.E_avg), _at(w.E_square), _at(w.D_avg), _at(w.D_square), _at(w.b_avg),
            _at(w.b_square), _long(m), _long(d), none, _long(0), _long(0), none, none, none, none, none, none, none,
            *(_at(g) for g in rows), _at(numbers), int(normalise), none, none, none, _at(carry),
            torch.get_num_threads(),
        )  # fmt: skip
        return carry

    def _pack(self, E: torch.Tensor) -> _Packed:
        """The integers of a matrix, kept as long as it is this tensor in this version."""
        for packed in self._packs:
            if packed.tensor is E and packed.version == E._version:
                return packed
        rows = E if E.dtype == torch.float32 and E.is_contiguous() else E.float().contiguous()
        made = _Packed(self._lib, rows, self._halves)
        if made.tensor is E:
            self._packs = [made, *(p for p in self._packs if p.tensor is not E)][:_KEPT]
        return made


class _Arrays:
    """A term as the library takes it: latents numbered over all of them."""

    def __init__(self, term: Term) -> None:
        latent = term.codes.latent
        if term.latents is not None:
            latent = term.latents[latent.long()].int()
        self.row_start, self.latent, self.value = (
            term.codes.row_start.contiguous(),
            latent.contiguous(),
            _floats(term.codes.value),
        )
        self.g_y, self.bounds, self.l1 = _floats(term.g_y), np.asarray(term.bounds, np.int64), term.l1


def _numbers(adam: AdamStep) -> Any:
    sizes = [1 / (1 - beta**adam.step) for beta in (adam.beta1, adam.beta2)]
    return np.array([adam.lr, adam.beta1, adam.beta2, *sizes, adam.eps], np.float32)


def _floats(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().contiguous()


def _long(n: int) -> ctypes.c_int64:
    return ctypes.c_int64(int(n))


def _at(array: Any) -> ctypes.c_void_p:
    if array is None:
        return ctypes.c_void_p()
    return ctypes.c_void_p(array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data)


def _list(arrays: Sequence[Any]) -> Any:
    return (ctypes.c_void_p * max(len(arrays), 1))(*(_at(a).value for a in arrays))
