"""Temporary path beside the target, then one rename: a reader sees the old artifact, the new one, or none."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cytosae._errors import CytosaeError
from cytosae.storage._manifest import build_manifest, write_json


@contextmanager
def commit_file(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; on success flush it and rename it over `target`.

    Raises
    ------
    CytosaeError
        The folder cannot be written, or the disk is full; nothing is left behind.
    """
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, target)
            flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def commit_folder(
    target: Path,
    *,
    kind: str,
    version: int,
    inputs: dict[str, str],
    config: dict[str, Any],
    resume: bool = False,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give a working folder beside `target` and a dictionary of extra manifest keys; on success write the manifest and rename.

    With `resume` the working folder has a fixed name made of the work's identity (kind, inputs, config), so that an
    interrupted run finds what it had finished. An older artifact of the same kind at `target` is replaced whole, at the end.

    Raises
    ------
    CytosaeError
        At `target` lies something else: a file, an artifact of another kind, or a folder with other files in it (said before any
        work). Or the folder cannot be written, or the disk is full.
    """
    with _writing(target):
        _refuse_other(target, kind)
        if resume:
            folder = working_folder(target, kind=kind, inputs=inputs, config=config)
        else:
            folder = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
        folder.mkdir(parents=True, exist_ok=True)
        extra: dict[str, Any] = {}
        try:
            yield folder, extra
            _drop_working_state(folder)
            manifest = build_manifest(folder, kind=kind, version=version, inputs=inputs, config=config, extra=extra)
            for name in manifest["files"]:
                flush(folder / name)
            write_json(folder / "manifest.json", manifest)
            flush(folder / "manifest.json")
            flush(folder)
            _swap(folder, target, kind)
        except BaseException:
            if not resume:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                with suppress(OSError):
                    folder.rmdir()  # only where nothing was finished
            raise


def _drop_working_state(folder: Path) -> None:
    """Remove hidden files (checkpoints and the like), and give the others the permissions the user's umask asks for."""
    for path in sorted(folder.rglob(".*"), reverse=True):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def working_folder(target: Path, *, kind: str, inputs: dict[str, str], config: dict[str, Any]) -> Path:
    """The folder in which resumable work towards `target` is kept until it is whole."""
    from cytosae.storage._hash import hash_json

    identity = hash_json({"kind": kind, "inputs": inputs, "config": config})[:12]
    return target.parent / f".{target.name}.{identity}.partial"


def _refuse_other(target: Path, kind: str) -> None:
    """Only an artifact of the same kind, or an empty folder, may be replaced."""
    if target.is_file():
        raise CytosaeError(f"{target} is a file, and would be lost; choose another --out.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / "manifest.json").exists():
        raise CytosaeError(
            f"{target} is a folder with other files in it, not an artifact of CytoSAE; choose another --out."
        )
    try:
        found = json.loads((target / "manifest.json").read_text("utf-8")).get("kind")
    except (OSError, ValueError, AttributeError):
        found = None
    if found != kind:
        what = f"an artifact of the kind {found!r}" if isinstance(found, str) else "a folder of another program"
        raise CytosaeError(f"{target} is {what}, not {kind!r}, and would be lost; choose another --out.")


def _swap(folder: Path, target: Path, kind: str) -> None:
    """Put `folder` at `target`; what stood there goes only after the new one is in place."""
    old = None
    _refuse_other(target, kind)
    if target.exists() or target.is_symlink():
        old = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.old"
        os.rename(target, old)
    try:
        os.rename(folder, target)
    except OSError:
        if old is not None:
            os.rename(old, target)
        raise
    flush(target.parent)
    if old is not None:
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink()


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one sentence with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CytosaeError(
                f"The disk is full while writing {target}; free some space and run the same command again."
            ) from error
        if error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.EISDIR,
            errno.ENOENT,
        ) and _below(error.filename, target):
            raise CytosaeError(
                f"Cannot write {target} ({error.strerror}); choose another --out, in a folder where you may write."
            ) from error
        raise


def _below(name: Any, target: Path) -> bool:
    """Whether the path an error names belongs to the writing of `target` (and not to some input)."""
    if name is None:
        return True
    path, folder = Path(os.fsdecode(name)).absolute(), target.absolute().parent
    return path.is_relative_to(folder) or folder.is_relative_to(path)
