"""The documentation tells the truth: commands parse, code runs, links and pictures exist, the page of verbs is current."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cytosae.cli._main import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(language: str) -> list[tuple[str, str]]:
    return [(p.name, text) for p in PAGES for kind, text in BLOCK.findall(p.read_text("utf-8")) if kind == language]


def commands() -> list[tuple[str, str]]:
    """Every line of an unmarked, sh or console block that calls the program; continued lines are joined."""
    found = []
    for page in PAGES:
        for kind, text in BLOCK.findall(page.read_text("utf-8")):
            if kind in ("", "sh", "bash", "console", "text") and page.name != "verbs.md":
                lines = text.replace("\\\n", " ").splitlines()
                found += [(page.name, line.lstrip("$ ").split("#")[0].strip()) for line in lines]
    return [(page, line) for page, line in found if line.startswith("cytosae ")]


def check(command: click.Command, arguments: list[str], parent: click.Context | None = None) -> None:
    context = command.make_context("cytosae", list(arguments), parent=parent)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, inner, rest = command.resolve_command(context, rest)
        assert inner is not None, name
        check(inner, rest, context)


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_in_the_docs_is_one_that_exists(page: str, line: str) -> None:
    words = [w for w in shlex.split(line)[1:] if w not in ("...", "[...]")]
    try:
        check(cli, words)
    except click.ClickException as error:
        pytest.fail(f"{page}: {line}: {error.format_message()}")
    except click.exceptions.Exit:
        return  # --help and --version end here


def test_the_docs_have_commands_and_code() -> None:
    assert len(commands()) >= 20
    assert len(blocks("python")) >= 2


@pytest.mark.demo
@pytest.mark.parametrize(("page", "code"), [b for b in blocks("python") if "runs/demo" in b[1]])
def test_the_code_in_the_docs_runs(page: str, code: str, demo_run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(demo_run, target_is_directory=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page}: {done.stderr}"
    assert done.stdout.strip()


def test_the_page_of_verbs_is_current() -> None:
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert (ROOT / "docs" / "verbs.md").read_text("utf-8") == build.verbs_page(), (
        "run python docs/build.py --verbs-only"
    )


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path / "mkdocs.yml")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "index.html").exists()


def test_the_pictures_of_the_readme_exist() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size > 10_000
