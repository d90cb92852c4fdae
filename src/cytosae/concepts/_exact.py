"""Sums that do not depend on the order in which they are made: numbers as integers in four limbs of 32 bits.

A value v >= 0 is kept as ``sum_k limb[k] * 2**(32 k - 96)``, k = 0..3. What lies below ``UNIT`` = 2^-96 (1.3e-29) is rounded
once, when the value enters; from there on only integers are added. A float32 from 2^-72 upwards and a float64 from 2^-43
upwards enter without any rounding, so one sum may hold values over far more than twelve orders of magnitude.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._errors import CytosaeError

N_LIMBS, BITS = 4, 32
#: The smallest step of a sum.
UNIT = 2.0 ** (-BITS * (N_LIMBS - 1))
#: Values from here on do not fit the highest limb with room for adding.
LIMIT = 2.0**52

Ints = npt.NDArray[np.int64]


def zeros(n: int) -> Ints:
    """`n` empty sums: int64 [N_LIMBS, n]."""
    return np.zeros((N_LIMBS, n), np.int64)


def limbs_of(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Numbers as limbs: whole numbers in float64 [N_LIMBS, n].

    Raises
    ------
    CytosaeError
        A value that is negative, not a number, or at least `LIMIT`.
    """
    rest = values.astype(np.float64)
    if len(rest) and not (rest.min() >= 0 and rest.max() < LIMIT):
        raise CytosaeError("An activation is negative, not finite, or beyond 4e15; these tokens cannot be summed.")
    out = np.empty((N_LIMBS, len(rest)))
    for limb in range(N_LIMBS - 1, 0, -1):
        np.floor(rest, out=out[limb])
        rest -= out[limb]
        rest *= 2.0**BITS  # exact: powers of two and a difference that needs no more bits
    np.rint(rest, out=out[0])
    return out


def sums_by(at: npt.NDArray[Any], numbers: npt.NDArray[np.float64], size: int) -> Ints:
    """Sums of whole numbers that are not negative, by `at` (from 0 to below `size`): int64 [size], exact."""
    if len(numbers) and numbers.max() * len(numbers) >= 2.0**53:  # float64 would round
        out = np.zeros(size, np.int64)
        np.add.at(out, at, numbers.astype(np.int64))
        return out
    return np.bincount(at, numbers, size).astype(np.int64)


def carry(sums: Ints) -> None:
    """Bring every limb but the highest below 2^32: the one form that a sum has, whatever led to it."""
    for limb in range(N_LIMBS - 1):
        over = sums[limb] >> BITS
        sums[limb] -= over << BITS
        sums[limb + 1] += over


def to_float(sums: Ints) -> npt.NDArray[np.float64]:
    """The sums as float64 (the only other rounding there is)."""
    out: npt.NDArray[np.float64] = sums[0].astype(np.float64)
    for limb in range(1, N_LIMBS):
        out = np.asarray(sums[limb] + out * 2.0**-BITS)
    return out
