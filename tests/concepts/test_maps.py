"""A map shows a concept where it is, for every kind of backbone."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from cytosae import CytosaeError, SparseAutoencoder
from cytosae.concepts import class_token_codes, concept_maps, concepts_within, draw_maps, region_shares, spread_map

GRIDS = [(4, 4), (2, 8), (8, 2), (1, 1), (3, 5)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("way", ["nearest", "smooth"])
def test_the_picture_of_a_map_is_brightest_on_its_patch_in_every_corner(grid: tuple[int, int], way: str) -> None:
    rows, columns = grid
    for row in {0, rows - 1}:
        for column in {0, columns - 1}:
            values = np.zeros(grid, np.float32)
            values[row, column] = 2
            spread = spread_map(values, columns * 9, rows * 7, way)
            assert spread.shape == (rows * 7, columns * 9)
            assert spread[row * 7 + 3, column * 9 + 4] == pytest.approx(2), "its own value at its centre"
            y, x = np.unravel_index(spread.argmax(), spread.shape)
            assert (y // 7, x // 9) == (row, column)
            if way == "nearest":
                assert (spread > 0).sum() == 63
    with pytest.raises(CytosaeError, match="nearest or smooth"):
        spread_map(values, 9, 9, "cubic")


@pytest.mark.parametrize("n_prefix", [0, 1, 5])
def test_the_class_token_stands_apart(colours: SparseAutoencoder, n_prefix: int) -> None:
    tokens = torch.zeros(n_prefix + 6, 8)
    tokens[:n_prefix, 1] = 3
    tokens[:1, 0] = 2
    maps = concept_maps(colours, tokens, [0, 1], (2, 3), n_prefix)
    assert maps.shape == (2, 2, 3)
    if n_prefix:
        assert list(class_token_codes(colours, tokens, [1, 0], n_prefix)) == [2.5, 1.5]
        assert maps.sum() == 0
    else:
        with pytest.raises(CytosaeError, match="no class token"):
            class_token_codes(colours, tokens, [0], 0)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_box_and_the_mask_of_the_same_pixels_mean_the_same_patches(grid: tuple[int, int]) -> None:
    width, height = 40, 24
    for box in [(0, 0, 40, 24), (0, 0, 1, 1), (39, 23, 40, 24), (7, 3, 29, 20)]:
        mask = np.zeros((height, width), bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        a, b = region_shares(box, grid, width, height), region_shares(mask, grid, width, height)
        assert np.allclose(a, b)
        area = (box[2] - box[0]) * (box[3] - box[1])
        assert a.sum() * (width / grid[1]) * (height / grid[0]) == pytest.approx(area)


def test_the_concepts_of_a_box_are_those_that_lie_in_it() -> None:
    codes = np.zeros((6, 4), np.float32)  # grid 2 x 3
    codes[:, 0] = 1
    codes[5, 1] = 4
    codes[0, 2] = 9
    latents, amounts = concepts_within(codes, (20, 10, 30, 20), (2, 3), 30, 20)
    assert list(latents) == [1, 0]
    assert list(amounts) == [4, 1]
    assert list(concepts_within(codes, (0, 0, 30, 20), (2, 3), 30, 20, n=1)[0]) == [2]
    for wrong in [(0, 0, 0, 5), (5, 5, 31, 9), (-1, 0, 4, 4)]:
        with pytest.raises(CytosaeError, match="does not lie within"):
            concepts_within(codes, wrong, (2, 3), 30, 20)
    with pytest.raises(CytosaeError, match="empty"):
        concepts_within(codes, np.zeros((20, 30)), (2, 3), 30, 20)
    with pytest.raises(CytosaeError, match="the image is 20 x 30"):
        concepts_within(codes, np.ones((30, 20)), (2, 3), 30, 20)


def test_all_maps_of_a_figure_are_on_one_stated_scale() -> None:
    images = [np.zeros((20, 30, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)]
    figure = draw_maps(images, [np.ones((2, 3)), np.full((4, 4), 5.0)], ["a", "b"], way="smooth")
    over = [im for axis in figure.axes for im in axis.images if im.get_cmap().name == "magma"]
    assert {im.get_clim() for im in over} == {(0.0, 5.0)}
    assert any("0 to 5" in axis.get_ylabel() for axis in figure.axes)
    figure.savefig(io.BytesIO(), format="png")
    with pytest.raises(CytosaeError, match="do not belong together"):
        draw_maps(images, [np.ones((2, 3))])
