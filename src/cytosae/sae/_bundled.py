"""The dictionaries inside the package, by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.storage import artifact_hash

#: The dictionary that verbs use where none is given.
DEFAULT = "default"
#: Names of the dictionaries in the package.
BUNDLED = (DEFAULT,)


def bundled_folder(name: str = DEFAULT) -> Path:
    """The folder of a bundled dictionary: ``sae/``, ``index/``, ``reference/``, ``captions.parquet``, ``MODEL_CARD.md``.

    Raises
    ------
    UsageError
        No dictionary of this name is in the package.
    CytosaeError
        It should be there and is not.
    """
    if name not in BUNDLED:
        raise UsageError(f"There is no bundled dictionary {name!r}{nearest(name, BUNDLED)}.")
    folder = Path(str(files("cytosae"))) / "bundled" / name
    if not (folder / "sae" / "manifest.json").is_file():
        raise CytosaeError(
            f"{folder} is missing; install cytosae again, or make the dictionary anew with 'make train-default'."
        )
    return folder


def is_bundled(sae_hash: str | None, name: str = DEFAULT) -> bool:
    """Whether a dictionary of this hash is the bundled one (False also where the package holds none)."""
    try:
        return artifact_hash(bundled_folder(name) / "sae") == sae_hash
    except CytosaeError:
        return False


def find_sae(folder: Path | str) -> Path:
    """The SAE folder meant by a path or by the name of a bundled dictionary; a folder of that name goes first."""
    if str(folder) in BUNDLED and not Path(folder).exists():
        return bundled_folder(str(folder)) / "sae"
    return Path(folder)
