"""What would spoil a study is said: contradictions, leaks, shortcuts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from cytosae._errors import CytosaeError
from cytosae.cells import audit_cells, build_cells, build_table, bundled_path, write_page
from cytosae.cells._facts import Facts
from cytosae.cells._give_away import GiveAway, give_aways

Tree = Callable[[dict[str, bytes]], Path]


def test_one_file_under_two_labels_is_named(tree: Tree, real, tmp_path) -> None:
    files = {
        "eosinophil/1.jpg": real[0],
        "neutrophil/2.jpg": real[0],
        "eosinophil/3.jpg": real[1],
        "eosinophil/4.jpg": real[1],
    }
    build_table(tree(files), tmp_path / "c.parquet")
    audit = audit_cells(tmp_path / "c.parquet")
    assert (audit.n_identical, audit.n_contradicting) == (2, 1)
    assert audit.contradicting[0].what == "2 cells: eosinophil / neutrophil"
    assert any(line.startswith("! identical files under different labels: 1") for line in audit.lines())


@pytest.mark.shared
def test_the_published_contradiction_of_acevedo_is_found(pack: Path, tree: Tree, tmp_path) -> None:
    names = {"eosinophil/EO_225902.jpg": "EO_225902.jpg", "neutrophil/BNE_191112.jpg": "BNE_191112.jpg",
             "basophil/BA_20201.jpg": "BA_20201.jpg", "basophil/BA_809918.jpg": "BA_809918.jpg"}  # fmt: skip
    root = tree({place: (pack / "hard" / name).read_bytes() for place, name in names.items()})
    build_table(root, tmp_path / "c.parquet", layout="acevedo")
    audit = audit_cells(tmp_path / "c.parquet")
    assert (audit.n_identical, audit.n_contradicting) == (2, 1)


def test_a_mirrored_copy_in_another_split_is_a_leak(tree: Tree, pixels, real, encode, tmp_path) -> None:
    mirrored = encode(np.ascontiguousarray(pixels[0][:, ::-1]), "PNG")
    rows = "image,label,split,patient\n0.jpg,a,train,P1\nm.png,a,test,P2\n1.jpg,b,train,P3\n2.jpg,b,test,P3\n"
    root = tree({"0.jpg": real[0], "m.png": mirrored, "1.jpg": real[1], "2.jpg": real[2], "m.csv": rows.encode()})
    build_table(root / "m.csv", tmp_path / "c.parquet")
    audit = audit_cells(tmp_path / "c.parquet")
    assert {(column, n) for column, n, _ in audit.leaks} == {("patient", 1), ("near_duplicate_group", 1)}
    assert audit.leaking[0].cell_ids == [0, 1]
    write_page(audit, tmp_path / "c.parquet", tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text("utf-8")
    assert "Across splits" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_class_that_its_size_gives_away_is_named(tree: Tree, pixels, encode, tmp_path) -> None:
    def cell(i: int, side: int) -> bytes:
        return encode(np.asarray(Image.fromarray(pixels[i]).resize((side, side))), "PNG")

    files = {f"platelet/{i}.png": cell(i, 60) for i in range(12)} | {
        f"monocyte/{i}.png": cell(i, 90) for i in range(12, 26)
    }
    build_table(tree(files), tmp_path / "c.parquet")
    found = audit_cells(tmp_path / "c.parquet").give_aways
    size = next(g for g in found if g.what == "image size")
    assert size.serious
    assert size.accuracy == 1.0
    assert size.guess == pytest.approx(14 / 26)
    assert ("60 x 60", 12, "platelet", 1.0, 12 / 26) in size.examples


def _give_aways(frame: pd.DataFrame) -> list[GiveAway]:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    return give_aways(Facts(table.to_batches(), table.column_names))


def test_chance_is_not_called_a_shortcut() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({
        "width": random.integers(100, 140, 3000), "height": 100, "mode": "RGB", "dataset": "d",
        "file_header": random.choice(["JPEG q80", "JPEG q90"], 3000),
        "file_bytes": random.integers(1000, 9000, 3000), "label": random.choice(list("abcd"), 3000),
    })  # fmt: skip
    assert not any(g.serious for g in _give_aways(frame))
    frame["label"] = np.arange(3000).astype(str)  # one cell a class: nothing can be learned, nothing claimed
    assert all(g.accuracy == 0 for g in _give_aways(frame))


def test_a_property_that_tells_nothing_of_equal_classes_is_as_good_as_a_guess() -> None:
    frame = pd.DataFrame({
        "width": 100, "height": 100, "mode": ["RGB", "RGBA"] * 60, "dataset": "d", "file_header": "PNG", "file_bytes": 1000,
        "label": np.repeat(list("abcdef"), 20),
    })  # fmt: skip
    found = next(g for g in _give_aways(frame) if g.what == "colour mode")
    assert found.accuracy == pytest.approx(1 / 6)
    assert found.guess == pytest.approx(1 / 6)
    assert not found.serious


def test_the_page_names_the_files_a_person_has_to_open(tree: Tree, pixels, encode, tmp_path) -> None:
    same = encode(pixels[0][:64, :64], "PNG")
    root = tree(
        {
            "a/first.png": same,
            "b/second.png": same,
            "a/third.png": encode(pixels[1][:64, :64], "PNG"),
            "b/empty.png": b"",
        }
    )
    build_table(root, tmp_path / "c.parquet", near_duplicates=False)
    write_page(audit_cells(tmp_path / "c.parquet"), tmp_path / "c.parquet", tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text("utf-8")
    assert "first.png, second.png" in page
    assert "<td>b/empty.png</td><td>empty file</td>" in page


def test_cells_without_labels_are_shown_and_nothing_is_claimed_for_them(tree: Tree, pixels, encode, tmp_path) -> None:
    root = tree({f"{i}.png": encode(pixels[i][:64, :64], "PNG") for i in range(4)})
    build_table(root, tmp_path / "c.parquet", near_duplicates=False)
    write_page(audit_cells(tmp_path / "c.parquet"), tmp_path / "c.parquet", tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text("utf-8")
    assert "no class that size or header gives away" not in page
    assert "too few labels to ask" in page
    assert page.count("<img") == 1


def test_files_of_one_length_are_looked_through_like_others(tree: Tree, pixels, encode, tmp_path) -> None:
    root = tree({f"{'ab'[i % 2]}/{i}.bmp": encode(pixels[i][:64, :64], "BMP") for i in range(24)})
    build_table(root, tmp_path / "c.parquet", near_duplicates=False)
    assert audit_cells(tmp_path / "c.parquet").give_aways == []


def test_a_source_with_a_column_of_an_odd_type_is_audited() -> None:
    table = pa.table({
        "cell_id": pa.array([0, 1]), "source_field": pa.array([[1, 2], None]), "file_bytes": pa.array([2**64 - 1, 5], pa.uint64()),
    })  # fmt: skip
    facts = Facts(table.to_batches(), table.column_names)
    assert list(facts.rows("SELECT source_field, file_bytes FROM ok")) == [("[1, 2]", str(2**64 - 1)), (None, "5")]


def test_tenths_are_those_of_pandas() -> None:
    lengths = np.random.default_rng(1).integers(900, 4000, 2000)
    frame = pd.DataFrame({
        "width": 9, "height": 9, "mode": "RGB", "dataset": "d", "file_bytes": lengths,
        "label": np.where(lengths % 7 < 3, "a", np.where(lengths > 3000, "b", "c")),
    })  # fmt: skip
    found = next(g for g in _give_aways(frame) if g.what == "file length")
    bins = pd.qcut(frame["file_bytes"].astype(float), 10)
    shares = pd.crosstab(bins, frame["label"])
    for value, n, label, share, _ in found.examples:
        left = float(value.split(" to ")[0].replace(",", ""))
        row = shares.loc[next(b for b in shares.index if abs(b.left - left) <= 1)]
        assert (row.sum(), row.idxmax(), row.max() / row.sum()) == (n, label, share)
    assert len(found.examples) > 2


@pytest.mark.shared
def test_the_size_leak_of_acevedo_is_found(pack: Path, tmp_path) -> None:
    build_table(pack / "acevedo_pbc", tmp_path / "c.parquet", layout="acevedo", near_duplicates=False)
    found = {g.what: g for g in audit_cells(tmp_path / "c.parquet").give_aways}
    assert [value[:3] for value in found["image size"].telling] == [("360 x 360", 47, "ig")]
    assert found["image size"].serious


def test_the_page_of_the_bundle_is_self_contained(tmp_path) -> None:
    build_cells(bundled_path(), tmp_path / "cells.parquet")
    write_page(audit_cells(tmp_path / "cells.parquet"), tmp_path / "cells.parquet", tmp_path / "cells.html")
    page = (tmp_path / "cells.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") >= 11
    for mark in ("<script", 'src="http', "<link", "@import", "url("):
        assert mark not in page
    assert "Research use only" in page
    assert len(page) < 2_000_000


def test_a_foreign_file_is_refused_in_one_sentence(tmp_path) -> None:
    (tmp_path / "x.parquet").write_bytes(bundled_path().read_bytes())
    with pytest.raises(CytosaeError, match="a foreign parquet file"):
        audit_cells(tmp_path / "x.parquet")
