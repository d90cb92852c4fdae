"""Adapting a backbone: labels are not seen, what is frozen stays, a stop loses nothing, and the result is a backbone again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import publishers as made
from cytosae import CytosaeError, load_backbone, read_cells
from cytosae.backbones import Backbone, Preprocessing
from cytosae.cells import Cells, ImageParquet, build_cells, bundled_path, decode_image, write_cells
from cytosae.training import replace
from cytosae.training.adapt import Adaptation, adapt, view
from cytosae.training.adapt._adapter import Adapter
from cytosae.training.adapt._heads import Prototypes, balanced, hidden_patches, spread
from cytosae.training.adapt._views import Views

TINY = ("frozen=0.34", "batch=4", "steps=4", "warmup=2", "class_prototypes=4", "patch_prototypes=16", "feature=8",
        "class_kept=16", "patch_kept=64", "lr=1e-3")  # fmt: skip
FILES = ("backbone.safetensors", "metrics.jsonl", "manifest.json", "views.jpg")


def tiny(*settings: str) -> Adaptation:
    found: Adaptation = replace(Adaptation(), (*TINY, *settings), "An adaptation")
    return found


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    return build_cells(bundled_path(), tmp_path_factory.mktemp("adapt") / "cells.parquet")


@pytest.fixture(scope="module")
def some_path(cells: Cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of forty cells."""
    path = tmp_path_factory.mktemp("some") / "cells.parquet"
    write_cells(path, cells.ok.iloc[:40], root=cells.root, inputs={}, config={})
    return path


@pytest.fixture(scope="module")
def some(some_path: Path) -> Cells:
    found: Cells = read_cells(some_path)
    return found


NETWORKS: dict[str, tuple[str, Callable[[], Any], Callable[[Any], Any]]] = {
    "class token": ("dinobloom", made.dino, made.meta_dinov2),
    "gated": ("dinov2", made.dino_giant, made.meta_dinov2),
    "registers": ("dinov2", made.dino_registers, made.meta_dinov2),
    "rotary positions": ("dinov3", made.dinov3, made.meta_dinov3),
    "no class token": ("siglip", made.siglip, lambda m: dict(m.state_dict())),
    "a norm before the blocks": ("clip", made.clip, made.openai_clip),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_kind_of_network_is_adapted_and_found_again(network: str, some: Cells, tmp_path: Path) -> None:
    family, build, names = NETWORKS[network]
    save_file({k: v.contiguous().clone() for k, v in names(build()).items()}, tmp_path / "w.safetensors")
    backbone = load_backbone(family, weights=tmp_path / "w.safetensors")
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    measures = adapt(some, backbone, tmp_path / "adapted", tiny())
    assert all(torch.equal(v, backbone.model.state_dict()[k]) for k, v in before.items()), (
        "the original stays as it was"
    )
    assert all(np.isfinite(v) for v in measures.values())

    adapted = load_backbone("adapted", weights=tmp_path / "adapted")
    assert adapted.preprocessing == backbone.preprocessing
    assert adapted.record["base"]["sha256"] == backbone.weights_sha256
    side = backbone.preprocessing.side
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    assert torch.equal(adapted.tokens(images, 0), backbone.tokens(images, 0)), "block 0 was frozen"
    assert not torch.allclose(adapted.tokens(images, 1), backbone.tokens(images, 1), atol=1e-5), "block 1 was trained"
    after = adapted.model.state_dict()
    changed = {k.split(".")[1] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"1"}, "nothing else was"
    assert adapted.run_from(1, adapted.tokens(images, 1)).shape[:2] == (2, adapted.n_tokens)


def test_it_can_be_adapted_twice(some: Cells, tmp_path: Path) -> None:
    save_file({k: v.clone() for k, v in made.dino().state_dict().items()}, tmp_path / "w.safetensors")
    adapt(some, load_backbone("dinobloom", weights=tmp_path / "w.safetensors"), tmp_path / "one", tiny("steps=1"))
    one = load_backbone("adapted", weights=tmp_path / "one" / "backbone.safetensors")
    adapt(some, one, tmp_path / "two", tiny("steps=1"))
    assert load_backbone("adapted", weights=tmp_path / "two").record["base"] == one.record


def dino_backbone() -> Backbone:
    return Backbone(made.dino(), name="tiny", weights_sha256="1" * 64, preprocessing=Preprocessing(side=56))


def test_labels_are_not_looked_at(some: Cells, tmp_path: Path) -> None:
    write_cells(tmp_path / "other.parquet", some.frame.assign(label="?"), root=some.root, inputs={}, config={})
    for name, table in (("a", some), ("b", read_cells(tmp_path / "other.parquet"))):
        adapt(table, dino_backbone(), tmp_path / name, tiny())
    assert (tmp_path / "a/backbone.safetensors").read_bytes() == (tmp_path / "b/backbone.safetensors").read_bytes()


def test_another_seed_is_another_backbone_and_the_same_one_is_the_same(some: Cells, tmp_path: Path) -> None:
    backbone = dino_backbone()
    state = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        adapt(some, backbone, tmp_path / name, tiny(), seed=seed)
    a, b, c = ((tmp_path / n / "backbone.safetensors").read_bytes() for n in "abc")
    assert a == b != c
    assert torch.equal(state, torch.get_rng_state()), "the caller's random numbers go on as if nothing had been drawn"


def test_the_student_learns_to_say_what_the_teacher_says(cells: Cells, tmp_path: Path) -> None:
    config = tiny("steps=101", "batch=16", "class_kept=64", "patch_kept=2000", "patch_prototypes=64", "feature=32",
                  "lr=1e-2", "momentum=0.8")  # fmt: skip
    adapt(cells, dino_backbone(), tmp_path / "adapted", config, where=("dataset=acevedo_pbc",))
    lines = [json.loads(line) for line in (tmp_path / "adapted/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(0, 101, 10))
    first, last = (
        {k: np.mean([line[k] for line in part]) for k in ("class", "patch")} for part in (lines[:3], lines[-3:])
    )
    assert last["class"] < 0.9 * first["class"]
    assert last["patch"] < 0.95 * first["patch"]
    assert lines[0]["lr"] < lines[1]["lr"], "a warm-up"
    assert lines[-1]["lr"] < 0.05 * 1e-2, "and a decay"


@pytest.mark.parametrize(("other", "low", "high"), [("the same", 0, 1e-6), ("of other cells", 0.9, 1.1)])
def test_how_far_two_stains_are_apart_is_a_share_of_the_variance(
    some: Cells, tmp_path: Path, other: str, low: float, high: float
) -> None:
    backbone = dino_backbone()
    views = Views(tmp_path / "views", 4, 40, backbone.n_tokens, backbone.d_in)
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(2, 40, backbone.n_tokens, backbone.d_in, generator=generator)
    views.read = lambda number, cells: stored[0 if other == "the same" else number % 2, torch.from_numpy(cells)]  # type: ignore[method-assign]
    with torch.random.fork_rng(devices=[]):
        found = Adapter(views, backbone, tiny(), 1, 1, 0, bfloat16=False).measure()
    assert low <= found["stain"] <= high
    assert 1 < found["n_dimensions"] <= 48


KILLER = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import safetensors.torch
from safetensors.torch import save
from cytosae import read_cells
from cytosae.training.adapt import _adapt, _views, adapt
from test_adapt import dino_backbone, tiny
_adapt._CHECKPOINT_EVERY, _views._SHARD = 3, 16
table, out, where, offset = sys.argv[1:]

def run(out):
    adapt(read_cells(table), dino_backbone(), Path(out), tiny("steps=10"))

def child(out, kill):
    pid = os.fork()
    if pid == 0:
        seen = []
        if kill == "checkpoint":
            def cut(tensors, path):
                seen.append(path)
                data = save(tensors)
                Path(path).write_bytes(data if len(seen) < 2 else data[: int(offset)])
                if len(seen) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
            safetensors.torch.save_file = cut
        elif kill == "views":
            whole = _views.Views._write_shard
            def cut(self, shard, path, *rest):
                whole(self, shard, path, *rest)
                if shard == 1:
                    Path(path).write_bytes(Path(path).read_bytes()[: int(offset)])
                    os.kill(os.getpid(), signal.SIGKILL)
            _views.Views._write_shard = cut
        run(out)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

assert child(out + "/whole", None) == 0
assert os.WTERMSIG(child(out + "/killed", where)) == signal.SIGKILL
assert child(out + "/killed", None) == 0
"""


@pytest.mark.parametrize(
    ("where", "offset"), [("checkpoint", 0), ("checkpoint", 9_999), ("checkpoint", 10**9), ("views", 77)]
)
def test_killed_it_goes_on_as_if_nothing_had_happened(some_path: Path, tmp_path: Path, where: str, offset: int) -> None:
    paths = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(some_path), str(tmp_path), where, str(offset)], capture_output=True, text=True,
        timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    assert not list((tmp_path / "killed").glob(".*")), "views and checkpoints are gone from the artifact"


def test_told_to_stop_it_saves_the_step_it_is_at(some_path: Path, tmp_path: Path) -> None:
    save_file({k: v.clone() for k, v in made.dino().state_dict().items()}, tmp_path / "w.safetensors")
    sets = [word for setting in (*TINY, "steps=400") for word in ("--set", setting)]
    command = [sys.executable, "-m", "cytosae", "adapt", str(some_path), "--backbone", "dinobloom", "--weights",
               str(tmp_path / "w.safetensors"), *sets, "--threads", "1", "--precision", "float32", "--out"]  # fmt: skip
    process = subprocess.Popen([*command, str(tmp_path / "stopped")], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".stopped.*/.checkpoints/step-*.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    for name in ("stopped", "whole"):
        done = subprocess.run([*command, str(tmp_path / name)], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "use it with --backbone adapted --weights" in done.stdout
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes(), name
    again = subprocess.run([*command, str(tmp_path / "whole")], check=False, capture_output=True, text=True)
    assert "is there already" in again.stderr


def test_views_of_one_number_are_one_picture_and_pairs_share_their_geometry() -> None:
    bundle = ImageParquet(bundled_path())
    image = np.asarray(Preprocessing(side=96).resize(decode_image(bundle.read(3)[0] or b"").pixels))
    views = [view(image, 5, n) for n in range(4)]
    assert np.array_equal(views[1], view(image, 5, 1))
    assert not np.array_equal(views[0], view(image, 6, 0))
    dark = [v.mean(2) < np.quantile(v.mean(2), 0.2) for v in views]

    def overlap(a: int, b: int) -> float:
        return float((dark[a] & dark[b]).sum() / (dark[a] | dark[b]).sum())

    assert overlap(0, 1) > 0.7 > overlap(0, 2)


def test_views_are_read_back_in_the_order_asked_for(
    some: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytosae.training.adapt._views._SHARD", 16)
    backbone, frame = dino_backbone(), some.ok
    views = Views(tmp_path / "views", 2, len(frame), backbone.n_tokens, backbone.d_in)
    views.write(frame, some.root, backbone, 1, False)
    got = views.read(1, np.array([39, 2, 17]))
    from cytosae.tokens import load_images

    pixels = np.stack([view(image, c, 1) for c, image in zip((39, 2, 17), load_images(frame.iloc[[39, 2, 17]], some.root, backbone), strict=True)])  # fmt: skip
    assert torch.allclose(got, backbone.tokens(pixels, 0), rtol=1e-2, atol=1e-2)


def test_shares_are_shares_and_all_prototypes_are_used_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(400, 8, generator=generator)
    logits[:, 0] += 0.3  # one that all like
    q = balanced(logits, 0.06)
    assert torch.allclose(q.sum(1), torch.ones(400))
    assert float(q.sum(0).max() / q.sum(0).min()) < 1.7
    plain = torch.softmax(logits / 0.06, 1).sum(0)
    assert float(plain.max() / plain.min()) > 5
    assert torch.allclose(q, balanced(logits + 5, 0.06), atol=1e-6), "a constant changes nothing"
    order = torch.randperm(400, generator=generator)
    assert torch.allclose(balanced(logits[order], 0.06), q[order], atol=1e-6), "nor does the order of the rows"


def test_what_keeps_tokens_apart_is_lowest_where_they_are() -> None:
    assert float(spread(torch.eye(6))) < float(spread(torch.nn.functional.normalize(torch.eye(6) + 2, dim=1)))
    assert float(spread(torch.eye(6))) == pytest.approx(-np.log(np.sqrt(2)), abs=1e-5)


def test_hidden_patches_are_rectangles_over_a_tenth_to_half_or_a_bit_more() -> None:
    rng = np.random.default_rng(0)
    mask = hidden_patches(400, (16, 16), 0.7, rng).float().mean(1)
    assert 0.6 < float((mask > 0).float().mean()) < 0.8
    assert float(mask[mask > 0].min()) >= 0.1
    assert float(mask.max()) < 0.5 + 49 / 256
    assert not hidden_patches(9, (4, 4), 0.0, rng).any()
    assert hidden_patches(9, (2, 3), 1.0, rng).any(1).all(), "a grid smaller than the rectangles"


def test_prototypes_start_at_the_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(5, 20, generator=generator)
    which = torch.arange(200) % 5
    tokens = centres[which] + 0.1 * torch.randn(200, 20, generator=generator)
    torch.manual_seed(1)
    head = Prototypes(20, 4, 5)
    head.start(tokens)
    best = head.logits(head.feature(tokens)).argmax(1)
    joint = torch.zeros(5, 5).index_put_((which, best), torch.ones(200), accumulate=True)
    assert int((joint > 0).sum()) <= 6, "each cluster has its prototype, or two share one"
    with torch.no_grad():
        near = head.logits(head.feature(tokens)).max(1).values
    assert float(near.mean()) > 0.85
    assert float(near.min()) > 0.5


def test_a_training_that_went_on_draws_what_it_would_have_drawn(some: Cells, tmp_path: Path) -> None:
    backbone = dino_backbone()
    views = Views(tmp_path / "views", 4, 40, backbone.n_tokens, backbone.d_in)
    views.write(some.ok, some.root, backbone, 1, False)

    def made_new(fresh: bool) -> Adapter:
        return Adapter(views, backbone, tiny(), 1, 1, 7, bfloat16=False, fresh=fresh)

    with torch.random.fork_rng(devices=[]):
        one = made_new(True)
        one.step(0)
        saved = {k: v.clone() for k, v in one.state().items()}
        wanted = [one.step(1), one.step(2)]
        two = made_new(False)
        for name, tensor in two.state().items():
            tensor.copy_(saved[name])
        two.restore()
        assert [two.step(1), two.step(2)] == wanted


@pytest.mark.parametrize(("settings", "said"), [
    (("frozen=0.9",), "nothing is left to train"),
    (("batch=30", "class_kept=80"), "too few to adapt to"),
    (("frozen=1",), "frozen=1.0 is not a possible value"),
    (("views=3",), "views=3 is not a possible value"),
    (("views=2",), "two geometries need views=4"),
    (("step=3",), "did you mean 'steps'"),
    (("lr=fast",), "wants a value of kind float"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    some: Cells, tmp_path: Path, settings: tuple[str, ...], said: str
) -> None:
    with pytest.raises(CytosaeError, match=said):
        adapt(some, dino_backbone(), tmp_path / "adapted", tiny(*settings))
    assert list(tmp_path.iterdir()) == []


def test_a_rate_that_is_too_high_leaves_whole_checkpoints_and_says_so(
    some: Cells, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("cytosae.training.adapt._adapt._CHECKPOINT_EVERY", 2)
    step = Adapter.step

    def broken(self: Adapter, number: int) -> dict[str, float]:
        return step(self, number) | ({"class": float("nan")} if number == 3 else {})

    monkeypatch.setattr(Adapter, "step", broken)
    with pytest.raises(CytosaeError, match=r"no longer a number at step 3.*--set lr"):
        adapt(some, dino_backbone(), tmp_path / "adapted", tiny())
    assert [p.name for p in tmp_path.glob(".adapted.*/.checkpoints/*")] == ["step-00000002.safetensors"]


def test_collapsed_tokens_are_not_written(some: Cells, tmp_path: Path, monkeypatch: Any) -> None:
    found = iter([{"stain": 0.5, "n_dimensions": 20.0}, {"stain": 0.0, "n_dimensions": 1.2}])
    monkeypatch.setattr(Adapter, "measure", lambda self: next(found))
    with pytest.raises(CytosaeError, match=r"collapsed: they spread over 1\.2 dimensions"):
        adapt(some, dino_backbone(), tmp_path / "adapted", tiny())
    assert not (tmp_path / "adapted").exists()


def test_a_folder_that_is_not_whole_is_refused(some: Cells, tmp_path: Path) -> None:
    out = tmp_path / "adapted"
    save_file({k: v.clone() for k, v in made.dino().state_dict().items()}, tmp_path / "w.safetensors")
    adapt(some, load_backbone("dinobloom", weights=tmp_path / "w.safetensors"), out, tiny("steps=1"))
    with pytest.raises(CytosaeError, match="--backbone adapted --weights FOLDER"):
        load_backbone("adapted")
    with pytest.raises(CytosaeError, match="those of the backbone that was adapted"):
        load_backbone("adapted", weights=out, heads=3)
    with pytest.raises(CytosaeError, match="does not exist"):
        load_backbone("adapted", weights=tmp_path / "nothing")
    manifest = json.loads((out / "manifest.json").read_text())
    for value in ({}, {"name": 3}, None):
        (out / "manifest.json").write_text(json.dumps({**manifest, "base": value}))
        with pytest.raises(CytosaeError, match="does not say which backbone was adapted"):
            load_backbone("adapted", weights=out)
    (out / "manifest.json").write_text(json.dumps(manifest))
    weights = load_file(out / "backbone.safetensors")
    weights["blocks.1.norm1.bias"] += 1
    save_file(weights, out / "backbone.safetensors")
    with pytest.raises(CytosaeError, match=r"changed|not the file"):
        load_backbone("adapted", weights=out)
