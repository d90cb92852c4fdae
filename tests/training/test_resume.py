"""A run that was killed, told to stop, or diverged: nothing is lost, and it ends with the bytes of an unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cytosae import extract_tokens
from cytosae.cells import build_cells, bundled_path
from stand_in import PatchColours

#: Trains a dictionary in children of one process, each killed while it writes a checkpoint after a given number of bytes.
KILLER = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import safetensors.torch
from safetensors.torch import save
from cytosae import TokenStore, read_cells
from cytosae.training import fit, override

table, out, offset, which, *settings = sys.argv[1:]
table, offsets, which = Path(table), [int(o) for o in offset.split(",")], int(which)

def run(out):
    fit(TokenStore(table / "tokens"), read_cells(table / "cells.parquet"), override("small", settings), Path(out),
        heldout=("split=test", "dataset=acevedo_pbc"))

def child(out, offset):
    pid = os.fork()
    if pid == 0:
        if offset is not None:
            seen = []
            def cut(tensors, path):
                seen.append(path)
                data = save(tensors)
                if len(seen) < which:
                    Path(path).write_bytes(data)
                    return
                with open(path, "wb", buffering=0) as file:
                    file.write(data[: offset % (len(data) + 1)])
                    os.kill(os.getpid(), signal.SIGKILL)
            safetensors.torch.save_file = cut
        run(out)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

assert child(out + "/whole", None) == 0
for number, offset in enumerate(offsets):
    place = f"{out}/killed-{number}"
    assert os.WTERMSIG(child(place, offset)) == signal.SIGKILL
    assert child(place, None) == 0
print("done")
"""
SETTINGS = ("expansion=4", "background=1", "batch=128", "warmup=10", "dead_after=2000", "aux_k=4", "products=float32")
FILES = ("sae.safetensors", "metrics.jsonl", "sae.json", "manifest.json")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    cells = build_cells(bundled_path(), folder / "cells.parquet")
    extract_tokens(cells, PatchColours(), folder / "tokens")  # type: ignore[arg-type]
    return folder


def killed_runs(table: Path, out: Path, offsets: list[int], which: int, *settings: str) -> None:
    out.mkdir()
    command = [
        sys.executable,
        "-c",
        KILLER,
        str(table),
        str(out),
        ",".join(map(str, offsets)),
        str(which),
        *SETTINGS,
        *settings,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for number in range(len(offsets)):
        for name in FILES:
            assert (out / "whole" / name).read_bytes() == (out / f"killed-{number}" / name).read_bytes(), (number, name)


def test_killed_at_twenty_places_of_writing_a_checkpoint(table: Path, tmp_path: Path) -> None:
    """Offsets spread over the file, its header and its very ends among them; the second checkpoint is the one cut."""
    offsets = [0, 1, 7, 8, 9, 100, 1000, 2**62, *(i * 7919 + 13 for i in range(1, 13))]
    assert len(offsets) == 20
    killed_runs(table, tmp_path / "runs", offsets, 2, "k=2", "presentations=30000")


@pytest.mark.parametrize("k", [1, 7])
def test_killed_after_auxk_has_fired(table: Path, tmp_path: Path, k: int) -> None:
    killed_runs(
        table, tmp_path / "runs", [0, 500], 3, f"k={k}", "presentations=60000", "dead_after=128", "expansion=16"
    )
    lines = [json.loads(line) for line in (tmp_path / "runs" / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert any("aux" in line for line in lines if line["step"] < 300), "the auxiliary loss was at work before the kill"


@pytest.mark.parametrize(("recipe", "settings"), [
    ("small", ("model=jumprelu", "k=2", "presentations=30000")),
    ("small", ("model=batchtopk", "dead=resample", "resample_every=30", "dead_after=300", "k=1", "presentations=30000")),
    ("cytosae-2025", ("presentations=3000", "cells_per_step=16", "dead_after=3")),
])  # fmt: skip
def test_other_kinds_resume_too(table: Path, tmp_path: Path, recipe: str, settings: tuple[str, ...]) -> None:
    script = KILLER.replace('override("small"', f'override("{recipe}"')
    out = tmp_path / "runs"
    out.mkdir()
    own = SETTINGS if recipe == "small" else ("expansion=4", "products=float32")
    command = [sys.executable, "-c", script, str(table), str(out), "50", "1", *own, *settings]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in FILES:
        assert (out / "whole" / name).read_bytes() == (out / "killed-0" / name).read_bytes(), name


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_it_saves_the_step_it_is_at(table: Path, tmp_path: Path, number: int, status: int) -> None:
    common = [
        "fit",
        str(table / "tokens"),
        "--recipe",
        "small",
        "--threads",
        "1",
        "--heldout",
        "split=test",
        "--heldout",
        "dataset=acevedo_pbc",
    ]
    for setting in (*SETTINGS, "k=2", "presentations=400000"):
        common += ["--set", setting]
    command = [sys.executable, "-m", "cytosae", *common, "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "stopped")], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".stopped.*/.checkpoints/step-*.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    seen = max(tmp_path.glob(".stopped.*/.checkpoints/step-*.safetensors"))
    time.sleep(0.1)  # told while that checkpoint is written, it would rightly stop at the same step
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert "Traceback" not in said
    places = sorted(tmp_path.glob(".stopped.*/.checkpoints/step-*.safetensors"))
    assert 1 <= len(places) <= 2, "the last two are kept"
    assert places[-1].stem > seen.stem, "saved at the very step, not only at the last hundredth"
    assert subprocess.run([*command, str(tmp_path / "stopped")], check=False, capture_output=True).returncode == 0
    assert subprocess.run([*command, str(tmp_path / "whole")], check=False, capture_output=True).returncode == 0
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes(), name
