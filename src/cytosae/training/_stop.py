"""Stopping between two steps: a signal waits until weights and moments agree."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class StopBetweenSteps:
    """While it is open, SIGINT and SIGTERM only set `asked`; `give_way` then hands the signal to its usual handler.

    The usual handler ends the program (130 or 143); a second signal does so at once. Outside the main thread nothing changes.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._usual[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)
        self._usual = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.give_way()
        self.asked = number

    def give_way(self) -> None:
        """Restore the usual handlers and raise the signal again."""
        number = self.asked
        self.__exit__()
        signal.raise_signal(number)
