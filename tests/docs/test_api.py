"""The page of the API and the tutorials run as they stand, the tutorials in their short form."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import cytosae

DOCS = Path(__file__).resolve().parents[2] / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_tutorial", DOCS / "tutorials" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_on_the_page_and_has_a_docstring() -> None:
    page = (DOCS / "api.md").read_text("utf-8")
    for name in cytosae._PUBLIC:
        assert f"[`{name}`]" in page
        assert re.search(rf"import .*\b{name}\b", page), name
        assert len(inspect.getdoc(getattr(cytosae, name)) or "") > 30, name


def test_public_names_are_typed() -> None:
    assert (Path(cytosae.__file__).parent / "py.typed").is_file()
    for name in cytosae._PUBLIC:
        public = getattr(cytosae, name)
        if inspect.isfunction(public):
            signature = inspect.signature(public)
            assert signature.return_annotation is not inspect.Signature.empty
            assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


@pytest.mark.backbone
def test_the_code_on_the_page_of_the_api_runs(runner: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    space = runner.run(DOCS / "api.md", short=True)
    assert space["found"].unusual.is_cell
    assert len(space["found"].similar) == 8
    assert capsys.readouterr().out.count("\n") > 20


@pytest.mark.backbone
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: p.stem)
def test_the_tutorials_run_and_draw_what_they_show(page: Path, runner: ModuleType) -> None:
    space = runner.run(page, short=True)
    shown = set(re.findall(r"images/tutorial-([\w-]+\.jpg)", page.read_text("utf-8")))
    assert shown == set(space["PICTURES"])
    assert all(n > 5_000 for n in space["PICTURES"].values())
    for name in shown:
        assert (DOCS / "images" / f"tutorial-{name}").is_file()
