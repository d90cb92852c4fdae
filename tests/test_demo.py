"""The demo as a newcomer runs it: from pixels, the same again, whole after a kill, with concepts that are real."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cytosae import ConceptIndex, TokenStore, concept_map, load_backbone, load_sae, read_cells
from cytosae.cells import ImageReader, bundled_path, decode_image

pytestmark = pytest.mark.demo
Cli = Callable[..., subprocess.CompletedProcess[str]]

#: A sixth of the bundle and a short training: every stage, in a quarter of a minute.
SHORT = ("--set", "presentations=60000", "--threads", "2")


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "cells.parquet"
    table = pq.read_table(bundled_path())
    pq.write_table(table.take(list(range(0, table.num_rows, 6))), path)
    return path


@pytest.fixture(scope="module")
def small_run(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    out = tmp_path_factory.mktemp("small") / "run"
    done = cli("demo", "--cells", small_bundle, "--out", out, *SHORT)
    assert done.returncode == 0, done.stderr
    return out


def test_the_demo_stays_within_its_memory(demo_run: Path) -> None:
    assert (demo_run / "report.html").exists()
    if not (demo_run.parent / "peak-gb").exists():
        pytest.skip("the demo was not made by this run of the tests")
    peak = float((demo_run.parent / "peak-gb").read_text())
    assert peak < 2.5, f"{peak:.2f} GB"


def test_at_least_ten_concepts_are_pure_outside_the_training_part(demo_run: Path) -> None:
    index = ConceptIndex(demo_run / "index")
    cells = read_cells(demo_run / "cells.parquet").frame.set_index("cell_id")
    assert set(cells.loc[index.exemplars["cell_id"].unique(), "split"]) == {"test"}
    ten = index.exemplars[index.exemplars["rank"] < 10]
    labels = ten.assign(label=cells.loc[ten["cell_id"], "label"].to_numpy()).groupby("latent")["label"]
    share = labels.agg(lambda s: s.value_counts(normalize=True).iloc[0])[labels.size() == 10]
    pure = share.index[share >= 0.8]
    assert len(pure) >= 10
    assert labels.agg(lambda s: s.mode().iloc[0]).loc[pure].nunique() >= 4
    known = index.concepts.set_index("latent").loc[pure]
    assert np.allclose(known["top_label_share"], share[pure])


def test_the_dictionary_reconstructs_cells_it_has_not_seen(demo_run: Path) -> None:
    metrics = load_sae(demo_run / "sae").info["metrics"]
    assert metrics["fvu"] < metrics["pca_fvu"] < 1
    assert metrics["l0"] == pytest.approx(8, rel=0.1)


def test_the_same_seed_gives_the_same_bytes(small_bundle: Path, small_run: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli("demo", "--cells", small_bundle, "--out", tmp_path / "again", *SHORT).returncode == 0
    for name in ("index/concepts.parquet", "index/exemplars.parquet", "sae/sae.safetensors", "tokens/manifest.json",
                 "controls.json", "report.html"):  # fmt: skip
        assert (small_run / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_changing_one_image_changes_the_report(small_bundle: Path, small_run: Path, tmp_path: Path, cli: Cli) -> None:
    table = pq.read_table(small_bundle)
    images = table["image"].to_pylist()
    row = table["split"].to_pylist().index("train")
    images[row] = {**images[row], "bytes": images[(row + 1) % len(images)]["bytes"]}
    changed = table.set_column(0, "image", pa.array(images, type=table.schema.field("image").type))
    (tmp_path / "b").mkdir()
    pq.write_table(changed, tmp_path / "b" / "cells.parquet")
    assert cli("demo", "--cells", tmp_path / "b" / "cells.parquet", "--out", tmp_path / "run", *SHORT).returncode == 0
    old, new = (json.loads((r / "sae/sae.json").read_text())["metrics"] for r in (small_run, tmp_path / "run"))
    assert old["explained_variance"] != new["explained_variance"]
    assert (small_run / "report.html").read_text() != (tmp_path / "run/report.html").read_text()


def test_killed_again_and_again_it_ends_with_the_same_bytes(
    small_bundle: Path, small_run: Path, tmp_path: Path, cli: Cli
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "cytosae", "demo", "--cells", str(small_bundle), "--out", str(out), *SHORT]
    rng = random.Random(0)
    marks = ("cells.parquet", "tokens", "sae", "index", "controls.json")
    for mark in marks:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (out / mark).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = {m: (out / m).stat().st_mtime_ns for m in marks[:3]}
    assert cli(*command[3:]).returncode == 0
    assert {m: (out / m).stat().st_mtime_ns for m in marks[1:3]} == {m: before[m] for m in marks[1:3]}, "not made again"
    for name in ("index/concepts.parquet", "sae/sae.safetensors", "controls.json", "report.html"):
        assert (small_run / name).read_bytes() == (out / name).read_bytes(), name


def test_an_odd_patch_is_found_where_it_is(demo_run: Path) -> None:
    """Eosinophil granules pasted into the picture of a platelet, moved over the grid."""
    cells, sae = read_cells(demo_run / "cells.parquet"), load_sae(demo_run / "sae")
    index, store = ConceptIndex(demo_run / "index"), TokenStore(demo_run / "tokens")
    frame, reader = cells.frame.set_index("cell_id"), ImageReader(cells.root)

    def strongest(label: str) -> tuple[int, pd.Series]:
        """The pure concept of a label with the largest code, and its first exemplar."""
        pure = index.concepts.query("top_label == @label and top_label_share == 1").sort_values("max_activation")
        latent = int(pure["latent"].iloc[-1])
        return latent, index.exemplars_of(latent).iloc[0]

    def pixels(cell_id: int) -> np.ndarray:
        return decode_image(reader.read(frame.loc[cell_id, "image"])).pixels

    latent, best = strongest("eosinophil")
    half, source, ground = 2, pixels(best["cell_id"]), pixels(strongest("platelet")[1]["cell_id"])
    y, x = (min(max(v, half), 15 - half) for v in divmod(int(best["patch"]), 16))
    patch = source[(y - half) * 14 : (y + half + 1) * 14, (x - half) * 14 : (x + half + 1) * 14]
    backbone = load_backbone("dinov2-s", precision=store.manifest["precision"])
    assert concept_map(sae, backbone.tokens(ground[None])[0], latent, (16, 16), n_prefix=1).max() < 0.5
    places = [*itertools.product((2, 5, 8, 11, 13), repeat=2)]
    images = np.repeat(ground[None], len(places), axis=0)
    for image, (row, column) in zip(images, places, strict=True):
        image[(row - half) * 14 : (row + half + 1) * 14, (column - half) * 14 : (column + half + 1) * 14] = patch
    for (row, column), tokens in zip(places, backbone.tokens(images), strict=True):
        found = concept_map(sae, tokens, latent, (16, 16), n_prefix=1)
        r, c = np.unravel_index(found.argmax(), found.shape)
        assert found.max() > 0.5
        assert (abs(int(r) - row) <= half, abs(int(c) - column) <= half) == (True, True), (row, column, r, c)


def test_the_report_holds_what_it_promises_and_asks_nothing_of_the_network(demo_run: Path) -> None:
    page = (demo_run / "report.html").read_text("utf-8")
    for words in ("Research use only", "What you must not conclude", "Explained variance", "Random directions",
                  "A cell, patch by patch", "The same concepts on bone marrow", "These patients are simulated",
                  "What sets a diagnosis apart", "One patient explained", "Provenance"):  # fmt: skip
        assert words in page
    assert page.count('class="card"') >= 12
    assert page.count("Not tied to a cell type, on the cell</h3>") == 3
    assert "src=" not in page
    outside = [part[:60] for part in page.split('href="')[1:] if not part.startswith(("#", "data:"))]
    assert not outside


def test_a_patients_concept_that_lies_off_the_cell_is_said_to(demo_run: Path) -> None:
    from cytosae.reports._patients import patients_page
    from cytosae.reports._run import Run

    found = patients_page(Run(demo_run))
    assert found is not None
    assert found.one is not None
    shares = [x.on_cell for x in found.one.reasons]
    hits = [hit.on_cell for d in found.diagnoses for hit in d.hits]
    assert all(not share < 0 and not share > 1 + 1e-6 for share in shares + hits)  # nan: without exemplars
    page = (demo_run / "report.html").read_text("utf-8")
    assert page.count("mostly off the cell</b>") == sum(share < 0.5 for share in shares)
    assert page.count("of it lies on the cell): not this cell's morphology.") == sum(share < 0.5 for share in hits)


def test_pages_of_new_patients_say_what_lies_off_the_cell_and_what_people_call_it(
    demo_run: Path, tmp_path: Path
) -> None:
    from cytosae.concepts import name_concept
    from cytosae.reports import write_predictions

    shutil.copytree(demo_run / "index", tmp_path / "named/index")
    index = ConceptIndex(tmp_path / "named/index")
    given: dict[str, Any] = {
        "patients": demo_run / "patients", "index": demo_run / "index-cohort", "cells": demo_run / "cohort.parquet",
        "out": tmp_path / "pages", "sae": demo_run / "sae", "store": TokenStore(demo_run / "tokens"),
    }  # fmt: skip
    found = write_predictions(**given)
    pages = [p.read_text("utf-8") for p in (tmp_path / "pages").glob("*.html")]
    assert len(pages) == len(found) + 1
    assert any("mostly off the cell" in page for page in pages)
    assert not any("a thing to see" in page for page in pages)
    latent = re.search(r"<b>concept (\d+)", max(pages, key=len))
    assert latent is not None
    name_concept(tmp_path / "named/names.parquet", index, int(latent[1]), "a thing to see", "A. Expert")
    write_predictions(**given, named_in=index)
    again = [p.read_text("utf-8") for p in (tmp_path / "pages").glob("*.html")]
    assert any(f"a thing to see (concept {latent[1]})" in page for page in again), "made anew, since names were given"


def test_marrow_is_never_trained_on_and_simulated_patients_share_no_cell_with_the_dictionary(demo_run: Path) -> None:
    from cytosae.patients import read_patients

    cells = read_cells(demo_run / "cells.parquet").frame
    trained = cells[cells["split"] == "train"]
    assert set(trained["dataset"]) == {"acevedo_pbc"}
    marrow = ConceptIndex(demo_run / "index-marrow")
    assert set(cells.set_index("cell_id").loc[marrow.exemplars["cell_id"].unique(), "dataset"]) == {"bmc_marrow"}
    cohort = read_cells(demo_run / "cohort.parquet").frame
    assert not set(cohort["sha256"]) & set(trained["sha256"])
    assert cohort["cell_id"].is_unique
    assert (cohort.groupby("patient").size() == 20).all()
    promyelocytes = cohort[cohort["fine_label"] == "promyelocyte"].groupby("patient").size()
    assert (promyelocytes == 3).all()
    assert set(promyelocytes.index) == {f"sim-C-{i:02d}" for i in range(1, 9)}
    patients = read_patients(demo_run / "patients")
    assert patients.simulated
    assert patients.classification["sae_saw_these_cells"]["setting"] == "inductive"


def test_explaining_an_image_gives_its_picture_and_the_same_concepts(
    demo_run: Path, tmp_path: Path, cli: Cli, some_jpegs: list[bytes]
) -> None:
    (tmp_path / "a.jpg").write_bytes(some_jpegs[0])
    out = tmp_path / "out"
    done = cli("explain", tmp_path / "a.jpg", "--sae", demo_run / "sae", "--index", demo_run / "index", "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "explain.json").read_text())["images"][0]
    assert decode_image((out / record["picture"]).read_bytes()).pixels.shape[1] > 1000
    assert len(record["concepts"]) == 7
    store, sae = TokenStore(demo_run / "tokens"), load_sae(demo_run / "sae")
    codes = sae.encode(store.read(np.array([0]), kind="patch")[0].float()).numpy()
    for concept in record["concepts"]:
        assert concept["value"] == pytest.approx(codes[:, concept["latent"]].max(), rel=0.1)
        assert np.asarray(concept["map"]).shape == (16, 16)
    (tmp_path / "text.jpg").write_text("no picture")
    done = cli("explain", tmp_path / "text.jpg", "--sae", demo_run / "sae", "--out", tmp_path / "x")
    assert done.returncode == 1
    assert "text.jpg: not an image" in done.stderr


def test_verbs_find_the_table_beside_their_artifact(demo_run: Path, tmp_path: Path, cli: Cli) -> None:
    tiny = ("--set", "presentations=5120", "--recipe", "small", "--quiet")
    done = cli("fit", demo_run / "tokens", *tiny, "--out", tmp_path / "sae")
    assert done.returncode == 0, done.stderr
    assert "trained on 480 cells; on 593 other cells" in done.stdout
    (tmp_path / "moved").symlink_to(demo_run / "tokens")
    done = cli("fit", tmp_path / "moved", "--cells", tmp_path / "none.parquet", "--out", tmp_path / "x")
    assert done.returncode == 1
    assert "none.parquet does not exist" in done.stderr


def test_an_index_from_pixels_equals_the_one_from_tokens(demo_run: Path, tmp_path: Path, cli: Cli) -> None:
    where = ("--where", "split=test", "--where", "label=basophil")
    common = (demo_run / "cells.parquet", "--sae", demo_run / "sae", *where, "--threads", "2")
    assert cli("index", *common, "--out", tmp_path / "a").returncode == 0
    assert cli("index", *common, "--tokens", demo_run / "tokens", "--out", tmp_path / "b").returncode == 0
    a, b = ConceptIndex(tmp_path / "a").concepts, ConceptIndex(tmp_path / "b").concepts
    assert np.corrcoef(a["n_tokens_active"], b["n_tokens_active"])[0, 1] > 0.999
    both = pd.concat([a["max_activation"], b["max_activation"]], axis=1).dropna()
    assert float((both.iloc[:, 0] - both.iloc[:, 1]).abs().median()) < 0.01
