"""`manifest.json` of an artifact folder: what it is, from what it was made, and the hash of every file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytosae._errors import CytosaeError
from cytosae._version import __version__
from cytosae.storage._hash import hash_file

#: Files up to this size are hashed on every reading; larger ones are checked by their size.
HASHED_ON_READING = 64 * 2**20


@dataclass(frozen=True)
class Manifest:
    """A manifest as read back and checked."""

    folder: Path
    data: dict[str, Any]
    hash: str

    def __getitem__(self, key: str) -> Any:
        try:
            return self.data[key]
        except KeyError:
            kind = self.data.get("kind", "artifact")
            raise CytosaeError(f"{self.folder / 'manifest.json'} lacks {key!r}; make the {kind} again.") from None

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        return self.data.get(key, default)


def created_by() -> str:
    """The program and its version, as every artifact records it."""
    return f"cytosae {__version__}"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file with sorted keys, so that the same content gives the same bytes."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def build_manifest(
    folder: Path,
    *,
    kind: str,
    version: int,
    inputs: dict[str, str],
    config: dict[str, Any],
    extra: dict[str, Any],
) -> dict[str, Any]:
    """The manifest of all files now in `folder` (hidden files are not part of an artifact)."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "manifest.json" and not any(p.startswith(".") for p in name.split("/")):
            files[name] = {"sha256": hash_file(path), "bytes": path.stat().st_size}
    return {
        **extra,
        "kind": kind,
        "version": version,
        "created_by": created_by(),
        "inputs": inputs,
        "config": config,
        "files": files,
    }


def is_artifact(folder: Path, kind: str) -> bool:
    """Whether `folder` holds a whole artifact of this kind."""
    try:
        return bool(json.loads((folder / "manifest.json").read_text("utf-8")).get("kind") == kind)
    except (OSError, ValueError, AttributeError):
        return False


def read_manifest(folder: Path | str, kind: str, version: int, *, verify: bool = False) -> Manifest:
    """Read and check the manifest of an artifact folder.

    Parameters
    ----------
    folder
        The artifact.
    kind, version
        What it must be, and the newest version this program reads.
    verify
        Hash every file, whatever its size.

    Raises
    ------
    CytosaeError
        Missing, of another kind, too new, or a file is missing, cut or changed.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not folder.exists():
        raise CytosaeError(f"{folder} does not exist; give the folder of a {kind}.")
    try:
        raw = path.read_bytes()
        data = json.loads(raw)
    except OSError as error:
        raise CytosaeError(
            f"{folder} has no readable manifest.json, so it is not a whole {kind}; make it again."
        ) from error
    except ValueError as error:
        raise CytosaeError(f"{path} is not valid JSON; make the {kind} again.") from error
    found = data.get("kind") if isinstance(data, dict) else None
    if found != kind:
        raise CytosaeError(f"{folder} is a {found or 'folder of unknown kind'}, but a {kind} is wanted here.")
    if not isinstance(data.get("version"), int) or data["version"] > version:
        raise CytosaeError(
            f"{folder} was written in version {data.get('version')} of the {kind} format, this program reads up to "
            f"{version}; update cytosae."
        )
    if not isinstance(data.get("files"), dict):
        raise CytosaeError(f"{path} lacks the list of its files; make the {kind} again.")
    for name, record in data["files"].items():
        if name.startswith("/") or ".." in name.split("/"):
            raise CytosaeError(f"{path} names a file outside its folder ({name}); do not use this artifact.")
        file = folder / name
        if not file.is_file() or file.stat().st_size != record["bytes"]:
            raise CytosaeError(f"{file} is missing or cut short; make the {kind} again.")
        if (verify or record["bytes"] <= HASHED_ON_READING) and hash_file(file) != record["sha256"]:
            raise CytosaeError(f"{file} has changed since it was written; make the {kind} again.")
    return Manifest(folder, data, artifact_hash(folder))


def artifact_hash(path: Path) -> str:
    """Identity of an artifact: the sha256 of its manifest (folder) or of the file itself."""
    return hash_file(path / "manifest.json" if path.is_dir() else path)


def same_work(folder: Path, kind: str, inputs: dict[str, str], config: dict[str, Any]) -> bool:
    """Whether `folder` already holds what this work would make: same kind, program, inputs and configuration."""
    try:
        data = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    wanted = {
        "kind": kind,
        "created_by": created_by(),
        "inputs": inputs,
        "config": json.loads(json.dumps(config)),
    }
    return isinstance(data, dict) and all(data.get(k) == v for k, v in wanted.items())
