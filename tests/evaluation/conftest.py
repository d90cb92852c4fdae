"""Planted worlds, made once a session."""

from __future__ import annotations

from typing import Any

import pytest
from planted import World, context_of, make_world

from cytosae.evaluation import SECTIONS, make_scorecard


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def planted_card(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_scorecard(context_of(world, tmp_path_factory.mktemp("planted")), SECTIONS)


@pytest.fixture(scope="session")
def random_card(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_scorecard(context_of(world, tmp_path_factory.mktemp("random"), "random"), SECTIONS)
