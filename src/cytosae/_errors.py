from __future__ import annotations

import difflib
from collections.abc import Iterable


class CytosaeError(Exception):
    """What a user can mend: one sentence with the file or value, what is wrong, and what to do.

    The command line prints it without a traceback and exits with status 1 (2 where `usage` is true).
    """

    usage = False


class UsageError(CytosaeError):
    """A wrong option or value on the command line or in a call."""

    usage = True


def nearest(word: str, known: Iterable[str]) -> str:
    """``' (did you mean X?)'`` for the known word nearest to `word`, else the list of known words."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(names)})"
