"""The pass survives what happens to long work: kills, damaged files, several sources, other semantics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cytosae import CytosaeError, SparseAutoencoder, extract_tokens, index_concepts
from cytosae.cells import Cells, merge_cells
from cytosae.concepts import _pass as the_pass
from cytosae.concepts import merge_indices, merged_sources, read_cells_by_concepts
from cytosae.concepts._native import NativeEncoder
from cytosae.sae.ops.native import native_library
from cytosae.storage import read_parquet_record
from cytosae.tokens import TokenStore
from stand_in import PatchColours


@pytest.fixture
def store(few_cells: Cells, tmp_path: Path) -> TokenStore:
    return extract_tokens(few_cells, PatchColours(), tmp_path / "t", store="float32")  # type: ignore[arg-type]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(the_pass, "SHARD", 4)
    monkeypatch.setattr(the_pass, "CHUNK", 4)


@pytest.mark.skipif(native_library() is None, reason="no compiler, or neither VNNI nor AVX2, here")
@pytest.mark.parametrize("kind", ["relu", "threshold", "topk"])
def test_the_compiled_path_gives_the_same_bytes_however_cells_are_cut_and_after_a_stop(
    few_cells: Cells, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    g = torch.Generator().manual_seed(0)
    x = store.read(np.arange(12), kind="patch").float().flatten(0, 1)
    W, mean = torch.nn.functional.normalize(torch.randn(400, 8, generator=g), dim=1), x.mean(0)
    level = torch.quantile((x - mean) @ W.T, 0.95, dim=0)
    bias = -level if kind != "threshold" else torch.zeros(400)
    sae = SparseAutoencoder(
        W.T.contiguous(), bias, W, mean, kind, level if kind == "threshold" else None, k=5, hash="n"
    )
    monkeypatch.setattr(the_pass, "choose_encoder", lambda sae, *_: NativeEncoder(sae))
    found, finish = [], the_pass._Work._finish
    for chunk, shard in ((4, 4), (3, 6), (16, 256)):
        monkeypatch.setattr(the_pass, "CHUNK", chunk)
        monkeypatch.setattr(the_pass, "SHARD", shard)
        found.append(index_concepts(few_cells, sae, tmp_path / f"i{chunk}", store=store, cells_matrix=True))

    def stop_at_second(self, shards, number, *rest):  # type: ignore[no-untyped-def]
        if number == 1:
            raise StopError
        finish(self, shards, number, *rest)

    monkeypatch.setattr(the_pass, "CHUNK", 4)
    monkeypatch.setattr(the_pass, "SHARD", 4)
    with monkeypatch.context() as patch:
        patch.setattr(the_pass._Work, "_finish", stop_at_second)
        with pytest.raises(StopError):
            index_concepts(few_cells, sae, tmp_path / "stopped", store=store, cells_matrix=True)
    found.append(index_concepts(few_cells, sae, tmp_path / "stopped", store=store, cells_matrix=True))
    assert found[0].manifest["encode"]["path"] == NativeEncoder.path
    assert found[0].manifest["encode"]["n_codes"] == int((sae.encode(x) > 0).sum())
    assert found[-1].manifest["encode"] == found[0].manifest["encode"], "the counts of a run that was stopped"
    for name in ("concepts.parquet", "exemplars.parquet", "groups.parquet", "statistics.safetensors"):
        assert len({i.manifest["files"][name]["sha256"] for i in found}) == 1, name


class StopError(Exception):
    pass


@pytest.mark.usefixtures("small_shards")
def test_stopped_work_goes_on_and_gives_the_same_bytes(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = index_concepts(few_cells, colours, tmp_path / "a", store=store, cells_matrix=True)
    finish, done = the_pass._Work._finish, []

    def once(self, shards, number, *rest):  # type: ignore[no-untyped-def]
        if number == 1 and not done:
            done.append(number)
            raise StopError
        finish(self, shards, number, *rest)

    monkeypatch.setattr(the_pass._Work, "_finish", once)
    with pytest.raises(StopError):
        index_concepts(few_cells, colours, tmp_path / "b", store=store, cells_matrix=True)
    assert not (tmp_path / "b").exists()
    again = index_concepts(few_cells, colours, tmp_path / "b", store=store, cells_matrix=True)
    for name in ("concepts.parquet", "exemplars.parquet", "groups.parquet", "statistics.safetensors"):
        assert again.manifest["files"][name] == wanted.manifest["files"][name], name
    assert again.manifest["encode"] == wanted.manifest["encode"]
    x, y = read_cells_by_concepts(tmp_path / "a"), read_cells_by_concepts(tmp_path / "b")
    assert (x.maximum != y.maximum).nnz == 0
    assert not list((tmp_path / "b").glob(".*")), "nothing of the work is left in the artifact"


@pytest.mark.usefixtures("small_shards")
def test_a_damaged_shard_is_found_by_its_hash_and_made_again(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    wanted = index_concepts(few_cells, colours, tmp_path / "a", store=store)

    def stop(*_: object) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(the_pass, "tables", stop)
        with pytest.raises(StopError):
            index_concepts(few_cells, colours, tmp_path / "b", store=store)
    shard = next(tmp_path.glob(".b.*.partial/.shards/00001.safetensors"))
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    made: list[int] = []
    finish = the_pass._Work._finish
    monkeypatch.setattr(the_pass._Work, "_finish", lambda s, sh, n, *r: (made.append(n), finish(s, sh, n, *r))[1])
    again = index_concepts(few_cells, colours, tmp_path / "b", store=store)
    assert made == [1], "only the damaged one"
    assert again.manifest["files"] == wanted.manifest["files"]


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from cytosae.concepts import _pass as p
from cytosae import index_concepts
from cytosae.cells import read_cells
from cytosae.tokens import TokenStore
import torch
from cytosae import SparseAutoencoder
p.SHARD = p.CHUNK = 4
finish = p._Work._finish
def slow(self, *rest):
    finish(self, *rest)
    print("shard", flush=True)
    time.sleep(30)
p._Work._finish = slow
W = torch.zeros(8, 3); W[0, 0] = W[1, 1] = W[2, 2] = 1
sae = SparseAutoencoder(W, torch.full((3,), -0.5), W.T.contiguous(), torch.zeros(8), hash="colours")
torch.set_num_threads({threads})
index_concepts(read_cells({cells!r}), sae, {out!r}, store=TokenStore({tokens!r}))
"""


@pytest.mark.usefixtures("small_shards")
def test_a_killed_process_loses_one_shard_at_most(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = KILLED.format(tests=str(Path(__file__).parents[1]), cells=str(tmp_path / "cells.parquet"),
                         out=str(tmp_path / "k"), tokens=str(tmp_path / "t"), threads=torch.get_num_threads())  # fmt: skip
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ.copy())
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "shard"
    child.send_signal(signal.SIGKILL)
    child.wait()
    made: list[int] = []
    finish = the_pass._Work._finish
    monkeypatch.setattr(the_pass._Work, "_finish", lambda s, sh, n, *r: (made.append(n), finish(s, sh, n, *r))[1])
    index = index_concepts(few_cells, colours, tmp_path / "k", store=store)
    assert made == [1, 2]
    assert index.n_cells == 12
    assert index.manifest["files"] == index_concepts(few_cells, colours, tmp_path / "w", store=store).manifest["files"]


def test_a_shard_of_tokens_that_changed_is_refused_by_name(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    path = tmp_path / "t" / "tokens-00000.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)  # after the store was opened: as with a shard too large to be hashed on opening
    with pytest.raises(CytosaeError, match=r"tokens-00000\.bin has changed"):
        index_concepts(few_cells, colours, tmp_path / "i", store=store)


@pytest.mark.parametrize("pooling", ["max", "mean", "patch_share"])
def test_cells_by_concepts_are_the_same_whichever_pooling_is_x(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path, pooling: str
) -> None:
    import anndata

    index_concepts(few_cells, colours, tmp_path / "i", store=store, cells_matrix=pooling)
    codes = colours.encode(store.read(np.arange(12), kind="patch").float()).numpy()
    wanted = {"max": codes.max(1), "mean": codes.mean(1), "patch_share": (codes > 0).mean(1)}
    data = anndata.read_h5ad(tmp_path / "i" / "cells.h5ad")
    assert np.allclose(data.X.toarray(), wanted[pooling], atol=1e-6)
    assert set(data.layers) == set(wanted) - {pooling}
    found = read_cells_by_concepts(tmp_path / "i")
    assert np.allclose(found.maximum.toarray(), wanted["max"])
    assert np.allclose(found.mean.toarray(), wanted["mean"], atol=1e-6)


def test_several_data_sets_come_into_one_index_from_their_own_token_stores(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    from cytosae.cells import read_cells, write_cells

    frame = few_cells.frame.assign(dataset="blood")
    other = few_cells.frame.iloc[:5].assign(dataset="marrow", cell_id=range(3, 8))
    tables, stores = {}, []
    for name, part in (("blood", frame), ("marrow", other)):
        write_cells(tmp_path / f"{name}.parquet", part, root=few_cells.root, inputs={}, config={})
        tables[name] = read_cells(tmp_path / f"{name}.parquet")
        stores.append(extract_tokens(tables[name], PatchColours(), tmp_path / f"tok-{name}", store="float32"))  # type: ignore[arg-type]
    both = merge_cells([tmp_path / "blood.parquet", tmp_path / "marrow.parquet"], tmp_path / "both.parquet")
    sources = {t.hash: name for name, t in tables.items()}
    index = index_concepts(both, colours, tmp_path / "i", store=stores, sources=sources)
    whole = colours.encode(store.read(np.r_[np.arange(12), np.arange(5)], kind="patch").float()).numpy()
    assert list(index.concepts["n_cells_active"]) == list((whole > 0).any(1).sum(0))
    sets = index.groups[index.groups["grouping"] == "dataset"].drop_duplicates("group").set_index("group")["n_cells"]
    assert sets.to_dict() == {"blood": 12, "marrow": 5}
    with pytest.raises(CytosaeError, match="None of the token stores"):
        index_concepts(both, colours, tmp_path / "j", store=stores[:1], sources=sources)
    assert merged_sources(read_parquet_record(tmp_path / "both.parquet")) == sources
    # tokens of a merged table, merged once more
    of_both = extract_tokens(both, PatchColours(), tmp_path / "tok-both", store="float32")  # type: ignore[arg-type]
    write_cells(tmp_path / "new.parquet", frame.iloc[2:4], root=few_cells.root, inputs={}, config={})
    new = extract_tokens(read_cells(tmp_path / "new.parquet"), PatchColours(), tmp_path / "tok-new", store="float32")  # type: ignore[arg-type]
    again = merge_cells([tmp_path / "new.parquet", tmp_path / "both.parquet"], tmp_path / "again.parquet")
    known = merged_sources(read_parquet_record(tmp_path / "again.parquet"))
    assert sorted(map(str, known.values())) == ["new", "range(2, 19)"]
    found = index_concepts(again, colours, tmp_path / "k", store=[of_both, new], sources=known)
    twice = (whole > 0).any(1)
    assert list(found.concepts["n_cells_active"]) == list(twice.sum(0) + twice[2:4].sum(0))


def test_a_merged_table_with_a_column_source_of_its_own_finds_its_tokens(
    few_cells: Cells, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    from cytosae.cells import read_cells, write_cells

    stores = []
    for name, part in (
        ("blood", few_cells.frame),
        ("crops", few_cells.frame.iloc[:5].assign(source=[f"repository, field {i}" for i in range(5)])),
    ):
        write_cells(tmp_path / f"{name}.parquet", part, root=few_cells.root, inputs={}, config={})
        table = read_cells(tmp_path / f"{name}.parquet")
        stores.append(extract_tokens(table, PatchColours(), tmp_path / f"tok-{name}", store="float32"))  # type: ignore[arg-type]
    both = merge_cells([tmp_path / "blood.parquet", tmp_path / "crops.parquet"], tmp_path / "both.parquet")
    assert both.frame["source"].iloc[-1] == "repository, field 4"
    known = merged_sources(read_parquet_record(tmp_path / "both.parquet"))
    assert sorted(map(str, known.values())) == ["blood", "range(12, 17)"]
    found = index_concepts(both, colours, tmp_path / "i", store=stores, sources=known)
    codes = colours.encode(stores[0].read(np.r_[np.arange(12), np.arange(5)], kind="patch").float()).numpy()
    assert list(found.concepts["n_cells_active"]) == list((codes > 0).any(1).sum(0))


def test_indices_of_parts_merge_to_the_index_of_the_whole(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    whole = index_concepts(few_cells, colours, tmp_path / "w", store=store)
    ids = [",".join(map(str, part)) for part in (range(5), range(5, 12))]
    parts = [index_concepts(few_cells, colours, tmp_path / f"p{i}", store=store, where=[f"cell_id={ids[i]}"]) for i in (0, 1)]  # fmt: skip
    merged = merge_indices(parts, few_cells, tmp_path / "m")
    for name in ("concepts.parquet", "exemplars.parquet", "labels.parquet", "groups.parquet", "statistics.safetensors"):
        if name.endswith(".parquet"):
            a, b = (getattr(i, name.split(".")[0]) for i in (whole, merged))
            assert a.equals(b), name
        else:
            assert whole.manifest["files"][name]["sha256"] == merged.manifest["files"][name]["sha256"]
    assert merged.n_cells == 12
    with pytest.raises(CytosaeError, match="share cells"):
        merge_indices([whole, parts[0]], few_cells, tmp_path / "x")


@pytest.mark.parametrize(
    ("what", "value"), [("sae", "other"), ("precision", "bfloat16"), ("backbone", {"name": "b"}), ("preprocessing", {"side": 9})]
)  # fmt: skip
def test_indices_of_different_things_refuse_to_merge_and_say_what_differs(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path, what: str, value: object
) -> None:
    a = index_concepts(few_cells, colours, tmp_path / "a", store=store, where=["cell_id=1"])
    b = index_concepts(few_cells, colours, tmp_path / "b", store=store, where=["cell_id=2"])
    target = b.manifest.data["inputs"] if what == "sae" else b.manifest.data
    target[what] = value
    with pytest.raises(CytosaeError, match=f"differ in .*{what}"):
        merge_indices([a, b], few_cells, tmp_path / "m")


def test_quarantined_cells_are_in_no_count_and_their_number_is_told(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    frame = few_cells.frame.copy()
    frame.loc[[2, 9], "status"] = "quarantined"
    index = index_concepts(Cells(frame, few_cells.root, "q"), colours, tmp_path / "i", store=store)
    assert index.n_cells == 10
    assert index.manifest["n_quarantined"] == 2
    assert json.loads((tmp_path / "i" / "manifest.json").read_text())["n_tokens"] == 160
    assert not {2, 9} & set(index.exemplars["cell_id"])
