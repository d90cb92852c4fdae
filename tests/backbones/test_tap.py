"""Tokens of several blocks are the blocks' own tokens, times their factors, and the network goes on from the last."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cytosae._errors import UsageError
from cytosae.backbones import (
    Backbone,
    known_layer,
    layer_option,
    layer_text,
    parse_layer,
    probe,
    same_layer,
    why_not_compiled,
)
from small_vit import small_vit


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return small_vit()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_several_blocks_are_each_block_times_its_factor(precision: str) -> None:
    backbone = small_vit(precision)
    images = probe(5, 32)
    together = backbone.tokens(images, [[0, 4], [-1, 1], [1, 0.5]])
    assert together.dtype == torch.float32
    parts = [backbone.tokens(images, 0) * 4, backbone.tokens(images, 1) * 0.5, backbone.tokens(images, 2)]
    assert torch.equal(together, torch.cat(parts, -1))
    assert backbone.width([0, 1, 2]) == together.shape[-1] == 3 * backbone.d_in
    assert backbone.block_number([2, 0]) == 2


def test_one_block_in_a_list_is_that_block(backbone: Backbone) -> None:
    images = probe(3, 32)
    assert torch.equal(backbone.tokens(images, [1]), backbone.tokens(images, 1))


@pytest.mark.parametrize("factor", [1, 4, 3])
def test_the_rest_of_the_network_goes_on_from_the_last_block(backbone: Backbone, factor: float) -> None:
    images, layer = probe(3, 32), [[0, 8], [1, factor]]
    tokens = backbone.tokens(images, layer)
    assert torch.allclose(backbone.run_from(layer, tokens), backbone.run_from(1, backbone.tokens(images, 1)), atol=1e-5)
    changed = tokens.clone()
    changed[..., : backbone.d_in] += 1
    assert torch.equal(backbone.run_from(layer, changed), backbone.run_from(layer, tokens))
    changed[..., backbone.d_in :] += 1
    assert not torch.equal(backbone.run_from(layer, changed), backbone.run_from(layer, tokens))


@pytest.mark.skipif(bool(why_not_compiled("cpu")), reason="no C++ compiler")
def test_compiled_blocks_give_the_same_parts() -> None:
    backbone, images, layer = small_vit(), probe(16, 32), [[0, 2], [1, 1]]
    eager = backbone.tokens(images, layer)
    backbone.compile(16, layer)
    assert backbone.compiled == 16
    assert float((backbone.tokens(images, layer) - eager).abs().max() / eager.abs().max()) <= 1e-6


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ([0, 0], "block 0 of small twice"),
        ([0, -3], "block 0 of small twice"),
        ([0, 3], "has 3 blocks"),
        ([[0, 0], [1, 1]], "positive"),
        ([[0, -2], [1, 1]], "positive"),
        ([[0, float("inf")], [1, 1]], "positive"),
        ([[0, float("nan")], [1, 1]], "positive"),
        ([], "names 0 blocks"),
        (list(range(9)), "names 9 blocks"),
    ],
)
def test_what_names_no_blocks_is_refused(backbone: Backbone, layer: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        backbone.tap(layer)


def test_tokens_of_another_width_do_not_go_back(backbone: Backbone) -> None:
    with pytest.raises(UsageError, match=r"48 wide, but those of blocks 0 \(times 2\) and 1 side by side are 96"):
        backbone.run_from([[0, 2], [1, 1]], backbone.tokens(probe(2, 32), 1))


def test_the_option_is_read_and_written() -> None:
    assert parse_layer("-2") == -2
    assert parse_layer("5,8, 10") == [5, 8, 10]
    assert parse_layer("5x4,8x0.5,-2") == [[5, 4.0], [8, 0.5], -2]
    assert parse_layer("7x2") == [[7, 2.0]]
    for text in ("", "x", "5,", "5;8", "5x", "5x-1", "2.5", "5x1e400", "--", "5 8"):
        with pytest.raises(UsageError, match="5,8,10"):
            parse_layer(text)
    assert layer_option([[5, 4.0], [8, 2.0], [10, 1.0]]) == "5x4,8x2,10x1"
    assert parse_layer(layer_option([[5, 0.25], [10, 1.0]])) == [[5, 0.25], [10, 1.0]]
    assert (layer_option(-2), layer_option([3, 4])) == ("-2", "3,4")
    assert layer_text(-2) == "block -2"
    assert layer_text([[5, 4.0], 8, [10, 1.0]]) == "blocks 5 (times 4), 8 and 10 side by side"
    assert layer_text([[5, 1.0]]) == "block 5"
    assert layer_text(None) == "block not known"


def test_only_what_an_artifact_can_hold_is_known() -> None:
    assert (known_layer(-2), known_layer(3.0)) == (-2, 3)
    assert known_layer([[5, 4], [10, 1.0]]) == [[5, 4.0], [10, 1.0]]
    for value in (None, True, "5", 2.5, [], [5, 8], [[5]], [[5, 0]], [[5, -1]], [[5.5, 1]], [["5", 1]], [[5, float("inf")]],
                  [[True, 1]], {"a": 1}, [[0, 1]] * 9):  # fmt: skip
        assert known_layer(value) is None


@pytest.mark.parametrize(
    ("a", "b", "depth", "same"),
    [(-2, 10, 12, True), (10, -2, 12, True), (-2, 10, None, False), (-2, -2, None, True), (-2, 9, 12, False),
     (-2, 10, 24, False), (22, 10, 12, False), ([[5, 4.0], [10, 1.0]], 10, 12, False), (None, 10, 12, False),
     ([[5, 4.0], [10, 1.0]], [[5, 4.0], [10, 1.0]], 12, True)],
)  # fmt: skip
def test_a_block_counted_from_the_end_is_the_one_counted_from_the_start(a: Any, b: Any, depth: Any, same: bool) -> None:
    assert same_layer(a, b, depth) is same
