"""The house keeps its order: a room imports only rooms above it, and the public names stay."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cytosae

SOURCE = Path(cytosae.__file__).parent
ROOMS = ("storage", "cells", "backbones", "tokens", "sae", "training", "concepts", "evaluation", "patients", "review",
         "reports", "explorer", "scale", "cli")  # fmt: skip


def imports_of(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        rooms |= {n.split(".")[1] for n in names if n.startswith("cytosae.") and n.split(".")[1] in ROOMS}
    return rooms


@pytest.mark.parametrize("room", [r for r in ROOMS if (SOURCE / r).exists()])
def test_a_room_imports_only_rooms_above_it(room: str) -> None:
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for path in (SOURCE / room).rglob("*.py"):
        assert imports_of(path) <= allowed, f"{path.relative_to(SOURCE)} imports a room below"


def test_files_stay_small() -> None:
    long = {p.name: n for p in SOURCE.rglob("*.py") if (n := len(p.read_text("utf-8").splitlines())) > 400}
    assert not long


def test_public_names_stay() -> None:
    wanted = {"read_cells", "load_backbone", "extract_tokens", "TokenStore", "fit", "load_sae", "SparseAutoencoder",
              "index_concepts", "ConceptIndex", "explain", "concept_map", "CytosaeError", "__version__"}  # fmt: skip
    assert wanted <= set(cytosae.__all__)
    for name in cytosae.__all__:
        assert getattr(cytosae, name) is not None


def test_importing_the_package_or_its_help_needs_no_torch() -> None:
    code = "import sys, cytosae, cytosae.cli; cytosae.cli._main.run(['--help']); print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"


def test_every_verb_explains_itself(cli) -> None:  # type: ignore[no-untyped-def]
    from cytosae.cli._main import VERBS

    for verb in VERBS:
        done = cli(verb, "--help")
        assert done.returncode == 0, done.stderr
        assert "Usage: cytosae" in done.stdout
