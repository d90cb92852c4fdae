"""One part of the scorecard."""

from __future__ import annotations

from typing import Any, Protocol

from cytosae.evaluation._context import Context


class Section(Protocol):
    """What one part measures.

    Attributes
    ----------
    name
        As ``--parts`` calls it.
    title
        Its heading.
    question
        What it answers, in one plain sentence.
    version
        Raised when its numbers change, so that older ones are measured again.
    """

    name: str
    title: str
    question: str
    version: int

    def missing(self, context: Context) -> str | None:
        """The ingredient without which it cannot be measured, in one sentence; None where all is there."""

    def measure(self, context: Context) -> dict[str, Any]:
        """Its numbers, as plain values for JSON.

        The page draws what these keys hold, all optional: ``tables`` (a list of ``{title, note, header, rows}``, values as
        text or numbers), ``comparisons`` (a list of ``{what, dictionary, controls: [{name, title, value, low, high, difference, verdict}]}``, see
        `cytosae.evaluation._bootstrap.compare`), ``series`` (a list of ``{title, x, y, log_x, log_y, lines}``),
        ``notes`` (the traps that apply, one sentence each), ``chosen`` (what was chosen where, one sentence), ``n``
        (``{name: count}``), and ``n_configurations`` (how many were tried).
        """
