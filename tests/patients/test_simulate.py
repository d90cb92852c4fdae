"""Simulated cohorts."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from small_cohorts import SPEC, source_table

from cytosae import CytosaeError
from cytosae.cells import build_cells, bundled_path, read_cells
from cytosae.cli._main import run
from cytosae.patients import draw_cohort, packaged_specs, parse_spec, read_spec, simulate_cohort
from cytosae.storage import hash_file


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    return build_cells(bundled_path(), tmp_path_factory.mktemp("bundled") / "cells.parquet")


def test_a_folder_called_like_a_packaged_specification_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_spec("demo") == read_spec(packaged_specs()["demo"])


def test_the_demo_cohort_can_be_drawn_with_every_seed_and_keeps_its_promise(bundled):
    spec = read_spec("demo")
    for seed in range(51):
        frame = draw_cohort(spec, bundled, seed)
        assert frame["cell_id"].is_unique
        assert (frame.groupby("patient").size() == 20).all()
        assert frame["patient"].nunique() == 24
        assert (frame["split"] == "test").all()
        assert (frame["dataset"] == "acevedo_pbc").all()
        rare = (frame["fine_label"] == "promyelocyte").groupby(frame["patient"]).sum()
        marked = frame.groupby("patient")["diagnosis"].first() == "simulated C (promyelocytes)"
        assert (rare[marked] == 3).all()
        assert (rare[~marked] == 0).all()


def test_a_cohort_is_a_table_of_cells_that_says_simulated_and_keeps_its_tokens(on_disk, tmp_path):
    source = read_cells(on_disk.cells)
    cohort = simulate_cohort(parse_spec(SPEC), source, tmp_path / "c.parquet", seed=3)
    frame = cohort.frame
    assert frame["simulated"].all()
    assert frame["diagnosis"].str.startswith("simulated ").all()
    assert frame["patient"].str.match(r"sim-[AB]-\d\d$").all()
    assert (frame["cell_id"] == frame["source_cell_id"]).all()
    assert cohort.root == source.root
    both = frame.merge(source.frame, on="cell_id", suffixes=("", "_before"))
    assert (both["image"] == both["image_before"]).all()
    assert (both["label"] == both["label_before"]).all()
    assert set(frame["status"]) == {"ok"}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_patients(on_disk, tmp_path):
    source, spec = read_cells(on_disk.cells), parse_spec(SPEC)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate_cohort(spec, source, tmp_path / name, seed=seed)
    assert hash_file(tmp_path / "a") == hash_file(tmp_path / "b") != hash_file(tmp_path / "c")


def test_patients_of_one_diagnosis_differ_and_the_mean_mixture_is_the_stated_one(bundled):
    spec = read_spec("demo")
    frames = [draw_cohort(spec, bundled, seed) for seed in range(40)]
    shares = pd.concat([pd.crosstab(f["patient"], f["label"], normalize="index") for f in frames])
    first = shares[shares.index.str.startswith("sim-A")].fillna(0)
    # conditioning on the pool moves the mean a little
    assert first["neutrophil"].mean() == pytest.approx(0.44, abs=0.03)
    assert first["lymphocyte"].mean() == pytest.approx(0.24, abs=0.03)
    assert first["neutrophil"].std() > 0.1
    early, late = (shares[shares.index.str.endswith(n)]["eosinophil"].mean() for n in ("-01", "-08"))
    assert early == pytest.approx(late, abs=0.04), "later patients must not get what earlier ones left"


def changed(**changes):
    spec = json.loads(json.dumps(SPEC))
    for path, value in changes.items():
        at = spec["diagnoses"][1] if path in spec["diagnoses"][1] or path == "n_patient" else spec
        at[path] = value
    return spec


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (changed(cells_per_pateint=3), "unknown key 'cells_per_pateint' (did you mean 'cells_per_patient'?)"),
        (changed(n_patient=3), "did you mean 'n_patients'?"),
        (changed(concentration=0), "'concentration' of the specification is 0; it must be a number above 0"),
        (changed(cells_per_patient=2), "fixes 3 cells a patient, but cells_per_patient is 2"),
        (changed(mixture={"neutrophyl": 1}), "'neutrophyl' (did you mean 'neutrophil'?)"),
        (changed(fixed={"fine_labl": {"rare": 1}}), "no column 'fine_labl' (did you mean 'fine_label'?)"),
        (changed(fixed={"fine_label": {"rare": 9}}), "free cells with fine_label=rare, but the cohort wants 72"),
        (changed(mixture={"monocyte": 1}, cells_per_patient=30), "free cells with label=monocyte"),
        (changed(**{"from": ["nothing"]}), "not of the form column=value"),
        (changed(diagnoses=[]), "'diagnoses' of the specification must be a list"),
        ([1], "must be a mapping"),
    ],
)
def test_a_wrong_specification_is_one_sentence_with_the_remedy(on_disk, spec, words):
    with pytest.raises(CytosaeError) as error:
        draw_cohort(parse_spec(spec), read_cells(on_disk.cells), 0)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_specification_cannot_run_code(tmp_path):
    (tmp_path / "evil.yaml").write_text("!!python/object/apply:os.system ['touch hacked']")
    with pytest.raises(CytosaeError, match="cannot be read as YAML or JSON"):
        read_spec(tmp_path / "evil.yaml")


def test_cohort_simulate_on_the_command_line_reads_json_and_names_what_it_made(tmp_path, capsys):
    source_table(tmp_path / "cells.parquet")
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    arguments = ["--cells", str(tmp_path / "cells.parquet"), "--out", str(tmp_path / "out.parquet")]
    assert run(["cohort", "simulate", str(tmp_path / "spec.json"), *arguments]) == 0
    assert "16 simulated patients of 2 made-up diagnoses, 160 real cells" in capsys.readouterr().out
    assert len(read_cells(tmp_path / "out.parquet")) == 160
    assert run(["cohort", "simulate", "demmo", *arguments]) == 2
    assert "did you mean 'demo'?" in capsys.readouterr().err
