"""The frozen random decoder: all but the directions is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted import World

from cytosae._errors import UsageError
from cytosae.evaluation._frozen import train_frozen
from cytosae.training import fit, override


def test_a_frozen_decoder_stays_as_it_started_and_the_rest_is_trained(world: World, tmp_path: Path) -> None:
    recipe = override(
        "small", ["decoder=frozen", "background=1", "presentations=4096", "batch=256", "products=float32"]
    )
    short = fit(world.store, world.cells, recipe, tmp_path / "a", where=["wbcatt_split=train"], heldout=[])
    longer = replace(recipe, presentations=16_384)
    long = fit(world.store, world.cells, longer, tmp_path / "b", where=["wbcatt_split=train"], heldout=[])
    assert bool((short.W_dec == long.W_dec).all())
    assert not torch.allclose(short.W_enc, long.W_enc)
    free = fit(
        world.store,
        world.cells,
        replace(recipe, decoder="trained"),
        tmp_path / "c",
        where=["wbcatt_split=train"],
        heldout=[],
    )
    assert not torch.allclose(short.W_dec, free.W_dec)


def test_the_control_is_trained_by_the_dictionarys_own_recipe(world: World, tmp_path: Path) -> None:
    recipe = override("small", ["background=1", "presentations=2048", "batch=256", "products=float32"])
    fit(world.store, world.cells, recipe, tmp_path / "sae", where=["wbcatt_split=train"], heldout=[])
    control = train_frozen(world.cells, [world.store], tmp_path / "sae", tmp_path / "frozen", 0)
    assert control.info["hyperparameters"] == {**recipe.as_dict(), "decoder": "frozen"}
    with pytest.raises(UsageError, match="give it with --frozen"):
        train_frozen(world.cells, [world.store], world.folder / "sae", tmp_path / "other", 0)
