"""Axes of the page's plots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis: values `low` to `high` (powers of ten) lie at pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: npt.NDArray[Any], start: float, end: float) -> LogAxis:
        """The axis that holds all positive values, with some room."""
        positive = np.log10(values[values > 0]) if (values > 0).any() else np.array([-1.0, 0.0])
        low, high = float(positive.min()), float(positive.max())
        room = max(0.04 * (high - low), 0.05)
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        """Pixel of a value; what is not positive lies at the lower end."""
        power = math.log10(value) if value > 0 else self.low
        return self.start + (power - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """(pixel, text) at 1, 2, 5 x powers of ten; at powers of ten only over more than three of them."""
        out = []
        for power in range(math.floor(self.low), math.ceil(self.high) + 1):
            for step in (1, 2, 5) if self.high - self.low < 3 else (1,):
                value = step * 10.0**power
                if self.low <= math.log10(value) <= self.high:
                    out.append((self.at(value), f"{value:.3g}" if value >= 1e-3 else f"{value:.0e}"))
        return out


@dataclass(frozen=True)
class LinearAxis:
    """A plain axis: values `low` to `high` lie at pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, n: int = 5) -> list[tuple[float, str]]:
        """(pixel, text) at about `n` multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / n
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        values = [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [(self.at(v), f"{v:g}".replace("-", "\u2212")) for v in (round(v, 10) for v in values)]
