"""Several dictionaries in one pass; the pages of curves; TensorBoard."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cytosae import CytosaeError, TokenStore, extract_tokens, fit, load_sae, read_cells
from cytosae.cells import build_cells, bundled_path
from cytosae.training import Member, TokenFacts, Trainer, fit_many, override
from stand_in import PatchColours

BLOOD = ("split=test", "dataset=acevedo_pbc")
TINY = ("expansion=4", "background=1", "presentations=40000", "batch=128", "warmup=10", "products=float32")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    cells = build_cells(bundled_path(), folder / "cells.parquet")
    extract_tokens(cells, PatchColours(), folder / "tokens")  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def swept(table: Path, cli: Callable[..., Any]) -> Any:
    sets = [word for setting in TINY for word in ("--set", setting)]
    done = cli("fit", table / "tokens", "--recipe", "small", *sets, "--sweep", "k=1,2,4", "--sweep", "seed=0,1", "--threads", 1,
               "--heldout", BLOOD[0], "--heldout", BLOOD[1], "--tensorboard", table / "tb", "--out", table / "sweep")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_a_sweep_gives_one_table_one_plot_and_whole_dictionaries(table: Path, swept: Any) -> None:
    rows = list(csv.DictReader((table / "sweep" / "sweep.csv").open()))
    assert [(r["k"], r["seed"]) for r in rows] == [(k, s) for k in "124" for s in "01"]
    for row in rows:
        sae = load_sae(table / "sweep" / row["name"])
        assert sae.info["metrics"]["l0"] == pytest.approx(float(row["l0"]))
        assert float(row["l0"]) == pytest.approx(int(row["k"]), rel=0.2)
    assert float(rows[0]["fvu"]) > float(rows[-1]["fvu"])
    page = (table / "sweep" / "sweep.html").read_text()
    assert page.count("<svg") == 1
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_a_member_of_a_sweep_is_the_dictionary_that_training_it_alone_gives(
    table: Path, swept: Any, tmp_path: Path
) -> None:
    store, cells = TokenStore(table / "tokens"), read_cells(table / "cells.parquet")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    fit(store, cells, override("small", [*TINY, "k=2"]), tmp_path / "alone", heldout=BLOOD)
    torch.set_num_threads(before)
    member = table / "sweep" / "k-2_seed-0"
    assert (tmp_path / "alone" / "sae.safetensors").read_bytes() == (member / "sae.safetensors").read_bytes()
    other = table / "sweep" / "k-2_seed-1"
    assert (other / "sae.safetensors").read_bytes() != (member / "sae.safetensors").read_bytes()


def test_the_page_of_a_dictionary_shows_curves_metrics_and_the_histogram(table: Path, swept: Any) -> None:
    folder = table / "sweep" / "k-2_seed-0"
    page = (folder / "fit.html").read_text()
    assert page.count("<svg") == 2
    assert "latents counted as dead for AuxK" in page
    assert " views" not in page
    metrics = load_sae(folder).info["metrics"]
    assert f"{metrics['fvu']:.4f}" in page
    histogram = metrics["frequency_histogram"]
    assert sum(histogram["n_latents"]) == 32
    assert len(histogram["from"]) == len(histogram["n_latents"])


def test_tensorboard_holds_the_lines_of_metrics_jsonl(table: Path, swept: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [json.loads(line) for line in (table / "sweep" / "k-4_seed-1" / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(table / "tb" / "k-4_seed-1"))
    events.Reload()
    assert [e.step for e in events.Scalars("error")] == [line["tokens"] for line in lines]
    assert [e.value for e in events.Scalars("error")] == pytest.approx([line["error"] for line in lines])


@pytest.mark.parametrize(("arguments", "message"), [
    (("--sweep", "batch=1,2"), "share"),
    (("--sweep", "k"), "key=value,value"),
    (("--sweep", "k=1,1"), "given twice"),
    (("--sweep", "kk=1,2"), "no field 'kk'"),
    (("--sweep", "seed=a"), "whole number"),
    (("--set", "levels=1/4,x"), "shares separated by commas"),
    (("--set", "dead=ghost"), "belongs to error=norm"),
    (("--set", "k=2.5"), "kind int"),
])  # fmt: skip
def test_a_wrong_sweep_is_one_sentence(
    table: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    from cytosae.cli._main import run

    assert run(["fit", str(table / "tokens"), *arguments, "--out", str(table / "none")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (table / "none").exists()


def test_dictionaries_that_see_other_tokens_are_not_trained_in_one_pass(table: Path, tmp_path: Path) -> None:
    store, cells = TokenStore(table / "tokens"), read_cells(table / "cells.parquet")
    members = [Member(tmp_path / b, override("small", [*TINY, f"batch={b}"]), 0) for b in ("64", "128")]
    with pytest.raises(CytosaeError, match="share batch"):
        fit_many(store, cells, members, heldout=BLOOD)


def test_a_spike_of_the_loss_stops_the_run_before_a_checkpoint_is_spoilt() -> None:
    from cytosae.sae.ops import choose

    tokens = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    recipe = override("small", ["expansion=2", "k=2", "warmup=0"])
    trainer = Trainer(recipe, 0, TokenFacts.of(tokens), choose("cpu", 8, 16, products="float32"), 100)
    trainer.step(tokens, 0)
    with pytest.raises(CytosaeError, match=r"rose from .* the last checkpoint is whole; lower the learning rate"):
        for step in range(1, 40):
            trainer.step(tokens * 30, step)
    trainer.weights.E[0, 0] = float("nan")
    assert not trainer.is_finite()
