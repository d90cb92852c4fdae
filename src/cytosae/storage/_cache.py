"""The user's cache folder."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cache_folder() -> Path:
    """Where what can be made again is kept (converted weights, compiled code): ``CYTOSAE_CACHE``, else the system's cache folder of the user."""
    if os.environ.get("CYTOSAE_CACHE"):
        return Path(os.environ["CYTOSAE_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "cytosae"
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Caches" / "cytosae"
    if platform.system() == "Windows":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "cytosae" / "cache"
    return Path.home() / ".cache" / "cytosae"
