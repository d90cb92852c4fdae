"""The order in which training reads tokens, from memory and from disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytosae import CytosaeError, TokenStore
from cytosae.storage import commit_folder, write_table
from cytosae.tokens import TokenOrder, TokenStream, sample_patches

MakeStore = Callable[..., TokenStore]
D = 4


@pytest.fixture
def make(tmp_path: Path) -> MakeStore:
    return store_maker(tmp_path)


def store_maker(folder: Path) -> MakeStore:
    """A store whose token of cell c and patch p is [c, p, ...], -1 for the class token; shards of 16 cells."""
    number = iter(range(1000))

    def build(n_cells: int = 75, n_patches: int = 16, sampled: int | None = None, dtype: str = "float32") -> TokenStore:
        ids = np.arange(n_cells) * 3 + 5
        patches = sample_patches(ids, n_patches, sampled or n_patches, 0).astype(int)
        values = np.zeros((n_cells, 1 + patches.shape[1], D), "<f4")
        values[..., 0], values[:, 0, 1], values[:, 1:, 1] = np.arange(n_cells)[:, None], -1, patches
        if dtype == "bfloat16":
            stored = torch.from_numpy(values).bfloat16().view(torch.int16).numpy()
        else:
            stored = values.astype(dtype)
        target = folder / f"s{next(number)}"
        with commit_folder(target, kind="tokens", version=2 if sampled else 1, inputs={}, config={}) as (work, extra):
            for i, start in enumerate(range(0, n_cells, 16)):
                stored[start : start + 16].tofile(work / f"tokens-{i:05d}.bin")
            table = {"cell_id": pa.array(ids)}
            if sampled:
                table["patches"] = pa.FixedSizeListArray.from_arrays(pa.array(patches.ravel(), pa.uint16()), sampled)
            write_table(work / "rows.parquet", pa.table(table), kind="token rows", version=1, atomic=False)
            extra |= {"n_rows": n_cells, "n_tokens": 1 + patches.shape[1], "n_prefix": 1, "d_in": D, "dtype": dtype,
                      "token_kinds": ["class"] + ["patch"] * patches.shape[1], "grid": [4, n_patches // 4]}  # fmt: skip
        return TokenStore(target)

    return build


def names(tokens: torch.Tensor) -> list[tuple[int, int]]:
    return [(int(c), int(p)) for c, p in tokens[:, :2].float()]


def small(stream: TokenStream) -> int:
    """A memory limit of a third of the stream's tokens."""
    return stream.n_tokens * D * stream.dtype.itemsize // 3


def test_in_memory_the_order_is_the_permutation_training_has_always_used(make: MakeStore) -> None:
    store, rows = make(), np.arange(75)
    kept = np.random.default_rng(0).random((75, 16)) < 0.4
    stream = TokenStream(store, rows, kept, 32, seed=3)
    old = store.read(rows, kind="patch").flatten(0, 1)[torch.from_numpy(kept.ravel())]
    order = TokenOrder(len(old), 32, 3)
    assert stream.order == "permutation"
    assert (stream.n_tokens, stream.n_steps_per_epoch) == (len(old), order.steps_per_epoch)
    for step in (0, 5, stream.n_steps_per_epoch + 1):
        assert torch.equal(stream.at(step), old[torch.from_numpy(order.at(step))])


@settings(max_examples=30, deadline=None)
@given(
    n_cells=st.integers(1, 90),
    share=st.floats(0.05, 1),
    batch=st.integers(1, 400),
    seed=st.integers(0, 9),
    cut=st.integers(2, 40),
)
def test_every_kept_token_comes_once_an_epoch_from_disk_too(
    tmp_path_factory: pytest.TempPathFactory, n_cells: int, share: float, batch: int, seed: int, cut: int
) -> None:
    store = store_maker(tmp_path_factory.mktemp("s"))(90)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(90, n_cells, replace=False))
    kept = rng.random((n_cells, 16)) < share
    kept[0, 0] = True
    with TokenStream(store, rows, kept, batch, seed, memory_limit=int(kept.sum()) * D * 4 // cut) as stream:
        assert stream.order == "blocks"
        wanted = {(int(rows[c]), int(p)) for c, p in zip(*np.nonzero(kept), strict=True)}
        for epoch in range(2):
            first = epoch * stream.n_steps_per_epoch
            seen = names(torch.cat([stream.at(first + s) for s in range(stream.n_steps_per_epoch)]))
            assert len(seen) == len(set(seen)) == stream.n_steps_per_epoch * stream.batch
            assert set(seen) <= wanted
            assert len(wanted) - len(seen) < stream.batch


def test_a_resumed_training_sees_what_it_would_have_seen(make: MakeStore) -> None:
    store, rows = make(), np.arange(75)
    limit = small(TokenStream(store, rows, None, 50, 1))
    with TokenStream(store, rows, None, 50, 1, memory_limit=limit) as unbroken:
        steps = [unbroken.at(s) for s in range(60)]
    for step in (0, 59, 17, 40):
        with TokenStream(store, rows, None, 50, 1, memory_limit=limit) as resumed:
            assert torch.equal(resumed.at(step), steps[step])
    with TokenStream(store, rows, None, 50, 2, memory_limit=limit) as other:
        assert not torch.equal(other.at(0), steps[0])
    assert names(steps[0]) != names(steps[24]), "another epoch, another order"


def test_no_more_than_two_blocks_are_held(make: MakeStore) -> None:
    store, rows = make(), np.arange(75)
    limit = small(TokenStream(store, rows, None, 50, 1))
    with TokenStream(store, rows, None, 50, 1, memory_limit=limit) as stream:
        for step in range(stream.n_steps_per_epoch * 2):
            stream.at(step)
            held = [f.result() for f in stream._blocks.values()]
            assert len(held) <= 2
            assert sum(t.numel() * 4 for t in held) <= limit


def test_from_disk_too_a_batch_has_tokens_of_most_cells_that_an_ideal_shuffle_has(make: MakeStore) -> None:
    store, rows = make(n_cells=400, n_patches=64), np.arange(400)
    ideal = TokenStream(store, rows, None, 256)
    with TokenStream(store, rows, None, 256, memory_limit=ideal.n_tokens * D * 4 // 5) as stream:
        assert stream.n_blocks > 10
        found, wanted = (
            np.mean([len(s.at(i)[:, 0].unique()) for i in range(s.n_steps_per_epoch)]) for s in (stream, ideal)
        )
        assert found > 0.7 * wanted  # neighbouring cells kept together: 0.2


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), n_cells=st.integers(1, 90), share=st.floats(0.01, 1), dtype=st.sampled_from(["float16", "bfloat16"]))  # fmt: skip
def test_single_tokens_are_read_as_they_stand_in_their_rows(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n_cells: int, share: float, dtype: str
) -> None:
    store, rng = store_maker(tmp_path_factory.mktemp("s"))(90, 32, dtype=dtype), np.random.default_rng(seed)
    rows, places = np.nonzero(rng.random((n_cells, 33)) < share)
    whole = store.read(np.arange(90))
    assert torch.equal(store.read_tokens(rows, places), whole[torch.from_numpy(rows), torch.from_numpy(places)])


def test_a_shard_cut_while_it_is_read_is_named(make: MakeStore) -> None:
    store = make()
    shard = store.folder / "tokens-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert len(store.read_tokens(np.arange(16), np.full(16, 16))) == 16
    with pytest.raises(CytosaeError, match=r"tokens-00001\.bin is cut short"):
        store.read_tokens(np.array([31]), np.array([16]))


def test_a_sample_is_the_same_from_memory_and_from_disk(make: MakeStore) -> None:
    store, rows = make(), np.arange(4, 70)
    kept = np.random.default_rng(1).random((66, 16)) < 0.3
    whole = TokenStream(store, rows, kept, 32, seed=3)
    with TokenStream(store, rows, kept, 32, seed=3, memory_limit=small(whole)) as blocks:
        assert blocks.order == "blocks"
        for n in (1, 100, 10**6):
            assert torch.equal(whole.sample(n, 5), blocks.sample(n, 5))
        assert len(set(names(blocks.sample(100, 5)))) == 100


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_tokens_keep_their_stored_type(make: MakeStore, dtype: str) -> None:
    store = make(dtype=dtype)
    whole = TokenStream(store, np.arange(75), None, 32)
    assert whole.at(0).dtype == getattr(torch, dtype)
    with TokenStream(store, np.arange(75), None, 32, memory_limit=small(whole)) as blocks:
        assert blocks.at(0).dtype == getattr(torch, dtype)
        assert sorted(names(blocks.sample(10**6, 0))) == sorted(names(whole.sample(10**6, 0)))


def test_of_sampled_patches_those_the_mask_keeps_are_shown(make: MakeStore) -> None:
    store, rows = make(sampled=5), np.arange(10, 40)
    kept = np.random.default_rng(1).random((30, 16)) < 0.5
    stream = TokenStream(store, rows, kept, 8)
    shown = set(names(stream.sample(10**6, 0)))
    assert shown == {(int(r), int(p)) for i, r in enumerate(rows) for p in store.patches[r] if kept[i, p]}


def test_class_tokens_stream_alone(make: MakeStore) -> None:
    stream = TokenStream(make(), np.arange(75), None, 75, kind="class")
    assert sorted(names(stream.at(0))) == [(c, -1) for c in range(75)]


def test_what_cannot_be_streamed_is_said(make: MakeStore) -> None:
    store = make()
    with pytest.raises(CytosaeError, match="No patch token"):
        TokenStream(store, np.arange(75), np.zeros((75, 16), bool), 8)
    with pytest.raises(CytosaeError, match="does not fit 75 cells"):
        TokenStream(store, np.arange(75), np.ones((74, 16), bool), 8)
    with pytest.raises(CytosaeError, match="holds no register token"):
        TokenStream(store, np.arange(75), None, 8, kind="register")
