"""Eager or compiled: chosen once, recorded, kept on resuming, and never mixed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cytosae.tokens._forward as forward
from cytosae import CytosaeError, TokenStore, extract_tokens
from cytosae._errors import UsageError
from cytosae._progress import enable_progress
from cytosae.backbones import why_not_compiled
from cytosae.cells import Cells, build_cells, bundled_path, read_cells
from small_vit import small_vit
from stand_in import PatchColours

needs_compiler = pytest.mark.skipif(bool(why_not_compiled("cpu")), reason="no C++ compiler")
Cli = Callable[..., subprocess.CompletedProcess[str]]

KILLS = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from small_vit import small_vit
from cytosae import extract_tokens
from cytosae.cells import read_cells
cells, out, backbone = read_cells({cells!r}), Path({out!r}), small_vit()
backbone.compile(16)  # the children inherit it
random.seed(7)
kills = 0
for attempt in range(40):
    child = os.fork()
    if child == 0:
        extract_tokens(cells, backbone, out, compile="on")
        os._exit(0)
    time.sleep(random.uniform(0.1, 0.9))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    kills += os.WIFSIGNALED(status)
    if kills == 5 or not os.WIFSIGNALED(status):
        break
print(kills)
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All bundled cells: several shards."""
    path = tmp_path_factory.mktemp("bundled") / "cells.parquet"
    build_cells(bundled_path(), path)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What has been said on standard error since the last call."""
    enable_progress()
    yield lambda: capsys.readouterr().err
    enable_progress(False)


def unfinished(folder: Path, torch_version: str | None = None) -> Path:
    """The working folder of a compiled extraction to `folder`/t that was stopped before its first shard."""
    work = next(folder.glob(".t.*.partial"))
    if torch_version:
        record = json.loads((work / forward.RECORD).read_text("utf-8"))
        (work / forward.RECORD).write_text(json.dumps(record | {"torch": torch_version}), "utf-8")
    return work


class Stops(PatchColours):
    """Claims to be compiled, and stops after so many batches."""

    def __init__(self, n: int, compiles: str = "") -> None:
        super().__init__()
        self.n, self.compiles, self.compiled = n, compiles, 0

    def compile(self, batch: int, layer: int) -> None:
        if self.compiles:
            raise CytosaeError(f"{self.compiles}; use --compile off.")
        self.compiled = batch

    def tokens(self, images: Any, layer: int = -2) -> torch.Tensor:
        if self.n_calls == self.n:
            raise KeyboardInterrupt
        return super().tokens(images, layer) * (1.5 if self.compiled else 1)


@needs_compiler
def test_killed_at_any_moment_a_compiled_extraction_ends_with_the_same_bytes(table: Path, tmp_path: Path) -> None:
    code = KILLS.format(tests=str(Path(__file__).parents[1]), cells=str(table), out=str(tmp_path / "t"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    cells = read_cells(table)
    resumed = extract_tokens(cells, small_vit(), tmp_path / "t", compile="on")
    whole = extract_tokens(cells, small_vit(), tmp_path / "whole", compile="on")
    assert resumed.manifest["forward"] == {"compiled": True, "torch": torch.__version__,
                                           "cpu": torch.backends.cpu.get_cpu_capability()}  # fmt: skip
    assert resumed.hash == whole.hash
    for path in sorted((tmp_path / "whole").iterdir()):
        assert path.read_bytes() == (tmp_path / "t" / path.name).read_bytes(), path.name
    eager = extract_tokens(cells, small_vit(), tmp_path / "eager", compile="off", store="float32")
    rows = np.arange(eager.n_rows)
    assert eager.manifest["forward"] == {"compiled": False}
    assert torch.allclose(eager.read(rows), resumed.read(rows).float(), rtol=2e-3, atol=2e-3)  # float16 store


def test_a_store_begun_compiled_is_not_finished_by_another_program_or_eager(table: Path, tmp_path: Path) -> None:
    cells, out = read_cells(table), tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        extract_tokens(cells, Stops(20), out, compile="on")  # type: ignore[arg-type]
    work = unfinished(tmp_path)
    before = {p.name: p.read_bytes() for p in work.iterdir()}
    assert set(before) == {"tokens-00000.bin", "forward.json"}
    with pytest.raises(CytosaeError, match=r"begun with a compiled forward pass.*no disk; mend that, or begin anew"):
        extract_tokens(cells, Stops(-1, "no disk"), out, compile="on")  # type: ignore[arg-type]
    assert {p.name: p.read_bytes() for p in work.iterdir()} == before
    whole = extract_tokens(cells, Stops(-1), tmp_path / "whole", compile="on")  # type: ignore[arg-type]
    again = extract_tokens(cells, Stops(-1), out, compile="on")  # type: ignore[arg-type]
    assert again.hash == whole.hash
    with pytest.raises(KeyboardInterrupt):
        extract_tokens(cells, Stops(0), tmp_path / "o" / "t", compile="on")  # type: ignore[arg-type]
    unfinished(tmp_path / "o", "1.0")
    with pytest.raises(CytosaeError, match=r"by torch 1\.0 and here it is .*begin anew with --compile off or another"):
        extract_tokens(cells, Stops(-1), tmp_path / "o" / "t", compile="on")  # type: ignore[arg-type]


def test_a_store_begun_eager_stays_eager_and_the_backbone_is_left_eager(table: Path, tmp_path: Path) -> None:
    cells, out = read_cells(table), tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        extract_tokens(cells, Stops(20, "no compiler"), out, compile="on")  # type: ignore[arg-type]
    backbone = Stops(-1)
    store = extract_tokens(cells, backbone, out, compile="on")  # type: ignore[arg-type]
    assert store.manifest["forward"] == {"compiled": False}
    rows = np.arange(store.n_rows)
    eager = extract_tokens(cells, PatchColours(), tmp_path / "e")  # type: ignore[arg-type]
    assert torch.equal(store.read(rows), eager.read(rows))
    extract_tokens(cells, backbone, tmp_path / "c", compile="on")  # type: ignore[arg-type]
    assert not backbone.compiled, "what is computed next has not asked for compiled tokens"


@pytest.mark.parametrize(
    ("n_left", "eager", "compiled", "fails", "wanted"),
    [
        (63, 1e6, 1.0, "", ""),  # few: not even timed
        (1000, 0.5, 0.1, "", "e"),  # 500 s are less than 20 times what compiling costs
        (1300, 0.5, 0.4, "", "ecckept"),
        (1300, 0.5, 0.49, "", "ecceager"),  # 2% is noise
        (1300, 0.5, 0.6, "", "ecceager"),
        (1300, 0.5, 0.4, "no disk", "eeager"),
    ],
)
def test_auto_compiles_where_that_pays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Callable[[], str], n_left: int, eager: float,
    compiled: float, fails: str, wanted: str,
) -> None:  # fmt: skip
    timed = []
    backbone = Stops(-1, fails)

    def seconds(network: Any, images: Any, layer: int) -> float:
        timed.append(network.compiled)
        return compiled if network.compiled else eager

    monkeypatch.setattr(forward, "_seconds", seconds)
    monkeypatch.setattr(forward, "why_not_compiled", lambda device: "")
    record = forward.choose_forward(backbone, -2, "auto", batch=16, n_left=n_left, folder=tmp_path)  # type: ignore[arg-type]
    text = said()
    assert record["compiled"] == ("kept" in wanted) == bool(backbone.compiled) == (tmp_path / forward.RECORD).exists()
    assert bool(timed) == ("e" in wanted)
    assert (16 in timed) == ("c" in wanted)
    if wanted.endswith("eager"):
        assert "stays eager" in text
    if fails:
        assert "no disk" in text


def test_auto_times_nothing_where_nothing_can_be_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    backbone = PatchColours()
    assert forward.choose_forward(backbone, -2, "auto", batch=16, n_left=10**6, folder=tmp_path) == {"compiled": False}  # type: ignore[arg-type]
    assert not backbone.n_calls


def test_an_unknown_mode_comes_with_the_nearest(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'auto'"):
        extract_tokens(read_cells(table), PatchColours(), tmp_path / "t", compile="aut")  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.backbone
def test_a_compiler_that_fails_costs_one_line_and_no_token(
    cli: Cli, few_cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    table = next(tmp_path.glob("*.parquet"))
    done = cli("tokens", table, "--compile", "on", "--out", tmp_path / "t", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert sum("stays eager" in line for line in done.stderr.splitlines()) == 1
    assert TokenStore(tmp_path / "t").manifest["forward"] == {"compiled": False}
    assert not (tmp_path / "t" / "forward.json").exists()
