"""Compiles `step.cpp` once for each machine, source and compiler, into the user's cache folder."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import torch

from cytosae._progress import say
from cytosae.storage import cache_folder

#: Associative sums let the compiler vectorise; NaN and infinity keep their meaning, and no global floating-point mode is set.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math",
         "-fno-signed-zeros", "-fassociative-math", "-ffp-contract=fast", "-Wno-maybe-uninitialized")  # fmt: skip
_SECONDS = 300


def library(*more: str) -> ctypes.CDLL | None:
    """The compiled library, built at the first use; None, with one line on why, where that cannot be done.

    Parameters
    ----------
    more
        Further flags, as for a lesser processor (``-march=haswell``).
    """
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        say("sae: no C++ compiler here, so training takes the slower portable path (install g++ for the fast one)")
        return None
    try:
        return ctypes.CDLL(str(_built(compiler, (*FLAGS, *more))))
    except (OSError, subprocess.SubprocessError) as error:
        first = str(getattr(error, "stderr", "") or error).strip().splitlines()
        say(f"sae: the fast path could not be built ({first[0] if first else error}); training takes the portable one")
        return None


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    """Path of the shared library; two processes that want it at once build it once."""
    source = (files("cytosae.sae.ops.native") / "step.cpp").read_bytes()
    openmp = _openmp()
    key = hashlib.sha256(
        b"\0".join([source, *(f.encode() for f in (*flags, *openmp, compiler, _version(compiler), _processor()))])
    )
    folder = cache_folder() / "native"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{key.hexdigest()[:16]}.so"
    if target.exists():
        return target
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            own = folder / f".{target.stem}-{os.getpid()}"
            code, out = own.with_suffix(".cpp"), own.with_suffix(".so")
            try:
                code.write_bytes(source)
                command = [compiler, *flags, str(code), "-o", str(out), *openmp]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
                os.replace(out, target)
            finally:
                code.unlink(missing_ok=True)
                out.unlink(missing_ok=True)
    return target


def _openmp() -> list[str]:
    """Link the very OpenMP runtime that torch has loaded: two pools of threads would wait for each other."""
    place = Path(torch.__file__).parent
    bundled = [*place.glob("lib/libgomp*.so*"), *place.parent.glob("torch.libs/libgomp*.so*")]
    return [str(bundled[0]), f"-Wl,-rpath,{bundled[0].parent}"] if bundled else []


def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.splitlines()[0] if done.stdout else ""


def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="ignore").splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(("flags", "Features", "model name"))))
