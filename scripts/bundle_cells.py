"""Choose, resize and pack the bundled cells (run once; the result is committed).

Usage: ``python scripts/bundle_cells.py DATA_PACK src/cytosae/cells/bundled/cells.parquet``

``DATA_PACK`` holds ``acevedo_pbc/`` and ``bmc_marrow/`` in class folders with ``manifest.csv`` (and, for Acevedo,
``fine_labels.csv`` and ``attributes.csv``). Cells of WBCAtt's ``test`` split are never taken, so that the split stays
closed for whoever works with the bundle. The choice is a pure function of ``SEED``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SEED = 20261123
SIDE = 224
QUALITY = 80
LIMIT_BYTES = 8_000_000

TRAIN_PER_CLASS = 60
#: Cells outside the dictionary's training part; the simulated patients are made of them.
TEST_COUNTS = {
    "neutrophil": 148, "lymphocyte": 110, "eosinophil": 80, "monocyte": 60,
    "platelet": 45, "basophil": 40, "erythroblast": 40, "ig": 70,
}  # fmt: skip
TEST_PROMYELOCYTES = 30
MARROW_PER_CLASS = 14

ATTRIBUTES = (
    "cell_size", "cell_shape", "nucleus_shape", "nuclear_cytoplasmic_ratio", "chromatin_density",
    "cytoplasm_vacuole", "cytoplasm_texture", "cytoplasm_colour", "granule_type", "granule_colour", "granularity",
)  # fmt: skip

MARROW_NAMES = {
    "BLA": "blast", "EOS": "eosinophil", "LYT": "lymphocyte", "MON": "monocyte",
    "NGS": "neutrophil", "NIF": "not identifiable", "PMO": "promyelocyte",
}  # fmt: skip


def read_csv(path: Path, key: str) -> dict[str, dict[str, str]]:
    """Rows of a CSV file by the value of one column."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def shrink(path: Path) -> tuple[bytes, int, int]:
    """JPEG bytes of the image at ``SIDE`` px (bilinear, antialiased), with the original width and height."""
    with Image.open(path) as image:
        width, height = image.size
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue(), width, height


def choose_acevedo(pack: Path) -> list[tuple[dict[str, str], str]]:
    """(manifest row with fine label and attributes, split) of the chosen peripheral blood cells."""
    folder = pack / "acevedo_pbc"
    fine = read_csv(folder / "fine_labels.csv", "image")
    attributes = read_csv(folder / "attributes.csv", "image")
    pools: dict[str, list[dict[str, str]]] = {}
    for name, row in sorted(read_csv(folder / "manifest.csv", "image").items()):
        extra = attributes.get(name, {})
        if extra.get("wbcatt_split") == "test":
            continue
        pools.setdefault(row["label"], []).append({**row, **extra, "fine_label": fine[name]["fine_label"]})
    rng = random.Random(SEED)
    chosen: list[tuple[dict[str, str], str]] = []
    for label in sorted(pools):
        pool = pools[label]
        rng.shuffle(pool)
        if label == "ig":  # every fine type in both parts, promyelocytes counted out for the simulated patients
            promyelocytes = [r for r in pool if r["fine_label"] == "promyelocyte"]
            others = [r for r in pool if r["fine_label"] in ("myelocyte", "metamyelocyte")]
            n_other = TEST_COUNTS["ig"] - TEST_PROMYELOCYTES
            test = promyelocytes[:TEST_PROMYELOCYTES] + others[:n_other]
            half = TRAIN_PER_CLASS // 3
            train = (
                promyelocytes[TEST_PROMYELOCYTES : TEST_PROMYELOCYTES + half]
                + others[n_other : n_other + TRAIN_PER_CLASS - half]
            )
        else:
            train, test = pool[:TRAIN_PER_CLASS], pool[TRAIN_PER_CLASS : TRAIN_PER_CLASS + TEST_COUNTS[label]]
            if len(test) < TEST_COUNTS[label]:
                raise SystemExit(f"{label}: only {len(test)} cells for the test part")
        chosen += [(r, "train") for r in train] + [(r, "test") for r in test]
    return chosen


def choose_marrow(pack: Path) -> list[dict[str, str]]:
    """Manifest rows of the chosen bone-marrow cells."""
    pools: dict[str, list[dict[str, str]]] = {}
    for _, row in sorted(read_csv(pack / "bmc_marrow" / "manifest.csv", "image").items()):
        pools.setdefault(row["label"], []).append(row)
    rng = random.Random(SEED)
    return [row for label in sorted(pools) for row in rng.sample(pools[label], MARROW_PER_CLASS)]


def main(pack: Path, target: Path) -> None:
    """Write the bundle and print what is in it."""
    rows: list[dict[str, Any]] = []
    for row, split in choose_acevedo(pack):
        rows.append({"dataset": "acevedo_pbc", "split": split, "licence": "CC BY 4.0 (attributes: MIT)", **row})
    for row in choose_marrow(pack):
        rows.append({
            "dataset": "bmc_marrow", "split": "test", "licence": "CC BY 4.0", **row,
            "label": MARROW_NAMES[row["label"]], "fine_label": row["label"],
        })  # fmt: skip
    random.Random(SEED).shuffle(rows)
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("image", "label", "fine_label", "dataset", "split", *ATTRIBUTES, "wbcatt_split",
                     "original_width", "original_height", "source", "source_sha256", "licence")
    }  # fmt: skip
    for row in rows:
        path = pack / row["dataset"] / row["image"]
        data, width, height = shrink(path)
        name = f"{row['dataset']}/{row['split']}/{Path(row['image']).with_suffix('.jpg').as_posix()}"
        columns["image"].append({"bytes": data, "path": name})
        columns["original_width"].append(width)
        columns["original_height"].append(height)
        columns["source_sha256"].append(hashlib.sha256(path.read_bytes()).hexdigest())
        for key in (
            "label",
            "fine_label",
            "dataset",
            "split",
            *ATTRIBUTES,
            "wbcatt_split",
            "source",
            "licence",
        ):
            columns[key].append(row.get(key) or None)
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({k: pa.array(v, type=image_type) if k == "image" else pa.array(v) for k, v in columns.items()})
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, target, compression="zstd", row_group_size=256)
    size = target.stat().st_size
    counts = table.group_by(["dataset", "split", "label"]).aggregate([("source", "count")]).to_pandas()
    print(counts.to_string())
    print(f"{table.num_rows} cells, {size} bytes")
    if size > LIMIT_BYTES:
        raise SystemExit(f"more than {LIMIT_BYTES} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
