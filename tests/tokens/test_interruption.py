"""Extractions that are killed, and disks that fill up: whole shards stay, nothing else, and the end is the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cytosae import CytosaeError, TokenStore, extract_tokens
from cytosae.cells import Cells, build_cells, bundled_path, read_cells
from stand_in import PatchColours

PREAMBLE = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from stand_in import PatchColours
from cytosae import CytosaeError, extract_tokens
from cytosae.cells import read_cells
cells, out = read_cells({cells!r}), Path({out!r})
"""

KILLS = """
random.seed(4)
kills = 0
for attempt in range(40):
    child = os.fork()
    if child == 0:
        extract_tokens(cells, PatchColours(), out, store="bfloat16", patches=6, seed=2, compile="off")
        os._exit(0)
    time.sleep(random.uniform(0.02, 0.5))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
    else:
        break
    assert not out.exists()
    if kills == 7:
        break
n_left = max(0, len(cells) - 256 * sum(len(list(p.glob("tokens-*.bin"))) for p in out.parent.glob(".t.*.partial")))
last = PatchColours()
extract_tokens(cells, last, out, store="bfloat16", patches=6, seed=2, compile="off")
assert out.exists() and (last.n_calls == -(-n_left // 16) or kills < 7), "only the missing shards"
print(kills)
"""

FILLS = """
class Filled(PatchColours):
    def tokens(self, images, layer=-2):
        if self.n_calls == 40:  # in the third shard
            try:
                with open(out.parent / "someone-elses", "wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
            except OSError:
                pass
        return super().tokens(images, layer)

try:
    extract_tokens(cells, Filled(), out)
except CytosaeError as error:
    print(error)
assert not out.exists()
print(*sorted(p.name for p in next(out.parent.glob(".t.*.partial")).iterdir()))
(out.parent / "someone-elses").unlink()
again = PatchColours()
print(extract_tokens(cells, again, out).hash, again.n_calls)
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All bundled cells: several shards."""
    path = tmp_path_factory.mktemp("bundled") / "cells.parquet"
    build_cells(bundled_path(), path)
    return path


@pytest.fixture
def cells(table: Path) -> Cells:
    return read_cells(table)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The number of threads is part of an artifact's record, and the children have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def script(body: str, table: Path, out: Path) -> str:
    return PREAMBLE.format(tests=str(Path(__file__).parents[1]), cells=str(table), out=str(out)) + body


def test_killed_again_and_again_at_any_moment_it_ends_with_the_same_bytes(
    cells: Cells, table: Path, tmp_path: Path
) -> None:
    code = script(KILLS, table, tmp_path / "t")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    whole = extract_tokens(
        cells, PatchColours(), tmp_path / "whole", store="bfloat16", patches=6, seed=2, compile="off"
    )  # type: ignore[arg-type]
    for path in sorted((tmp_path / "whole").iterdir()):
        assert path.read_bytes() == (tmp_path / "t" / path.name).read_bytes(), path.name
    assert TokenStore(tmp_path / "t").hash == whole.hash


def test_a_disk_that_fills_up_leaves_whole_shards_and_goes_on_from_them(
    cells: Cells, table: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {disk}"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False, capture_output=True).returncode:  # fmt: skip
        pytest.skip("needs a Linux that lets users mount a small disk of their own")
    code = tmp_path / "fills.py"
    code.write_text(script(FILLS, table, disk / "t"), "utf-8")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} && exec {sys.executable} {code}"],
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, left, end = done.stdout.splitlines()
    assert "The disk is full" in said
    assert "run the same command again" in said
    assert left == "tokens-00000.bin tokens-00001.bin"
    whole, n_batches = extract_tokens(cells, PatchColours(), tmp_path / "whole"), -(-len(cells) // 16)  # type: ignore[arg-type]
    assert end == f"{whole.hash} {n_batches - 32}"


def test_a_disk_too_small_for_the_tokens_is_said_at_the_start_not_at_97_percent(
    cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = PatchColours()
    needed = len(cells) * 17 * 8 * 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, needed - 1))  # type: ignore[attr-defined]
    with pytest.raises(CytosaeError, match="GB free; free some space, or keep less"):
        extract_tokens(cells, backbone, tmp_path / "t")  # type: ignore[arg-type]
    assert not backbone.n_calls
    assert not (tmp_path / "t").exists()
