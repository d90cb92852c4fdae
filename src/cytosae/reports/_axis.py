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
