"""A PyTorch file from elsewhere, read without running anything that is in it.

The container is looked at before PyTorch opens it (sizes, compression, checksums), the classes that its pickle names are
listed without loading it, and anything beyond plain tensors and the known names is refused by name. Then PyTorch's
restricted unpickler reads it, with the known names standing for a class that does nothing.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cytosae._errors import CytosaeError

#: The pickle beside the tensors; a dictionary's is a few kB.
_MOST_PICKLE = 16 * 2**20
#: What PyTorch needs to rebuild dense tensors, and what a configuration may hold.
_ORDINARY = re.compile(
    r"collections\.OrderedDict|torch\.(_utils\._rebuild_(tensor_v[23]|parameter)|nn\.parameter\.Parameter|(storage\.)?\w*Storage|Size|device|"
    r"b?float\d+|double|half|u?int\d+|long|bool|float8_\w+)"
)


class Inert:
    """Stands for a configuration object: holds the fields, does nothing."""


def read_torch(path: Path, known: Sequence[str] = ()) -> Any:
    """What a PyTorch file holds, on the CPU.

    Parameters
    ----------
    path
        A file written by ``torch.save`` (1.6 or later).
    known
        Full names of classes that the file may name; an object of theirs becomes an `Inert`.

    Raises
    ------
    CytosaeError
        Missing, cut short, changed, of another or an old format, compressed, or naming another class.
    """
    _check_container(path)
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # torch has no type of its own for a damaged file
        raise damaged(path) from error
    foreign = sorted(set(named) - set(known))
    if foreign:
        raise blocked(path, foreign)
    # PyTorch also rebuilds sparse tensors and bytearrays of any size; of those a dictionary has none
    odd = sorted(name for name in _named(path) if name not in known and _ORDINARY.fullmatch(name) is None)
    if odd:
        raise CytosaeError(
            f"{path} was not loaded: it names {', '.join(odd[:3])[:200]}, which the plain tensors of a dictionary do not need."
        )
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in known]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CytosaeError(
            f"{path} was not loaded: its pickle does more than describe tensors and settings, and that would run code; "
            "where you trust the file, save its state_dict alone and give that."
        ) from error
    except Exception as error:
        raise damaged(path) from error


def _named(path: Path) -> set[str]:
    """Every class and function that the pickle names, those that PyTorch allows among them."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.rsplit("/", 1)[-1] == "data.pkl")
            codes = pickletools.genops(archive.read(name))
            return {str(argument).replace(" ", ".") for code, argument, _ in codes if code.name == "GLOBAL"}
    except Exception as error:
        raise damaged(path) from error


def damaged(path: Path) -> CytosaeError:
    """The refusal of a file that is not whole."""
    return CytosaeError(f"{path} is cut short or damaged; get the file again and compare its size.")


def blocked(path: Path, classes: list[str]) -> CytosaeError:
    """The refusal of a file that names classes it must not."""
    shown = ", ".join(name[:120] for name in classes[:3])
    return CytosaeError(
        f"{path} was not loaded: it names {shown}, and loading that would run code; where you trust the file, save its "
        "tensors alone and give that."
    )


def _check_container(path: Path) -> None:
    """Refuse, without PyTorch, what is not a plain, whole zip archive as ``torch.save`` writes it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as error:
        raise CytosaeError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    try:
        zipped = zipfile.is_zipfile(path)
    except Exception as error:  # BadZipFile, where the end of the archive is there but contradicts itself
        raise damaged(path) from error
    if not zipped:
        if head[:1] == b"\x80" or (size and _is_tar(path)):
            raise CytosaeError(
                f"{path} is in PyTorch's format from before version 1.6, which is not read here; where you trust the file, "
                "load it and save its tensors again with a current PyTorch."
            )
        raise (
            damaged(path)
            if head == b"PK" or not size
            else CytosaeError(f"{path} is not a PyTorch file (or the end of it is missing); give the .pt file itself.")
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
                raise CytosaeError(
                    f"{path} is a TorchScript archive, which holds code and is not run; save its state_dict() where you "
                    "trust it, and give that file."
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CytosaeError(
                    f"{path} is compressed, which torch.save never does, so it could unpack to any size; give the file as "
                    "it was published."
                )
            if sum(entry.file_size for entry in entries) > size:
                raise CytosaeError(f"{path} claims to hold more than its own size; get the file again.")
            pickles = [entry for entry in entries if entry.filename.rsplit("/", 1)[-1] == "data.pkl"]
            if len(pickles) != 1:
                raise CytosaeError(
                    f"{path} is a zip archive, but not one that torch.save wrote; give the .pt file itself."
                )
            if pickles[0].file_size > _MOST_PICKLE:
                raise CytosaeError(
                    f"{path} has a description of {pickles[0].file_size >> 20} MB, which no dictionary needs; do not use it."
                )
            if archive.testzip() is not None:
                raise damaged(path)
    except CytosaeError:
        raise
    except (
        Exception
    ) as error:  # zipfile: BadZipFile, but also Value, Key, Struct, NotImplemented, Overflow, Runtime ...
        raise damaged(path) from error


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except Exception:
        return False
