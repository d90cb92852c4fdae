"""A table of cells is whole, the same every time, made in little memory, and never silently short."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cytosae._errors import CytosaeError
from cytosae.cells import build_cells, build_table, bundled_path, decode_image, read_cells
from cytosae.cli._main import run

Tree = Callable[[dict[str, bytes]], Path]

_RUN = "import sys; from cytosae.cells import build_table; build_table(sys.argv[1], sys.argv[2])"
_PEAK = (
    _RUN + "; from cytosae.cells import audit_cells; audit_cells(sys.argv[2])"
    "; print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
)


def _child(code: str, *arguments: object, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_the_bundled_cells_give_the_same_bytes_every_time(tmp_path) -> None:
    first = build_table(bundled_path(), tmp_path / "a.parquet").path.read_bytes()
    assert build_table(bundled_path(), tmp_path / "b.parquet").path.read_bytes() == first
    cells = read_cells(tmp_path / "a.parquet")
    assert len(cells) == 1171
    assert cells.n_quarantined == 0
    assert (cells.frame["near_duplicate_group"] == cells.frame["cell_id"]).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def _manifest(tree: Tree, real: list[bytes], n: int) -> Path:
    root = tree({f"img/{i}.jpg": real[i] for i in range(8)} | {"img/cut.jpg": real[8][:900]})
    rows = (f"img/{'cut' if i % 1000 == 7 else i % 8}.jpg,c{i % 5},P{i % 40}\n" for i in range(n))
    with (root / "m.csv").open("w") as file:
        file.write("image,label,patient\n")
        file.writelines(rows)
    return root / "m.csv"


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tree: Tree, real, tmp_path) -> None:
    source = _manifest(tree, real, 12_000)
    whole = build_table(source, tmp_path / "whole.parquet").path.read_bytes()
    out, kills = tmp_path / "killed" / "cells.parquet", 0
    for n_parts in (2, 5):
        child = _child(_RUN, source, out)
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("killed/.cells.parquet.*/part-*.parquet"))) < n_parts and time.monotonic() < until:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
    assert kills == 2
    assert not out.exists()
    parts = sorted(tmp_path.glob("killed/.cells.parquet.*/part-*.parquet"))
    kept = {p.name: p.stat().st_mtime_ns for p in parts}
    assert len(kept) >= 5
    build_table(source, out)
    assert out.read_bytes() == whole
    assert [p.name for p in out.parent.iterdir()] == ["cells.parquet"]


def test_a_run_killed_while_it_looks_for_duplicates_ends_in_the_same_bytes(tree: Tree, real, tmp_path) -> None:
    root = tree({f"a/{i}.jpg": real[i % 9] for i in range(12)})
    child = _child("import os, sys; from cytosae.cells import _build, _same; "
                   "_same.near_duplicate_groups = lambda *a: os.kill(os.getpid(), 9); "
                   "_build.build_table(sys.argv[1], sys.argv[2])", root, tmp_path / "c.parquet")  # fmt: skip
    assert child.wait() == -signal.SIGKILL
    assert {"first.bin", "thumbs.bin"} <= {p.name for p in tmp_path.glob(".c.parquet.*/*")}
    build_table(root, tmp_path / "c.parquet")
    assert (tmp_path / "c.parquet").read_bytes() == build_table(root, tmp_path / "d.parquet").path.read_bytes()
    assert not list(tmp_path.glob(".c.parquet.*"))


def test_a_source_that_changed_meanwhile_is_not_resumed(tree: Tree, real, tmp_path) -> None:
    root = tree({f"a/{i}.jpg": real[i] for i in range(4)})
    child = _child("import sys; from cytosae.cells import _build; _build._number_groups = lambda *a: sys.exit(9); "
                   "_build.build_table(sys.argv[1], sys.argv[2])", root, tmp_path / "c.parquet")  # fmt: skip
    assert child.wait() == 9
    assert list(tmp_path.glob(".c.parquet.*"))
    (root / "a" / "0.jpg").write_bytes(real[9])
    cells = build_cells(root, tmp_path / "c.parquet")
    assert cells.frame["file_bytes"][0] == len(real[9])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_files(tree: Tree, pixels, encode, tmp_path) -> None:
    """Buffers are full by 10,000 rows, and one arena keeps what threads free in one place; rows held would add a fifth."""
    small = [encode(p[:48, :48], "PNG") for p in pixels[:9]]

    def peak(n: int, manifest: Path, run: int) -> float:
        child = _child(_PEAK, manifest, tmp_path / f"{n}-{run}.parquet", MALLOC_ARENA_MAX="1")
        kib = int(child.communicate()[0])
        assert child.returncode == 0
        return kib / 1024

    few = peak(10_000, _manifest(tree, small, 10_000), 0)
    manifest, many = _manifest(tree, small, 42_000), []
    while len(many) < 3 and (not many or min(many) > 1.05 * few):
        many.append(peak(42_000, manifest, len(many)))
    assert min(many) <= 1.05 * few, f"{few}, {many} MB: rows, names, hashes or images are being held"


def test_quarantined_cells_stay_in_the_table_with_their_reason(tree: Tree, real, tmp_path, capfd) -> None:
    files = {f"a/{i}.jpg": real[i] for i in range(5)} | {
        "a/cut.jpg": real[5][:-60],
        "a/empty.jpg": b"",
        "a/t.jpg": b"text",
    }
    root = tree(files)
    assert run(["cells", str(root), "--out", str(tmp_path / "cells.parquet"), "--quiet"]) == 0
    cells = read_cells(tmp_path / "cells.parquet")
    assert (len(cells), cells.n_quarantined) == (8, 3)
    assert cells.frame["reason"].notna().sum() == 3
    printed = capfd.readouterr().out
    assert printed.count("\n") == 1
    assert "8 cells, 1 labels; 3 quarantined (the first: a/cut.jpg" in printed
    assert run(["cells", str(root), "--out", str(tmp_path / "d.parquet"), "--on-error", "fail", "--quiet"]) == 1
    assert "a/cut.jpg: cannot be decoded whole" in capfd.readouterr().err
    assert not (tmp_path / "d.parquet").exists()


HOSTILE = {
    "web": (b"image,label\nhttps://example.org/a.jpg,x\n", "web address"),
    "s3": (b"image,label\na.jpg,x\ns3://bucket/a.jpg,x\n", "web address"),
    "latin": ("image,label\na.jpg,Lymphozyt \xe4\n".encode("latin-1"), "not UTF-8"),
    "utf16": ("image,label\na.jpg,x\n".encode("utf-16"), "not UTF-8"),
    "late latin": (b"image,label\n" + b"a.jpg,x\n" * 20000 + b"a.jpg,\xe4\n", "not UTF-8"),
    "twice": (b"image,label,label\na.jpg,x,y\n", "'label' twice"),
    "none": (b"picture,label\na.jpg,x\n", "no column 'image'"),
    "ragged": (b"image,label\na.jpg,x\nb.jpg,x,y\n", "data row 2"),
    "blank": (b"image,label\na.jpg,x\n ,y\n", "no image path in data row 2"),
    "no rows": (b"image,label\n", "no rows"),
    "empty": (b"", "no rows"),
    "binary": (b"\x00\x01\x02" * 50, "not UTF-8"),
    "scale": (b"image,um_per_px\na.jpg,-3\n", "um_per_px '-3'"),
    "missing": (b"image,label\ngone.jpg,x\n", "None of the 1 images"),
    "cell too long": (b"image,label\na.jpg," + b"x" * 200_000 + b"\n", "cannot be read as a table"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_gets_one_sentence(tree: Tree, real, tmp_path, capfd, name) -> None:
    data, message = HOSTILE[name]
    root = tree({"a.jpg": real[0], "m.csv": data})
    assert run(["cells", str(root / "m.csv"), "--out", str(tmp_path / "c.parquet"), "--quiet"]) == 1
    error = capfd.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0
    assert "Traceback" not in error
    assert not (tmp_path / "c.parquet").exists()


def test_a_million_rows_of_missing_files_stop_early(tree: Tree, tmp_path) -> None:
    root = tree({"x.txt": b""})
    with (root / "m.csv").open("w") as file:
        file.write("image,label\n")
        file.writelines(f"cells/{i}.jpg,x\n" for i in range(1_000_000))
    with pytest.raises(CytosaeError, match="None of the first 2,048 images"):
        build_table(root / "m.csv", tmp_path / "c.parquet")


def test_formula_cells_stay_text_and_never_reach_the_page_as_markup(tree: Tree, real, tmp_path, capfd) -> None:
    rows = 'image,label,patient\n0.jpg,"=HYPERLINK(""http://x"")",P1\n1.jpg,<script>alert(1)</script>,-5\n'
    root = tree({"0.jpg": real[0], "1.jpg": real[1], "m.csv": rows.encode()})
    assert run(["cells", str(root / "m.csv"), "--out", str(tmp_path / "cells.parquet")]) == 0
    assert "1 values of m.csv look like spreadsheet formulas" in capfd.readouterr().out
    assert read_cells(tmp_path / "cells.parquet").frame["label"][0] == '=HYPERLINK("http://x")'
    page = (tmp_path / "cells.html").read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "Research use only" in page


def test_a_whole_disk_or_missing_folder_is_said_not_dumped(tree: Tree, real, tmp_path, capfd) -> None:
    root = tree({"a/1.jpg": real[0]})
    (tmp_path / "file").write_text("x")
    assert run(["cells", str(root), "--out", str(tmp_path / "file" / "c.parquet"), "--quiet"]) == 1
    assert "choose another --out" in capfd.readouterr().err
    assert run(["cells", str(tmp_path / "nowhere"), "--out", str(tmp_path / "c.parquet")]) == 1
    assert run(["cells", str(root), "--layout", "mll32", "--out", str(tmp_path / "c.parquet")]) == 2
    assert "did you mean 'mll23'" in capfd.readouterr().err


@pytest.mark.shared
@pytest.mark.parametrize(("name", "n"), [
    ("acevedo_pbc", 2400), ("bmc_marrow", 980), ("bccd", 1431), ("chula_wbc", 508), ("tecom_wbc", 300), ("aslan_bcd", 402),
])  # fmt: skip
def test_all_cells_of_the_pack_go_through(pack: Path, tmp_path, name, n) -> None:
    built = build_table(pack / name / "manifest.csv", tmp_path / "c.parquet", near_duplicates=False)
    assert (built.n_cells, built.n_quarantined) == (n, 0)


@pytest.mark.shared
def test_the_corpus_and_the_awkward_files_go_through(pack: Path, tmp_path) -> None:
    built = build_table(pack / "corpus", tmp_path / "c.parquet", near_duplicates=False)
    assert (built.n_cells, built.n_quarantined) == (9600, 0)
    frame = read_cells(built.path).frame
    assert frame["dataset"].value_counts().to_dict() == {"acevedo": 7400, "marrow": 2200}
    hard = build_table(pack / "hard", tmp_path / "h.parquet")
    assert (hard.n_cells, hard.n_quarantined) == (37, 6)
    assert hard.passed_over["hidden"] == 1


def test_pixels_are_what_the_table_says(tmp_path) -> None:
    from cytosae.cells import ImageReader

    cells = build_cells(bundled_path(), tmp_path / "c.parquet", near_duplicates=False)
    reader = ImageReader(cells.root)
    for row in cells.frame.head(20).itertuples():
        found = decode_image(reader.read(row.image, row.sha256))
        assert found.pixels.shape == (row.height, row.width, 3)
        assert (found.mode, found.header) == (row.mode, row.file_header)
