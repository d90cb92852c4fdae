"""Shared by all tests: one demo run a session, small tables of real cells, and a stand-in backbone of known answers."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from cytosae.cells import Cells, ImageParquet, build_cells, bundled_path

REPOSITORY = Path(__file__).resolve().parents[1]
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def pytest_configure() -> None:
    """Workers share the processor; torch, which reads this, is imported later, here and in every process of a test.

    A shell that starts the tests in the background has Ctrl-C ignored, in every process of a test too; they are to hear it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if _WORKERS > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file comes first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")


def run_cli(*arguments: str | Path, timeout: float = 600, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "cytosae", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd, check=False)


@pytest.fixture(scope="session")
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run_cli


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the demo from the command line, made once a session (``CYTOSAE_DEMO_RUN``: one that is there)."""
    if os.environ.get("CYTOSAE_DEMO_RUN"):
        return Path(os.environ["CYTOSAE_DEMO_RUN"])
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if _WORKERS > 1 else base  # the folder that all workers have in common
    out, whole = (
        shared / "demo" / "run",
        shared / "demo" / "peak-gb",
    )  # largest resident size of a child, once it is made
    with FileLock(shared / "demo.lock"):
        if not whole.exists():
            done = run_cli("demo", "--out", out, "--threads", 2, timeout=1200)
            assert done.returncode == 0, done.stderr
            whole.write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20))
    return out


@pytest.fixture(scope="session")
def bundle() -> ImageParquet:
    return ImageParquet(bundled_path())


@pytest.fixture(scope="session")
def some_jpegs(bundle: ImageParquet) -> list[bytes]:
    """Forty real cells as JPEG files."""
    return [bundle.read(i)[0] or b"" for i in range(40)]


@pytest.fixture
def cell_folder(tmp_path: Path, bundle: ImageParquet) -> Path:
    """Twelve real cells in class folders."""
    frame = bundle.frame()
    folder = tmp_path / "cells"
    for row in range(12):
        path = folder / frame["label"][row].replace(" ", "_") / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle.read(row)[0] or b"")
    return folder


@pytest.fixture
def few_cells(cell_folder: Path, tmp_path: Path) -> Cells:
    return build_cells(cell_folder, tmp_path / "cells.parquet")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
