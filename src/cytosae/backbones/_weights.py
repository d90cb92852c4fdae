"""Weight files, read without running anything that is in them: safetensors, or PyTorch files with ``weights_only``.

A PyTorch file is a pickle, and unpickling runs code. The classes it names are therefore listed first, without loading, and
anything beyond plain tensors is refused by name; then PyTorch's own restricted unpickler reads it.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytosae._errors import CytosaeError

if TYPE_CHECKING:
    import torch

#: Where published files keep the state dict, the best first (a teacher or an average is what its authors publish).
_NESTS = ("teacher", "state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weight file by name: nests opened, ``backbone.`` stripped, training heads left out.

    Parameters
    ----------
    path
        ``.safetensors``, or a PyTorch file (``.pth``, ``.pt``, ``.bin``).

    Raises
    ------
    CytosaeError
        The file is missing, cut short, of another format, or holds code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CytosaeError(f"{path} cannot be read ({error.strerror}); check the path after --weights.") from error
    # a safetensors file begins with the length of its header (8 bytes), which is JSON
    if path.suffix == ".safetensors" or head[8:] == b"{":
        return _strip(_read_safetensors(path))
    return _strip(_open_nests(_read_torch(path), path))


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CytosaeError(f"{path} is cut short or is not safetensors ({error}); get the file again.") from error


def _read_torch(path: Path) -> Any:
    import torch

    try:
        zipped = zipfile.is_zipfile(path)
        names = _members(path) if zipped else []
    except Exception as error:  # BadZipFile also from is_zipfile, where the end of the archive contradicts itself
        raise _damaged(path) from error
    if any(name.endswith("constants.pkl") for name in names):
        raise CytosaeError(
            f"{path} is a TorchScript archive, which holds code and is not run; save its state_dict() with "
            "safetensors where you trust it, and give that file."
        )
    _refuse_code(path, zipped)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|class|global)[: ]+([\w]+(?:\.[\w]+)+)", str(error))
        raise _blocked(path, [named[1]] if named else ["an object that is not a tensor"]) from error
    except Exception as error:  # torch has no type of its own for a damaged file: Runtime, EOF, Key, Value, Index ...
        raise _damaged(path) from error


def _members(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _damaged(path: Path) -> CytosaeError:
    return CytosaeError(f"{path} is cut short or is not a PyTorch checkpoint; get the file again and compare its size.")


def _refuse_code(path: Path, zipped: bool) -> None:
    """Name the classes that a pickle would import, without loading it."""
    import torch

    found: list[str]
    if zipped:
        try:
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except Exception:  # a damaged archive; the restricted unpickler below says what is wrong with it
            return
    else:
        found = [name for name in _globals(path) if not _is_plain(name)]
    if found:
        raise _blocked(path, sorted(set(found)))


def _globals(path: Path) -> list[str]:
    """The classes and functions that the pickles at the beginning of a file name (old PyTorch files hold four, then data)."""
    found: list[str] = []
    with path.open("rb") as file:
        for _ in range(4):
            strings: list[str] = []
            try:
                for code, argument, _position in pickletools.genops(file):
                    if code.name == "GLOBAL":
                        found.append(str(argument).replace(" ", "."))
                    elif code.name == "STACK_GLOBAL" and len(strings) > 1:
                        found.append(".".join(strings[-2:]))
                    elif isinstance(argument, str):
                        strings.append(argument)
            except Exception:  # not a pickle, or the end of it: what was named so far counts
                break
    return found


def _is_plain(name: str) -> bool:
    """Whether PyTorch itself needs this name to rebuild tensors."""
    return name == "collections.OrderedDict" or bool(
        re.fullmatch(
            r"torch\.(_utils\._rebuild\w+|nn\.parameter\.\w+|(storage\.)?\w*Storage|\w*Tensor|Size|device|float\d+|bfloat16|int\d+)",
            name,
        )
    )


def _blocked(path: Path, classes: list[str]) -> CytosaeError:
    return CytosaeError(
        f"{path} was not loaded: it names {', '.join(classes[:3])}, and loading that would run code; where you trust "
        "the file, save its tensors alone (safetensors, or torch.save(model.state_dict(), FILE)) and give that file."
    )


def _open_nests(found: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict inside what a training program saved."""
    import torch

    while isinstance(found, dict):
        inner = next((found[key] for key in _NESTS if isinstance(found.get(key), dict)), None)
        if inner is None:
            break
        found = inner
    tensors = (
        {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
        if isinstance(found, dict)
        else {}
    )
    if not tensors:
        raise CytosaeError(f"{path} holds no named tensors; give a file with a network's state dict.")
    return tensors


def _strip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without wrappers' prefixes, and of a whole training state (backbone and heads) the backbone alone."""
    for prefix in ("module.", "_orig_mod."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    if any(key.startswith("backbone.") for key in state):
        state = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    return {k: v for k, v in state.items() if "dino_head" not in k and "ibot_head" not in k}
