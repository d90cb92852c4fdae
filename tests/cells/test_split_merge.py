"""No patient, field or near duplicate is in two parts; a merged cell knows where it came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cytosae._errors import CytosaeError, UsageError
from cytosae.cells import (
    ImageReader,
    build_cells,
    build_table,
    bundled_path,
    merge_cells,
    parse_parts,
    read_cells,
    split_cells,
    write_cells,
)
from cytosae.cells._split import linked
from cytosae.cli._main import run

PARTS = {"train": 0.7, "val": 0.15, "test": 0.15}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The bundled cells with 90 made-up patients; some near-duplicate groups link patients."""
    build_cells(bundled_path(), tmp_path / "plain.parquet", near_duplicates=False)
    cells = read_cells(tmp_path / "plain.parquet")
    frame, random = cells.frame.copy(), np.random.default_rng(5)
    frame["patient"] = [f"P{v:02d}" for v in random.zipf(1.6, len(frame)) % 90]
    frame.loc[::40, "near_duplicate_group"] = 0
    frame.loc[frame.index % 97 == 3, "patient"] = None
    frame.loc[[5, 50], ["status", "reason"]] = ["quarantined", "cut"]
    frame["split"] = None
    write_cells(tmp_path / "cells.parquet", frame, root=cells.root, inputs={}, config={})
    return tmp_path / "cells.parquet"


@pytest.mark.parametrize("seed", range(4))
def test_no_group_lies_in_two_parts(table: Path, tmp_path, seed) -> None:
    cells = split_cells(table, tmp_path / "s.parquet", parts=PARTS, by=["patient"], seed=seed)
    for column in ("patient", "near_duplicate_group"):
        known = cells.ok[cells.ok[column].notna()]
        assert (known.groupby(column)["split"].nunique() == 1).all()
    assert cells.ok["split"].notna().all()
    assert cells.frame[cells.frame["status"] != "ok"]["split"].isna().all()


def test_parts_have_their_shares_and_the_mix_of_labels(table: Path, tmp_path) -> None:
    cells = split_cells(table, tmp_path / "s.parquet", parts=PARTS, by=["near_duplicate_group"], stratify="label")
    mix = pd.crosstab(cells.ok["label"], cells.ok["split"], normalize="index")
    frequent = cells.ok["label"].value_counts()
    for label in frequent.index[frequent > 80]:
        assert mix.loc[label].to_dict() == pytest.approx(PARTS, abs=0.06), label


def test_splits_are_reproducible_and_follow_the_seed(table: Path, tmp_path) -> None:
    names = [split_cells(table, tmp_path / f"{i}.parquet", parts=PARTS, seed=s) for i, s in enumerate((1, 1, 2))]
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()
    assert not names[0].frame["split"].equals(names[2].frame["split"])


def test_permuting_the_rows_changes_no_split(table: Path, tmp_path) -> None:
    cells = read_cells(table)
    write_cells(
        tmp_path / "p.parquet", cells.frame.sample(frac=1, random_state=1), root=cells.root, inputs={}, config={}
    )
    first = split_cells(table, tmp_path / "a.parquet", parts=PARTS, by=["patient"]).frame["split"]
    assert first.equals(
        split_cells(tmp_path / "p.parquet", tmp_path / "b.parquet", parts=PARTS, by=["patient"]).frame["split"]
    )


def test_chains_over_several_columns_stay_together() -> None:
    frame = pd.DataFrame({"patient": ["a", "a", "b", None, "c"], "group": [1, 2, 2, 2, 3]})
    assert linked(frame, ["patient", "group"]).tolist()[:4] == [0] * 4
    assert len(set(linked(frame, ["patient", "group"]))) == 2
    assert len(set(linked(frame, []))) == 5


def test_an_existing_leak_is_refused_not_kept(table: Path, tmp_path) -> None:
    cells = read_cells(table)
    frame = cells.frame.copy()
    frame["split"] = np.where(frame.index % 2, "train", "test")
    write_cells(tmp_path / "leak.parquet", frame, root=cells.root, inputs={}, config={})
    with pytest.raises(CytosaeError, match=r"has the patient 'P\d\d' in the parts test and train"):
        split_cells(
            tmp_path / "leak.parquet",
            tmp_path / "s.parquet",
            parts={"train": 0.5, "test": 0.5},
            keep=True,
            by=["patient"],
        )


def test_cells_that_have_a_split_keep_it(table: Path, tmp_path) -> None:
    cells = read_cells(table)
    frame = cells.frame.copy()
    unit = pd.Series(linked(frame, ["patient", "near_duplicate_group"]))
    held = unit.isin(unit.unique()[1:8])
    frame.loc[held, "split"] = "test"
    write_cells(tmp_path / "part.parquet", frame, root=cells.root, inputs={}, config={})
    done = split_cells(
        tmp_path / "part.parquet", tmp_path / "s.parquet", parts={"train": 0.8, "test": 0.2}, keep=True, by=["patient"]
    )
    usable = held & (done.frame["status"] == "ok")
    assert (done.frame.loc[usable, "split"] == "test").all()
    assert done.ok["split"].notna().all()


@pytest.mark.parametrize(("options", "message", "status"), [
    (["--parts", "train=0.8,test=0.8"], "does not add up to 1", 2),
    (["--parts", "train"], "is not of the form", 2),
    (["--by", "patiant"], "did you mean 'patient'", 2),
    (["--by", "label"], "is no group of cells", 2),
    (["--by", "diagnosis"], "is empty", 1),
    (["--by", "dataset", "--parts", "a=0.3,b=0.3,c=0.4"], "1 groups for 3 parts|groups for 3 parts", 1),
])  # fmt: skip
def test_a_split_that_cannot_be_is_refused_in_one_sentence(
    table: Path, tmp_path, capfd, options, message, status
) -> None:
    import re

    assert run(["cells", "split", str(table), "--out", str(tmp_path / "s.parquet"), *options]) == status
    error = capfd.readouterr().err
    assert re.search(message, error)
    assert error.strip().count("\n") == 0


def test_parts_are_read_in_order() -> None:
    assert list(parse_parts("train=0.5, b=0.5")) == ["train", "b"]
    with pytest.raises(UsageError):
        parse_parts("a=0.5,a=0.5")


def test_merged_cells_keep_their_origin_and_their_pixels(tree_pair, tmp_path, capfd) -> None:
    first, second, real = tree_pair
    assert run(["cells", "merge", str(first), str(second), "--out", str(tmp_path / "m.parquet")]) == 0
    assert "Wrote" in capfd.readouterr().out
    cells = read_cells(tmp_path / "m.parquet")
    assert cells.frame["cell_id"].tolist() == list(range(7))
    assert cells.frame["source"].tolist() == ["one"] * 4 + ["two"] * 3
    assert cells.frame["source_cell_id"].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert cells.frame["score"].tolist()[:4] == ["1", "2", "3", "4"]
    assert cells.frame["near_duplicate_group"].tolist() == [0, 1, 2, 3, 0, 5, 6]  # one file lies in both
    reader = ImageReader(cells.root)
    for row in cells.frame.itertuples():
        assert reader.read(row.image, row.sha256)
    merge_cells([tmp_path / "m.parquet", _third(tmp_path, real)], tmp_path / "n.parquet")
    again = read_cells(tmp_path / "n.parquet").frame
    assert again["source"].tolist() == ["one"] * 4 + ["two"] * 3 + ["three"] * 2
    assert again["source_cell_id"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]


def _third(tmp_path: Path, real: list[bytes]) -> Path:
    folder = tmp_path / "c" / "x"
    folder.mkdir(parents=True)
    for i in (20, 21):
        (folder / f"{i}.jpg").write_bytes(real[i])
    return build_table(tmp_path / "c", tmp_path / "three.parquet").path


@pytest.fixture
def tree_pair(tmp_path: Path, real: list[bytes]) -> tuple[Path, Path, list[bytes]]:
    for folder, numbers in (("a", range(4)), ("b", (0, 10, 11))):
        (tmp_path / folder).mkdir()
        for i in numbers:
            (tmp_path / folder / f"{i}.jpg").write_bytes(real[i])
    rows = "image,score\n" + "".join(f"{i}.jpg,{i + 1}\n" for i in range(4))
    (tmp_path / "a" / "m.csv").write_text(rows)
    first = build_table(tmp_path / "a" / "m.csv", tmp_path / "one.parquet").path
    return first, build_table(tmp_path / "b", tmp_path / "two.parquet").path, real


def test_merging_one_table_twice_is_refused(tree_pair, tmp_path) -> None:
    first, _, _ = tree_pair
    with pytest.raises(UsageError, match="give each table once"):
        merge_cells([first, first], tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="at least two"):
        merge_cells([first], tmp_path / "m.parquet")


def test_a_folder_called_merge_can_still_be_read(tmp_path, real, monkeypatch) -> None:
    (tmp_path / "merge" / "a").mkdir(parents=True)
    (tmp_path / "merge" / "a" / "1.jpg").write_bytes(real[0])
    monkeypatch.chdir(tmp_path)
    assert run(["cells", "./merge", "--out", "c.parquet", "--quiet"]) == 0
    assert len(read_cells("c.parquet")) == 1
