"""Stages of a long reproduction: done once, and what a stopped call took is counted."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def stages(monkeypatch):
    spec = importlib.util.spec_from_file_location("_stages", SCRIPTS / "_stages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    return module


def answers(module, monkeypatch, made, outcomes):
    """Verbs end as `outcomes` says, and make the file when they end well."""
    todo = list(outcomes)

    def run(command):
        one = todo.pop(0)
        if isinstance(one, BaseException):
            raise one
        if one == 0:
            made.write_bytes(b"x" * 7)
        return one

    monkeypatch.setattr(module, "run", run)
    return todo


def test_seconds_of_stopped_calls_count_and_a_finished_stage_is_not_done_again(stages, monkeypatch, tmp_path):
    made = tmp_path / "made"
    todo = answers(stages, monkeypatch, made, [130, KeyboardInterrupt(), 0])
    for expected in (SystemExit, KeyboardInterrupt):
        with pytest.raises(expected):
            stages.Stages(tmp_path)("a", made, "verb", 1, n=3)
        assert "seconds" not in stages.Stages(tmp_path).record["a"]
    last = stages.Stages(tmp_path)
    last("a", made, "verb", 1, n=3)
    assert last.record["a"]["seconds"] == 30.0
    assert (last.record["a"]["bytes"], last.record["a"]["n"]) == (7, 3)
    assert sys.platform == "win32" or last.record["a"]["peak_mb"] > 10
    stages.Stages(tmp_path)("a", made, "verb", 1, n=3)
    assert todo == []
    assert "| a | 30 | 0.0 |" in stages.cost_table(last.record)


def test_another_command_starts_at_zero_and_a_stopped_stage_is_not_in_the_table(stages, monkeypatch, tmp_path):
    made = tmp_path / "made"
    answers(stages, monkeypatch, made, [143, 0])
    first = stages.Stages(tmp_path)
    with pytest.raises(SystemExit):
        first("a", made, "verb", 1)
    assert stages.cost_table(first.record).count("\n") == 1
    second = stages.Stages(tmp_path)
    second("a", made, "verb", 2)
    assert second.record["a"]["seconds"] == 10.0
