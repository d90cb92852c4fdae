"""Removing what a type is made of lowers its score; removing nothing changes nothing; a random dictionary is not praised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from planted import D, World, context_of, make_world, planted_sae

from cytosae import CytosaeError, splice
from cytosae._errors import UsageError
from cytosae.backbones import Preprocessing
from cytosae.evaluation import Context, keep_concepts, remove_concepts, steer
from cytosae.evaluation._causal import EQUAL, Causal
from cytosae.evaluation._effects import Lab
from cytosae.evaluation._interventions import Bench, Codes, Probes, equally_active
from cytosae.sae import SparseAutoencoder


class AddsUp:
    """Tokens from the colours of four patches; the rest of the network adds the mean patch to the class token."""

    name, d_in, depth, n_prefix, grid = "stand-in", D, 3, 1, (3, 3)
    preprocessing = Preprocessing(side=6)
    token_kinds = ["class"] + ["patch"] * 9
    n_tokens = 10

    def width(self, layer: int) -> int:
        return self.d_in

    def tokens(self, images: Any, layer: int = -2) -> torch.Tensor:
        x = torch.as_tensor(np.asarray(images)).float().view(len(images), 3, 2, 3, 2, 3).mean((2, 4)).flatten(1, 2)
        mixed = x @ torch.randn(3, D, generator=torch.Generator().manual_seed(1)) / 40
        return torch.cat([mixed.mean(1, keepdim=True), mixed], 1)

    def run_from(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([tokens[:, :1] + tokens[:, 1:].mean(1, keepdim=True), tokens[:, 1:]], 1)


def bench_context(world: World, out: Path, sae: str = "sae", fast: bool = True) -> Context:
    context = context_of(world, out, sae, n_draws=60, fast=fast)
    context.__dict__["_backbone"] = (AddsUp(), -2)
    return context


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("w"), n=400)


@pytest.fixture(scope="module")
def measured(small: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    context = bench_context(small, tmp_path_factory.mktemp("c"), fast=False)
    assert Causal().missing(context) is None
    return Causal().measure(context)


def test_removing_the_concept_of_a_type_lowers_its_score(measured: dict[str, Any]) -> None:
    one = next(c for c in measured["comparisons"] if c["what"].startswith("1 concept removed, mean patch"))
    assert one["dictionary"]["low"] > 0
    assert {c["name"]: c["verdict"] for c in one["controls"]}["matched"] == "better"
    steering = next(c for c in measured["comparisons"] if c["what"].startswith("steering, mean patch"))
    assert steering["dictionary"]["low"] > 0
    assert {c["name"]: c["verdict"] for c in steering["controls"]}["matched"] == "better"


def test_the_curve_ends_where_nothing_is_removed(measured: dict[str, Any]) -> None:
    table = next(t for t in measured["tables"] if t["title"].startswith("Class-wise removal"))
    rows = {(r[0], r[1]): r[2:] for r in table["rows"]}
    for readout in ("class token", "mean patch"):
        whole = rows[readout, "nothing changed"]
        assert rows[readout, "only these (on)"][-1] == pytest.approx(whole[-1])
        assert rows[readout, "without these (off)"][0] <= whole[0]
    assert rows["mean patch", "without these (off)"][0] < rows["mean patch", "without as many random ones"][0]


def test_removing_nothing_changes_nothing(small: World, tmp_path: Path) -> None:
    context = bench_context(small, tmp_path)
    bench = Bench(context, *context.backbone(), np.arange(20))  # type: ignore[arg-type]
    codes = Codes(context.sae, bench)
    cells = np.arange(20)
    before, _ = bench.run(cells)
    for change in (codes.removal(np.empty(0, np.int64)), codes.removal(np.arange(context.sae.n_latents), keep=True)):
        after, size = bench.run(cells, change)
        assert (size == 0).all()
        for readout, values in after.items():
            assert (values == before[readout]).all()
    few, _ = bench.run(cells[3:5], codes.removal(np.array([0])))
    many, _ = bench.run(cells, codes.removal(np.array([0])))
    assert few["mean patch"] == pytest.approx(many["mean patch"][3:5], abs=1e-5)


def test_a_random_dictionary_is_not_praised(small: World, tmp_path: Path) -> None:
    measured = Causal().measure(bench_context(small, tmp_path, "random"))
    assert not [c["what"] for c in measured["comparisons"] if c["verdict"] == "better"]


def test_equal_candidates_stand_beside_full_width_and_are_the_same_where_nothing_is_left_out(
    measured: dict[str, Any],
) -> None:
    found = {c["what"]: {**c, "what": ""} for c in measured["comparisons"]}
    equal = [what for what in found if what.endswith(EQUAL)]
    assert len(equal) * 2 == len(found)
    assert any("no more units that fire" in note for note in measured["notes"])
    for what in equal:
        full = found[what.removesuffix(EQUAL)]
        assert found[what]["dictionary"] == full["dictionary"]


def test_a_wide_random_dictionary_is_not_praised_at_equal_candidates(small: World, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(5)
    R = torch.nn.functional.normalize(torch.randn(200, D, generator=g), dim=1)
    wide = SparseAutoencoder(
        R.T.contiguous(), torch.full((200,), -1.5), R, torch.full((D,), 0.5), info=small.random.info
    )
    context = replace(bench_context(small, tmp_path, "random"), sae=wide)
    context.__dict__["_backbone"] = (AddsUp(), -2)
    measured = Causal().measure(context)
    assert measured["n"]["candidates in the equal comparison"] <= 2 * D
    assert not any("no more units that fire" in note for note in measured["notes"])
    found = {c["what"]: c for c in measured["comparisons"]}
    equal = [what for what in found if what.endswith(EQUAL)]
    assert len(equal) * 2 == len(found)
    assert any(found[w]["dictionary"] != found[w.removesuffix(EQUAL)]["dictionary"] for w in equal)
    assert not [what for what in equal if found[what]["verdict"] == "better"]


def test_fewer_candidates_are_all_that_is_chosen_from() -> None:
    lab = Lab.__new__(Lab)
    lab.ranked = {"dictionary": [np.array([3, 1, 0, 2])], "pca": [np.array([1, 0])]}
    lab.energy = np.array([1.0, 2.0, 3.0, 4.0])
    fewer = lab.among({"dictionary": np.array([0, 1]), "pca": np.arange(2)})
    assert fewer.ranked["dictionary"][0].tolist() == [1, 0]
    assert fewer.ranked["pca"][0].tolist() == [1, 0]
    assert fewer.energy.tolist() == [1.0, 2.0, 0.0, 0.0]
    assert lab.ranked["dictionary"][0].tolist() == [3, 1, 0, 2]


def test_without_the_backbone_it_is_left_out(small: World, tmp_path: Path) -> None:
    assert "backbone is needed" in str(Causal().missing(context_of(small, tmp_path)))


def test_probes_find_what_is_linear() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    positive = np.stack([X[:, 0] > 0, X[:, 1] > 0.5], 1)
    scores = Probes.fitted(X, positive, np.ones_like(positive)).scores(X)
    assert ((scores > 0.5) == positive).mean() > 0.9


def test_equally_active_concepts_are_others_of_like_energy() -> None:
    energy = np.array([1.0, 1.1, 5.0, 5.2, 0.0, 1.05] + [50.0] * 10)
    assert set(equally_active(np.array([0]), energy, np.array([0, 1]), [0, 0])) <= {2, 3, 5, *range(6, 16)}
    assert 4 not in equally_active(np.arange(3), energy, np.arange(3), [0, 1])


def test_one_cell_is_spliced_from_python(tmp_path: Path) -> None:
    sae = replace(planted_sae(), info={"layer": -2, "token_kinds": ["patch"]})
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cell.png")
    backbone: Any = AddsUp()
    same = splice(backbone, sae, tmp_path / "cell.png", remove_concepts([]))
    assert torch.equal(same.before, same.after)
    active = int(same.codes.sum(0).argmax())
    less = splice(backbone, sae, pixels, remove_concepts([active]))
    expected = (less.edited - less.codes) @ sae.W_dec
    assert torch.allclose(less.after[1:] - less.before[1:], expected, atol=1e-5)
    before, after = less.read_out("class")
    assert torch.allclose(after - before, expected.mean(0), atol=1e-5)
    more = splice(backbone, sae, pixels, steer(active, 2.0))
    assert torch.allclose(more.after[1:] - more.before[1:], 2 * sae.W_dec[active].expand(9, -1), atol=1e-5)
    kept = splice(backbone, sae, pixels, keep_concepts([active]))
    assert (kept.edited > 0).sum() == (kept.codes[:, active] > 0).sum()


def test_a_splice_of_wrong_things_says_what_to_do(tmp_path: Path) -> None:
    sae = replace(planted_sae(), info={"layer": -2})
    pixels, backbone = np.zeros((6, 6, 3), np.uint8), AddsUp()
    arguments: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (sae, tmp_path / "none.png", remove_concepts([]), CytosaeError, "check the path"),
        (sae, pixels[:, :, 0], remove_concepts([]), UsageError, "height, width, 3"),
        (sae, pixels, lambda codes: codes[:1], UsageError, "shape"),
        (planted_sae(), pixels, remove_concepts([]), CytosaeError, "layer="),
    ]
    for one, image, edit, error, says in arguments:
        with pytest.raises(error, match=says):
            splice(backbone, one, image, edit)  # type: ignore[arg-type]
