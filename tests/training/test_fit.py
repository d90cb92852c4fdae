from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cytosae import CytosaeError, extract_tokens, fit, load_sae
from cytosae._errors import UsageError
from cytosae.cells import build_cells, bundled_path
from cytosae.training import override
from cytosae.training._calibrate import calibrate_threshold
from cytosae.training._trainer import Trainer
from stand_in import PatchColours

BLOOD = ("split=test", "dataset=acevedo_pbc")
TINY = ("expansion=4", "k=2", "background=1", "presentations=60000", "batch=128", "warmup=10", "dead_after=5000",
        "aux_k=4", "products=float32")  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells and stand-in tokens of the whole bundle."""
    folder = tmp_path_factory.mktemp("fit")
    cells = build_cells(bundled_path(), folder / "cells.parquet")
    extract_tokens(cells, PatchColours(), folder / "tokens")  # type: ignore[arg-type]
    return folder


def train(table: Path, out: Path, *settings: str, seed: int = 0, recipe: str = "small"):  # type: ignore[no-untyped-def]
    from cytosae import TokenStore, read_cells

    store, cells = TokenStore(table / "tokens"), read_cells(table / "cells.parquet")
    return fit(store, cells, override(recipe, [*TINY, *settings]), out, seed=seed, heldout=BLOOD)


def test_training_learns_and_the_inference_threshold_hits_the_target(table: Path, tmp_path: Path) -> None:
    sae = train(table, tmp_path / "sae")
    metrics = sae.info["metrics"]
    assert metrics["explained_variance"] > 0.8
    assert metrics["l0"] == pytest.approx(2, rel=0.1)
    assert sae.info["n_cells_train"] == 480
    lines = [json.loads(line) for line in (tmp_path / "sae" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    norms = sae.W_dec.norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)


def test_relu_l1_trains_and_a_larger_weight_makes_it_sparser(table: Path, tmp_path: Path) -> None:
    loose = train(table, tmp_path / "a", "l1=0.001", recipe="relu-l1")
    tight = train(table, tmp_path / "b", "l1=0.03", recipe="relu-l1")
    assert loose.threshold is None
    assert loose.info["metrics"]["explained_variance"] > 0.8
    assert tight.info["metrics"]["l0"] < loose.info["metrics"]["l0"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(table: Path, tmp_path: Path) -> None:
    train(table, tmp_path / "a")
    train(table, tmp_path / "b")
    train(table, tmp_path / "c", seed=1)
    a, b, c = ((tmp_path / n / "sae.safetensors").read_bytes() for n in "abc")
    assert a == b
    assert a != c


def test_a_run_killed_in_the_middle_ends_with_the_bytes_of_an_unbroken_one(table: Path, tmp_path: Path) -> None:
    train(table, tmp_path / "whole")
    code = (
        "import sys, torch; from pathlib import Path; from cytosae import *; from cytosae.training import override\n"
        "fit(TokenStore(sys.argv[1] + '/tokens'), read_cells(sys.argv[1] + '/cells.parquet'),\n"
        "    override('small', sys.argv[3:]), Path(sys.argv[2]), heldout=('split=test', 'dataset=acevedo_pbc'))\n"
    )
    n_threads = str(torch.get_num_threads())
    command = [sys.executable, "-c", code, str(table), str(tmp_path / "broken"), *TINY]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": n_threads})
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".broken.*/.checkpoints/step-*.safetensors")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9, "killed before it was done"
    newest = max(tmp_path.glob(".broken.*/.checkpoints/step-*.safetensors"))
    newest.with_name("step-99999999.safetensors").write_bytes(newest.read_bytes()[:1000])  # cut in the writing
    train(table, tmp_path / "broken")
    for name in ("sae.safetensors", "metrics.jsonl", "sae.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name


def test_nothing_is_held_out_and_trained_on_at_once(table: Path, tmp_path: Path) -> None:
    from cytosae import TokenStore, read_cells

    store, cells = TokenStore(table / "tokens"), read_cells(table / "cells.parquet")
    with pytest.raises(CytosaeError, match="both trained on and held out"):
        fit(store, cells, override("small", TINY), tmp_path / "x", heldout=("dataset=acevedo_pbc",))


def test_a_diverging_run_stops_with_the_remedy(table: Path, tmp_path: Path) -> None:
    with pytest.raises(CytosaeError, match="lower the learning rate"):
        train(table, tmp_path / "x", "lr=0.99", "beta2=0.0", "warmup=0", "l1=1e38", recipe="relu-l1")


@pytest.mark.parametrize(
    ("recipe", "setting", "message"),
    [
        ("smal", "k=1", "did you mean 'small'"),
        ("small", "expnsion=2", "did you mean 'expansion'"),
        ("small", "k", "key=value"),
        ("small", "k=many", "kind int"),
        ("small", "lr=-1", "not a possible value"),
        ("small", "lr=nan", "not a possible value"),
        ("small", "model=relu", "not a possible value"),
    ],
)
def test_a_wrong_recipe_or_key_names_the_right_one(recipe: str, setting: str, message: str) -> None:
    with pytest.raises(CytosaeError, match=message):
        override(recipe, [setting])


@pytest.mark.parametrize("n", [1, 100, 5000, 9000])
def test_the_threshold_leaves_exactly_the_wanted_number_of_codes(n: int) -> None:
    from cytosae import SparseAutoencoder

    g = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(
        torch.randn(6, 30, generator=g), torch.zeros(30), torch.randn(30, 6, generator=g), torch.zeros(6)
    )
    tokens = torch.randn(n, 6, generator=g)
    tokens[n // 2 :] *= 0.01  # the last chunks hold nothing large
    threshold = calibrate_threshold(sae, tokens, 3)
    assert int((sae.encode(tokens) > threshold).sum()) == 3 * n


def test_a_dictionary_that_was_changed_or_cut_is_refused(table: Path, tmp_path: Path) -> None:
    train(table, tmp_path / "sae")
    path = tmp_path / "sae" / "sae.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CytosaeError, match="has changed"):
        load_sae(tmp_path / "sae")
    path.write_bytes(data[:100])
    with pytest.raises(CytosaeError, match="cut short"):
        load_sae(tmp_path / "sae")


def test_tokens_that_are_all_equal_teach_nothing(tmp_path: Path, cell_folder: Path) -> None:
    from PIL import Image

    folder = tmp_path / "white"
    folder.mkdir()
    Image.fromarray(np.full((32, 32, 3), 255, np.uint8)).save(folder / "a.png")
    cells = build_cells(folder, tmp_path / "c.parquet")
    store = extract_tokens(cells, PatchColours(), tmp_path / "t")  # type: ignore[arg-type]
    with pytest.raises(CytosaeError, match="nothing to learn"):
        fit(store, cells, override("small", TINY), tmp_path / "sae", where=(), heldout=())


def test_more_codes_than_latents_are_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="k=99999 is more than the"):
        train(table, tmp_path / "s", "k=99999")
    assert not any(tmp_path.iterdir())


def test_a_blend_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(CytosaeError, match="belongs to start=tied"):
        override("default", ["blend=0.5"])
    assert override("default", ["blend=0.5", "start=tied"]).blend == 0.5


def test_auxk_grows_with_the_codes_a_token_and_is_written_down_as_used() -> None:
    took = {k: override("default", [f"k={k}"]).n_aux for k in (1, 32, 64, 65, 128)}
    assert took == {1: 256, 32: 256, 64: 256, 65: 520, 128: 1024}
    assert override("default", ["k=128"]).as_dict()["aux_k"] == 1024
    assert override("default", ["k=128", "aux_k=64"]).as_dict()["aux_k"] == 64
    assert override("default", ["aux_k=0"]).n_aux == 0, "off"
    bundled = load_sae("default").info["hyperparameters"]
    assert bundled == override("default").as_dict(), "the packaged dictionary is made by the recipe of its name"


@pytest.mark.parametrize("products", ["float32", "auto"])
def test_silent_latents_keep_no_averages_too_small_for_normal_numbers(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, products: str
) -> None:
    """Those would slow down every later step; and the processor is left as it was found."""
    if products == "float32":
        monkeypatch.setattr("cytosae.sae.ops.native.native_library", lambda: None)
    kept = []

    def finish(self, sample):  # type: ignore[no-untyped-def]
        kept.append(self.weights)
        return real(self, sample)

    real = Trainer.finish
    monkeypatch.setattr(Trainer, "finish", finish)
    settings = ("dead=nothing", "l1=2", "presentations=300000", "lr=1e-2", "k=1", f"products={products}")
    train(table, tmp_path / "sae", *settings, recipe="relu-l1")
    for average in (kept[0].E_avg, kept[0].D_avg):
        silent = (average == 0).all(1)
        assert silent.any(), "some latents have been silent for a thousand steps"
        smallest = average.abs()[average != 0].min() if bool((average != 0).any()) else torch.tensor(1.0)
        assert float(smallest) >= torch.finfo(torch.float32).tiny
    assert float(torch.full((400_000,), 1e-40).mul(0.5).min()) > 0, "of no thread"
