"""JSON and other people's settings, made harmless: bounded in size, plain values only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cytosae._errors import CytosaeError

#: A settings file above this is not one.
_MOST_BYTES = 16 * 2**20
#: Values kept of a nest of settings, and characters of one of them: shared references can make a small file a huge tree.
_MOST_VALUES, _MOST_CHARACTERS = 5000, 4000


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that came from elsewhere.

    Raises
    ------
    CytosaeError
        Missing, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CytosaeError(f"{path} is larger than any settings file ({_MOST_BYTES >> 20} MB); get the file again.")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise CytosaeError(f"{path} cannot be read ({error.strerror}); get the whole folder.") from error
    except (ValueError, RecursionError) as error:
        raise CytosaeError(f"{path} is cut short or is not JSON; get the file again.") from error
    if not isinstance(found, dict):
        raise CytosaeError(f"{path} holds no JSON object, so it says nothing about a dictionary; get the file again.")
    return found


def plain(settings: Any) -> Any:
    """Settings as plain values that JSON can hold: what is neither is given by the name of its type.

    Numbers that are not finite become null, dtypes and devices their names; long strings and large nests are cut.
    """
    left = _MOST_VALUES

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return value if abs(value) < 2**63 else None
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, str):
            return _text(value)
        if depth < 8 and isinstance(value, dict):
            return {_text(str(k)): walk(v, depth + 1) for k, v in value.items() if isinstance(k, str) and left > 0}
        if depth < 8 and isinstance(value, list | tuple):
            return [walk(v, depth + 1) for v in value if left > 0]
        if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device", "Size"):
            return _text(str(value).removeprefix("torch."))
        return f"<{type(value).__name__}>"

    return walk(settings, 0)


def _text(value: str) -> str:
    # a pickle may hold half a surrogate pair, which no file can
    return value[:_MOST_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def whole_number(value: Any) -> int | None:
    """The value as an int where it is a whole number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        return None
    return int(value)


def text_or_none(value: Any) -> str | None:
    """The value where it is a string that is not empty, else None."""
    return value if isinstance(value, str) and value else None
