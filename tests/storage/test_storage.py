from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from cytosae import CytosaeError
from cytosae.storage import (
    commit_file,
    commit_folder,
    read_manifest,
    read_table,
    same_work,
    working_folder,
    write_table,
)


def make(target: Path, text: str = "one", **config: str) -> None:
    with commit_folder(target, kind="thing", version=1, inputs={}, config=dict(config)) as (folder, extra):
        (folder / "a.txt").write_text(text)
        extra["note"] = text


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), commit_file(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_failed_folder_leaves_the_old_artifact(tmp_path: Path) -> None:
    make(tmp_path / "a", "old")
    with (
        pytest.raises(ZeroDivisionError),
        commit_folder(tmp_path / "a", kind="thing", version=1, inputs={}, config={}) as (folder, _),
    ):
        (folder / "a.txt").write_text("half")
        raise ZeroDivisionError
    assert read_manifest(tmp_path / "a", "thing", 1)["note"] == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a.txt").write_text("two"), "has changed"),
        (lambda f: (f / "a.txt").write_text("longer than before"), "missing or cut short"),
        (lambda f: (f / "a.txt").unlink(), "missing or cut short"),
        (lambda f: (f / "manifest.json").unlink(), "no readable manifest"),
        (lambda f: (f / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "manifest.json").write_text('{"kind": "other"}'), "but a thing is wanted"),
        (lambda f: (f / "manifest.json").write_text('{"kind": "thing", "version": 9}'), "update cytosae"),
        (
            lambda f: (f / "manifest.json").write_text(
                json.dumps({"kind": "thing", "version": 1, "files": {"../x": {"sha256": "", "bytes": 0}}})
            ),
            "outside its folder",
        ),
    ],
)
def test_damage_is_found_on_reading(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(CytosaeError, match=message):
        read_manifest(tmp_path / "a", "thing", 1)


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    with pytest.raises(CytosaeError, match="choose another --out"):
        make(tmp_path / "a")
    assert (tmp_path / "a" / "thesis.txt").read_text() == "years of work"


def test_nothing_but_an_artifact_of_its_kind_is_replaced_and_that_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_text("mine")
    with commit_folder(tmp_path / "tokens", kind="tokens", version=1, inputs={}, config={}) as (folder, _):
        (folder / "a").write_text("hours of work")
    for name, text in (("program", '{"name": "of another program"}'), ("list", "[]"), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    before = sorted(os.listdir(tmp_path))
    for name, words in (("image.png", "is a file"), ("tokens", "the kind 'tokens', not 'thing'"), ("program", "another program"),
                        ("list", "another program"), ("broken", "another program")):  # fmt: skip
        for resume in (False, True):
            with pytest.raises(CytosaeError, match=words), commit_folder(
                tmp_path / name, kind="thing", version=1, inputs={}, config={}, resume=resume
            ):  # fmt: skip
                raise AssertionError("the work began")
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "image.png").read_text() == "mine"
    assert (tmp_path / "tokens" / "a").read_text() == "hours of work"


def test_what_came_to_the_place_while_the_work_went_on_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(CytosaeError, match="is a file"),
        commit_folder(tmp_path / "a", kind="thing", version=1, inputs={}, config={}) as (folder, _),
    ):
        (folder / "a.txt").write_text("new")
        (tmp_path / "a").write_text("mine")
    assert (tmp_path / "a").read_text() == "mine"


def test_a_resumable_work_that_finished_nothing_leaves_no_folder(tmp_path: Path) -> None:
    for finished in (False, True):
        with (
            pytest.raises(ZeroDivisionError),
            commit_folder(tmp_path / "a", kind="thing", version=1, inputs={}, config={}, resume=True) as (folder, _),
        ):
            if finished:
                (folder / "part").write_text("one")
            raise ZeroDivisionError
        assert bool(os.listdir(tmp_path)) == finished


def test_only_a_table_of_the_same_kind_is_replaced(tmp_path: Path) -> None:
    table = pa.table({"a": [1]})
    write_table(tmp_path / "t.parquet", table, kind="one", version=1)
    write_table(tmp_path / "t.parquet", table, kind="one", version=1)
    (tmp_path / "text").write_text("mine")
    for name, kind, words in (("t.parquet", "two", "the kind 'one'"), ("text", "one", "another file")):
        with pytest.raises(CytosaeError, match=words):
            write_table(tmp_path / name, table, kind=kind, version=1)
    assert (tmp_path / "text").read_text() == "mine"


def test_a_manifest_without_what_is_asked_of_it_gets_one_sentence(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(CytosaeError, match=r"manifest\.json lacks 'grid'; make the thing again"):
        read_manifest(tmp_path / "a", "thing", 1)["grid"]
    content = json.loads((tmp_path / "a" / "manifest.json").read_text())
    del content["files"]
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CytosaeError, match="lacks the list of its files"):
        read_manifest(tmp_path / "a", "thing", 1)


def test_another_configuration_is_other_work(tmp_path: Path) -> None:
    make(tmp_path / "a", recipe="x")
    assert same_work(tmp_path / "a", "thing", {}, {"recipe": "x"})
    assert not same_work(tmp_path / "a", "thing", {}, {"recipe": "y"})


def test_checkpoints_do_not_end_up_in_the_artifact(tmp_path: Path) -> None:
    with commit_folder(tmp_path / "a", kind="thing", version=1, inputs={}, config={}, resume=True) as (folder, _):
        (folder / ".checkpoints").mkdir()
        (folder / ".checkpoints" / "x").write_text("x")
        (folder / "a.txt").write_text("a")
    assert sorted(os.listdir(tmp_path / "a")) == ["a.txt", "manifest.json"]


def test_a_killed_writer_leaves_its_work_and_no_artifact(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cytosae.storage import commit_folder\n"
        "with commit_folder(Path(sys.argv[1]), kind='thing', version=1, inputs={}, config={}, resume=True) as (f, e):\n"
        "    (f / 'a.txt').write_text('done'); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a").exists()
    folder = working_folder(tmp_path / "a", kind="thing", inputs={}, config={})
    assert (folder / "a.txt").read_text() == "done"


def test_a_place_that_cannot_be_written_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CytosaeError, match="choose another --out"),
        commit_file(tmp_path / "file" / "x.txt") as temporary,
    ):
        temporary.write_text("x")


def test_a_full_disk_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CytosaeError, match="disk is full"), commit_file(tmp_path / "x"), open("/dev/full", "w") as full:
        full.write("x" * 100_000)
    assert os.listdir(tmp_path) == []


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", pa.table({"a": [1]}), kind="cells", version=1)
    assert read_table(tmp_path / "t.parquet", "cells", 1)[0].to_pydict() == {"a": [1]}
    with pytest.raises(CytosaeError, match="exemplars is wanted"):
        read_table(tmp_path / "t.parquet", "exemplars", 1)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(CytosaeError, match="cannot be read as parquet"):
        read_table(tmp_path / "t.parquet", "cells", 1)
