from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cytosae._errors import CytosaeError
from cytosae.cells._image_store import ROW_MARK, ImageStore, bundled_path, open_store
from cytosae.cells._table import BUNDLED_ROOT
from cytosae.cells.layouts._entry import Entry, LayoutOptions, Source, text
from cytosae.cells.layouts._manifest import KNOWN, plain_type, rename, scale
from cytosae.storage import is_own_parquet

_SHARD = re.compile(r"^(?P<name>.+?)[-_.]\d{3,5}([-_]of[-_]\d{3,5})?$")
_SPLITS = {"train": "train", "test": "test", "validation": "val", "valid": "val", "val": "val", "dev": "val"}


def read_image_parquet(source: Path, options: LayoutOptions) -> Source:
    """Rows of image parquet shards, or of a folder that Hugging Face ``datasets`` wrote; further columns are kept.

    `source` is a parquet file, a folder of shards (``train-00000-of-00002.parquet``), or what ``save_to_disk`` wrote
    (``data-00000-of-00001.arrow``, with a folder a split where it was a dictionary). ``label`` numbers of a
    ``ClassLabel`` become their names; the split is read from the name of shard or folder where it is a usual one.

    Raises
    ------
    CytosaeError
        Missing, neither parquet nor arrow, without a column of image bytes, or shards that differ in a column's type.
    """
    paths = _shards(source)
    root = source.resolve().parent if source.is_file() else source.resolve()
    shards = [_shard(path, root, source) for path in paths]
    columns: dict[str, pa.DataType] = {}
    for shard in shards:
        for name, kind in shard.store.columns.items():
            if pa.types.is_null(columns.setdefault(name, kind)):
                columns[name] = kind  # a shard without a value says nothing of the type
            elif not pa.types.is_null(kind) and not columns[name].equals(kind):
                raise CytosaeError(
                    f"{shard.store.path} has {kind} in the column {name!r}, a shard before it {columns[name]}; "
                    "give shards of one data set at a time."
                )
    names = rename(list(columns), {k: v for k, v in options.columns.items() if k != "image"}, source)
    kept = {old: new for old, new in zip(columns, names, strict=True) if _is_plain(columns[old])}
    left = [old for old in columns if old not in kept]
    notes = [f"the columns {', '.join(left)} hold pictures or bytes and are not kept"] if left else []
    types = {new: plain_type(columns[old]) for old, new in kept.items() if new not in (*KNOWN, "um_per_px")}
    bundled = source.resolve() == bundled_path().resolve()
    return Source(
        BUNDLED_ROOT if bundled else str(root), _Entries(shards, kept), "hf-parquet", {}, types, notes
    )  # fmt: skip


@dataclass(frozen=True)
class _Shard:
    store: ImageStore
    image: str
    dataset: str
    split: str | None
    label_names: list[str] | None


@dataclass(frozen=True)
class _Entries:
    shards: list[_Shard]
    kept: dict[str, str]

    def __iter__(self) -> Iterator[Entry]:
        for shard in self.shards:
            present = [name for name in self.kept if name in shard.store.columns]
            for row, record in enumerate(shard.store.records(present)):
                values = {new: record.get(old) for old, new in self.kept.items()}
                label = values.get("label")
                if shard.label_names is not None and isinstance(label, int):
                    values["label"] = shard.label_names[label] if 0 <= label < len(shard.label_names) else None
                um = scale(values.pop("um_per_px", None), f"{shard.store.path}, row {row},")
                fields = {name: text(values.pop(name, None)) for name in KNOWN}
                fields["dataset"] = fields["dataset"] or shard.dataset
                fields["split"] = fields["split"] or shard.split
                yield Entry(f"{shard.image}{ROW_MARK}{row}", um_per_px=um, extra=values, **fields)  # type: ignore[arg-type]


def _shards(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise CytosaeError(f"The image parquet {source} does not exist; check the path.")
    found = sorted(
        p for p in source.rglob("*") if p.suffix in (".parquet", ".arrow") and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(source).parts)
        and not p.name.startswith("cache-") and not is_own_parquet(p)
    )  # fmt: skip
    if not found:
        raise CytosaeError(
            f"No image parquet or arrow file found below {source}; expected names like train-00000-of-00001.parquet."
        )
    return found


def _shard(path: Path, root: Path, source: Path) -> _Shard:
    store = open_store(path)
    match = _SHARD.match(path.stem)
    stem = match["name"] if match else path.stem
    below = [p.lower() for p in path.resolve().relative_to(root).parts[:-1]]
    split = _SPLITS.get(stem.lower()) or next((_SPLITS[p] for p in reversed(below) if p in _SPLITS), None)
    generic = split is not None or stem in ("data", "dataset")
    dataset = (source.resolve().name if source.is_dir() else source.resolve().parent.name) if generic else stem
    return _Shard(store, path.resolve().relative_to(root).as_posix(), dataset, split, _label_names(store))


def _label_names(store: ImageStore) -> list[str] | None:
    """The names of a ``ClassLabel``, from the record that ``datasets`` keeps in the file."""
    try:
        features = json.loads(store.metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features["label"]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(n) for n in names] if isinstance(names, list) else None


def _is_plain(kind: Any) -> bool:
    kind = plain_type(kind)
    return not (pa.types.is_nested(kind) and not pa.types.is_list(kind)) and not (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    )
