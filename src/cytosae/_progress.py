"""Progress of long work: a bar on a terminal, plain lines elsewhere, silence when called as a library."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_enabled = False


def enable_progress(on: bool = True) -> None:
    """Switch progress output on (the command line does) or off (the default for library use)."""
    global _enabled
    _enabled = on


def say(text: str) -> None:
    """Print one line of progress to standard error, when progress is on."""
    if _enabled:
        print(text, file=sys.stderr, flush=True)


class Meter:
    """Counts work done towards `total` and shows it; `note` is shown behind the count."""

    def __init__(self, total: int, what: str, unit: str) -> None:
        self.total, self.what, self.unit, self.done = total, what, unit, 0
        self._started = self._shown = time.monotonic()
        self._bar = None
        if _enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=what, unit=f" {unit}", dynamic_ncols=True, file=sys.stderr)

    def add(self, n: int, note: str = "") -> None:
        """Count `n` more units of work."""
        self.done += n
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)
        elif _enabled:
            now = time.monotonic()
            if now - self._shown >= 10 and self.done < self.total:
                self._shown = now
                rate = self.done / max(now - self._started, 1e-9)
                say(f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {rate:,.0f} a second{_tail(note)}")

    def close(self) -> None:
        """Finish the bar, or print the closing line."""
        if self._bar is not None:
            self._bar.close()
        elif _enabled:
            seconds = time.monotonic() - self._started
            say(f"{self.what}: {self.done:,} {self.unit} in {seconds:.0f} s")

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def track(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """Yield `items`, counting each as one unit of work."""
    with Meter(total, what, unit) as meter:
        for item in items:
            yield item
            meter.add(1)


def _tail(note: str) -> str:
    return f"; {note}" if note else ""
