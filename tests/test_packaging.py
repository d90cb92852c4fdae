"""Two builds of the same source are the same bytes, and hold what the package needs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_wheel_and_sdist_build_reproducibly(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / "scripts" / "check_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    check_wheel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_wheel)
    first = check_wheel.build(Path(sys.executable), tmp_path / "1")
    assert first == check_wheel.build(Path(sys.executable), tmp_path / "2")
    assert {name.rpartition(".")[2] for name in first} == {"whl", "gz"}
    check_wheel.check_contents(tmp_path / "1")
