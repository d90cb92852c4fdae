"""Every data set is read as it lies on disk, under its real names."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cytosae._errors import CytosaeError, UsageError
from cytosae.cells import Cut, ImageReader, LayoutOptions, build_cells, build_table, decode_image, read_cells
from cytosae.cells.layouts._vocabulary import ACEVEDO, BMC, MATEK19, MLL23

Tree = Callable[[dict[str, bytes]], Path]


def test_mll23_gets_its_18_classes_and_its_scale(tree: Tree, pixels, encode, tmp_path) -> None:
    def tiff(i: int, side: int = 288) -> bytes:
        from PIL import Image

        return encode(np.asarray(Image.fromarray(pixels[i]).resize((side, side))), "TIFF", compression="tiff_lzw")

    files = {f"{c}/MLL23-{c}-{k}.tif": tiff(2 * i + k) for i, c in enumerate(MLL23) for k in range(2)}
    files |= {"__MACOSX/basophil/._x.tif": b"x", "basophil/.DS_Store": b"x", "stray/a.tif": tiff(3)}
    files["monocyte/cropped.tif"] = tiff(4, 200)
    built = build_table(tree(files), tmp_path / "c.parquet", layout="mll23")
    cells = read_cells(built.path)
    assert len(cells) == 37
    assert set(cells.frame["label"]) == set(MLL23)
    wide = cells.frame["width"] == 288
    assert np.allclose(cells.frame.loc[wide, "um_per_px"], 25 / 288)
    assert cells.frame.loc[~wide, "um_per_px"].isna().all()
    assert built.passed_over == {"hidden": 2, "not below one of the 18 class folders of MLL23": 1}
    assert dict(zip(cells.frame["label"], cells.frame["harmonised_label"], strict=True))["normoblast"] == "erythroblast"


def test_acevedo_believes_the_prefix_not_the_leftover_folder(tree: Tree, real, tmp_path) -> None:
    folders = {"BNE": "neutrophil", "SNE": "neutrophil", "NEUTROPHIL": "neutrophil", "IG": "ig", "MMY": "ig", "MY": "ig",
               "PMY": "ig", "BA": "basophil", "EO": "eosinophil", "ERB": "erythroblast", "LY": "lymphocyte",
               "MO": "monocyte", "PLATELET": "platelet"}  # fmt: skip
    files = {f"PBC_dataset_normal_DIB/{f}/{p}_{100 + i}.jpg": real[i] for i, (p, f) in enumerate(folders.items())}
    files["PBC_dataset_normal_DIB/band_neutrophil/BNE_7.jpg"] = real[20]
    files["PBC_dataset_normal_DIB/eosinophil/SNE_8.jpg"] = real[21]
    files["PBC_dataset_normal_DIB/eosinophil/cell.jpg"] = real[22]
    built = build_table(tree(files), tmp_path / "c.parquet", layout="acevedo")
    frame = read_cells(built.path).frame.set_index("source_label")
    assert set(frame.index) == set(ACEVEDO)
    assert frame.loc["PMY", "fine_label"] == "promyelocyte"
    assert frame.loc["PMY", "label"] == "ig"
    assert frame["label"].nunique() == 8
    odd = frame[frame["folder_disagrees"].notna()]
    assert odd["image"].tolist() == ["PBC_dataset_normal_DIB/eosinophil/SNE_8.jpg"]
    assert sum(built.passed_over.values()) == 1


def test_matek19_reads_rgba_and_ignores_augmented_copies(tree: Tree, pixels, encode, tmp_path) -> None:
    rgba = np.dstack([pixels[0], np.full((224, 224), 255, np.uint8)])
    files = {
        f"data/data/{c}/{c}_{i:04d}.tiff": encode(rgba, "TIFF", compression="tiff_lzw") for i, c in enumerate(MATEK19)
    }
    files |= {f"data/augmented/{c}/{c}_0001.tiff": b"never opened" for c in list(MATEK19)[:3]}
    built = build_table(tree(files), tmp_path / "c.parquet", layout="matek19", near_duplicates=False)
    frame = read_cells(built.path).frame
    assert set(frame["source_label"]) == set(MATEK19)
    assert set(frame["mode"]) == {"RGBA"}
    assert built.passed_over == {"augmented copies": 3}


def test_bmc_keeps_its_known_broken_cell_as_quarantined(tree: Tree, real, tmp_path) -> None:
    files = {f"bone_marrow_cell_dataset/{c}/0001-1000/{c}_00001.jpg": real[i] for i, c in enumerate(BMC)}
    files["bone_marrow_cell_dataset/MYB/5001-6000/MYB_05527.jpg"] = real[30][: len(real[30]) // 2]
    cells = build_cells(tree(files), tmp_path / "c.parquet", layout="bmc")
    assert len(cells) == 22
    assert cells.ok["label"].nunique() == 21
    bad = cells.frame[cells.frame["status"] != "ok"]
    assert bad["image"].str.endswith("MYB_05527.jpg").all()
    assert "cut short" in bad["reason"].item()


def _hehr(real: list[bytes], pixels, encode) -> dict[str, bytes]:
    patients = {"AML-CBFB-MYH11": ("AQK", "ZZZ"), "AML-NPM1": ("ALA",), "AML-PML-RARA": ("BHS",),
                "AML-RUNX1-RUNX1T1": ("ABF",), "SCD": ("AEC",)}  # fmt: skip
    return {f"{d}/{p}/{k}.TIF": encode(pixels[k], "TIFF", compression="tiff_lzw")
            for d, ps in patients.items() for p in ps for k in range(2)}  # fmt: skip


def _folds(root: Path, **more: list[tuple[str, int]]) -> Path:
    parts = {"train": [("ABF", 3), ("AEC", 4), ("BHS", 2)], "val": [("ALA", 1)], "test": [("AQK", 0)], **more}
    for fold in range(2):
        folder = root / f"data_fold_{fold}"
        folder.mkdir(parents=True)
        for part, rows in parts.items():
            with (folder / f"{part}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("patient_name", "labels"), *rows])
    names = ["AML-CBFB-MYH11", "AML-NPM1", "AML-PML-RARA", "AML-RUNX1-RUNX1T1", "SCD"]
    (root / "label_map.csv").write_text("label_name,label_id\n" + "".join(f"{n},{i}\n" for i, n in enumerate(names)))
    return root


def test_aml_hehr_takes_the_published_fold_as_split(tree: Tree, real, pixels, encode, tmp_path) -> None:
    source = tree(_hehr(real, pixels, encode))
    options = LayoutOptions(folds=_folds(tmp_path / "folds"), fold=1)
    frame = read_cells(build_table(source, tmp_path / "c.parquet", layout="aml_hehr", options=options).path).frame
    assert len(frame) == 12
    split = dict(zip(frame["patient"], frame["split"], strict=True))
    assert split == {"ABF": "train", "AEC": "train", "BHS": "train", "ALA": "val", "AQK": "test", "ZZZ": None}
    assert frame["split_fold_0"].equals(frame["split_fold_1"])
    assert frame["diagnosis"].nunique() == 5
    with pytest.raises(UsageError, match="no fold 7"):
        build_table(
            source, tmp_path / "d.parquet", layout="aml_hehr", options=LayoutOptions(folds=tmp_path / "folds", fold=7)
        )


def test_folds_that_leak_or_contradict_the_diagnosis_are_refused(tree: Tree, real, pixels, encode, tmp_path) -> None:
    source = tree(_hehr(real, pixels, encode))
    for name, part, message in (
        ("a", [("ABF", 3)], "a patient may be in one part only"),
        ("b", [("ZZZ", 2)], "folder says"),
    ):
        options = LayoutOptions(folds=_folds(tmp_path / name, test=part))
        with pytest.raises(CytosaeError, match=message):
            build_table(source, tmp_path / "c.parquet", layout="aml_hehr", options=options)


@pytest.mark.shared
def test_the_published_folds_are_read_as_they_are(pack: Path) -> None:
    from cytosae.cells.layouts._folds import read_folds

    folds = read_folds(pack / "aml_hehr" / "folds", 0)
    tests = [{p for p, part in parts.items() if part == "test"} for parts in folds.parts.values()]
    assert len(folds.parts) == 5
    assert all(t == tests[0] for t in tests)
    assert len(tests[0]) == 43


def test_a_manifest_with_other_column_names_is_mapped(tree: Tree, real, tmp_path) -> None:
    rows = "Path;class;pid;cell_id;scale\n" + "".join(f"img/{i}.jpg;c{i % 2};P{i};{900 + i};0.1\n" for i in range(4))
    root = tree({f"img/{i}.jpg": real[i] for i in range(4)} | {"m.csv": rows.encode()})
    columns = {"image": "Path", "label": "class", "patient": "pid", "um_per_px": "scale"}
    frame = read_cells(build_table(root / "m.csv", tmp_path / "c.parquet", options=LayoutOptions(columns)).path).frame
    assert frame["label"].tolist() == ["c0", "c1", "c0", "c1"]
    assert frame["source_cell_id"].tolist() == ["900", "901", "902", "903"]
    assert frame["um_per_px"].tolist() == [0.1] * 4
    with pytest.raises(CytosaeError, match="mend --column label=clas"):
        build_table(root / "m.csv", tmp_path / "d.parquet", options=LayoutOptions(columns | {"label": "clas"}))


@pytest.mark.parametrize("form", ["tsv", "parquet"])
def test_manifests_come_as_tsv_and_parquet(tree: Tree, real, tmp_path, form) -> None:
    root = tree({f"{i}.jpg": real[i] for i in range(3)})
    data = {"image": [str(root / "0.jpg"), "1.jpg", "./2.jpg"], "label": ["a", "b", None], "score": ["1", "2", "3"]}
    if form == "parquet":
        pq.write_table(
            pa.table(data | {"score": [1, 2, 3], "label": pa.array(data["label"]).dictionary_encode()}),
            root / "m.parquet",
        )
    else:
        lines = ["\t".join(v or "" for v in row) for row in zip(*data.values(), strict=True)]
        (root / "m.tsv").write_text("\t".join(data) + "\n" + "\n".join(lines), "utf-8-sig")
    frame = build_cells(root / f"m.{form}", tmp_path / "c.parquet").frame
    assert frame["label"].tolist() == ["a", "b", None]
    assert frame["status"].tolist() == ["ok"] * 3
    assert frame["score"].tolist() == ([1, 2, 3] if form == "parquet" else ["1", "2", "3"])


def _image_table(real: list[bytes], rows: range, label: object) -> pa.Table:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": real[i], "path": f"{i}.jpg"} for i in rows], type=kind)
    features = {"image": {"_type": "Image"}, "label": {"names": ["basophil", "monocyte"], "_type": "ClassLabel"}}
    table = pa.table({"image": images, "label": label})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def test_image_parquet_shards_keep_splits_and_class_names(tree: Tree, real, tmp_path) -> None:
    root = tmp_path / "blood"
    (root / "data").mkdir(parents=True)
    for k, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001")):
        rows = range(3 * k, 3 * k + 3)
        pq.write_table(_image_table(real, rows, [0, 1, -1]), root / "data" / f"{name}.parquet", row_group_size=2)
    cells = build_cells(root, tmp_path / "c.parquet")
    assert cells.frame["split"].tolist() == ["train"] * 6 + ["val"] * 3
    assert cells.frame["label"].tolist() == ["basophil", "monocyte", None] * 3
    reader = ImageReader(cells.root)
    for i, (image, digest) in enumerate(zip(cells.frame["image"], cells.frame["sha256"], strict=True)):
        assert reader.read(image, digest) == real[i]


def test_a_folder_that_datasets_saved_is_read(real, tmp_path) -> None:
    root = tmp_path / "saved"
    for split, rows in (("train", range(3)), ("test", range(3, 5))):
        folder = root / split
        folder.mkdir(parents=True)
        table = _image_table(real, rows, [1] * len(rows))
        with (
            pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
        (folder / "cache-123.arrow").write_bytes(b"leftover")
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    cells = build_cells(root, tmp_path / "c.parquet")
    assert sorted(cells.frame["split"]) == ["test", "test", "train", "train", "train"]
    assert set(cells.frame["label"]) == {"monocyte"}
    assert cells.n_quarantined == 0


def _field(pixels, encode) -> tuple[bytes, list[tuple[str, int, int, int, int]], np.ndarray]:
    """A field of four real cells, side by side, with their boxes."""
    field = np.concatenate([np.concatenate(pixels[:2], axis=1), np.concatenate(pixels[2:4], axis=1)], axis=0)
    boxes = [("wbc", 62, 62, 162, 142), ("wbc", 286, 62, 386, 162), ("rbc", 62, 286, 162, 386), ("rbc", 2, 2, 42, 42)]
    return encode(field, "PNG"), boxes, field


def _voc(boxes, size=(448, 448), head: str = "") -> bytes:
    items = "".join(
        f"<object><name>{n}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for n, a, b, c, d in boxes
    )
    return f"{head}<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{items}</annotation>".encode()


def _annotated(kind: str, boxes) -> dict[str, bytes]:
    if kind == "voc":
        return {"Annotations/f1.xml": _voc(boxes)}
    if kind == "yolo":
        lines = [
            f"{int(n == 'rbc')} {(a + c) / 896} {(b + d) / 896} {(c - a) / 448} {(d - b) / 448}"
            for n, a, b, c, d in boxes
        ]
        return {"labels/f1.txt": "\n".join(lines).encode(), "classes.txt": b"wbc\nrbc\n"}
    coco = {"images": [{"id": 5, "file_name": "f1.png", "width": 448, "height": 448}],
            "categories": [{"id": 1, "name": "wbc"}, {"id": 2, "name": "rbc"}],
            "annotations": [{"image_id": 5, "category_id": 1 + (n == "rbc"), "bbox": [a, b, c - a, d - b]}
                            for n, a, b, c, d in boxes]}  # fmt: skip
    return {"instances.json": json.dumps(coco).encode()}


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_each_cell_of_a_field_is_cut_around_its_box(tree: Tree, pixels, encode, tmp_path, kind) -> None:
    field, boxes, array = _field(pixels, encode)
    root = tree({"images/f1.png": field, "images/f2.png": field, **_annotated(kind, boxes)})
    built = build_table(root, tmp_path / "c.parquet", layout="fields", cut=Cut(box_factor=1.5))
    cells = read_cells(built.path)
    assert cells.frame["label"].tolist() == ["wbc", "wbc", "rbc", "rbc"]
    assert set(cells.frame["source_field"]) == {"images/f1.png"}
    assert built.passed_over["fields without an annotation"] == 1
    assert cells.frame["width"].tolist() == [150, 150, 150, 60]
    assert cells.frame["padded_share"].tolist()[:3] == [0, 0, 0]
    assert 0 < cells.frame["padded_share"][3] < 0.5
    reader = ImageReader(cells.root)
    first = decode_image(reader.read(cells.frame["image"][0], cells.frame["sha256"][0])).pixels
    assert (first == array[27:177, 37:187]).all()
    last = decode_image(reader.read(cells.frame["image"][3], cells.frame["sha256"][3])).pixels
    assert (last[:8] == 255).all()
    assert (last[8:, 8:] == array[:52, :52]).all()
    assert cells.frame["sha256"].nunique() == 4


def test_the_same_micrometres_are_cut_around_every_cell(tree: Tree, pixels, encode, real, tmp_path) -> None:
    field, boxes, _ = _field(pixels, encode)
    root = tree({"images/f1.png": field, **_annotated("voc", boxes)})
    cut = Cut(um=10, um_per_px=0.1)
    cells = read_cells(build_table(root, tmp_path / "c.parquet", layout="fields", cut=cut).path)
    assert cells.frame["width"].tolist() == [100] * 4
    assert cells.frame["um_per_px"].tolist() == [0.1] * 4
    rows = "image,um_per_px,mask\na.jpg,0.1,m.png\nb.jpg,0.05,\nc.jpg,,\n"
    mask = np.zeros((224, 224), np.uint8)
    mask[112, 112] = 200
    lab = {"a.jpg": real[0], "b.jpg": real[1], "c.jpg": real[2], "m.png": encode(mask, "PNG"), "m.csv": rows.encode()}
    cells = read_cells(build_table(tree(lab) / "m.csv", tmp_path / "d.parquet", cut=Cut(um=12)).path)
    assert cells.frame["width"].tolist()[:2] == [120, 240]
    assert "um_per_px is unknown" in cells.frame["reason"][2]
    reader = ImageReader(cells.root)
    shown = np.asarray(decode_image(reader.read(cells.frame["mask"][0])).pixels)[:, :, 0]
    assert shown.shape == (120, 120)
    assert shown[60, 60] == 200
    assert cells.frame["padded_share"][1] == pytest.approx(1 - 224**2 / 240**2)


def test_a_changed_field_is_noticed_when_its_cells_are_read(tree: Tree, pixels, encode, tmp_path) -> None:
    field, boxes, _ = _field(pixels, encode)
    root = tree({"images/f1.png": field, **_annotated("voc", boxes)})
    cells = read_cells(build_table(root, tmp_path / "c.parquet", layout="fields").path)
    (root / "images" / "f1.png").write_bytes(encode(np.zeros((448, 448, 3), np.uint8), "PNG"))
    with pytest.raises(CytosaeError, match="has changed"):
        ImageReader(cells.root).read(cells.frame["image"][0], cells.frame["sha256"][0])


def test_boxes_that_are_none_are_quarantined_with_a_reason(tree: Tree, pixels, encode, tmp_path) -> None:
    field, boxes, _ = _field(pixels, encode)
    bad = [*boxes[:1], ("x", 9, 9, 9, 20), ("x", "nan", 1, 2, 3), ("x", 900, 900, 950, 950)]
    files = {
        "a.png": field,
        "a.xml": _voc(bad),
        "b.png": field,
        "b.xml": _voc(boxes[:1], (640, 480)),
        "c.xml": _voc(boxes),
    }
    cells = read_cells(build_table(tree(files), tmp_path / "c.parquet", layout="fields").path)
    reasons = cells.frame["reason"].fillna("ok").tolist()
    assert reasons[0] == "ok"
    assert [r.split()[0:3] for r in reasons[1:4]] == [
        ["its", "box", "is"],
        ["its", "box", "is"],
        ["its", "box", "lies"],
    ]
    assert "640 x 480" in reasons[4]
    assert "no image was found" in reasons[5]


def test_entities_in_annotations_are_refused_unread(tree: Tree, pixels, encode, tmp_path) -> None:
    field, boxes, _ = _field(pixels, encode)
    bomb = '<!DOCTYPE a [<!ENTITY b "boom"><!ENTITY c SYSTEM "file:///etc/hostname">]>'
    root = tree({"a.png": field, "a.xml": _voc(boxes, head=bomb)})
    with pytest.raises(CytosaeError, match="DOCTYPE"):
        build_table(root, tmp_path / "c.parquet", layout="fields")


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret.png", "https://example.org/a.png"])
def test_coco_files_cannot_name_what_lies_outside(tree: Tree, pixels, encode, tmp_path, name) -> None:
    field, boxes, _ = _field(pixels, encode)
    coco = json.loads(_annotated("coco", boxes)["instances.json"])
    coco["images"][0]["file_name"] = name
    with pytest.raises(CytosaeError, match="outside its folder"):
        build_table(
            tree({"a.png": field, "a.json": json.dumps(coco).encode()}), tmp_path / "c.parquet", layout="fields"
        )


def test_links_to_folders_and_devices_are_not_followed(tree: Tree, real, tmp_path) -> None:
    root = tree({"a/1.jpg": real[0], "a/2.jpg": real[1]})
    os.symlink(root, root / "a" / "loop")
    os.mkfifo(root / "a" / "pipe.jpg")
    built = build_table(root, tmp_path / "c.parquet")
    frame = read_cells(built.path).frame
    assert built.passed_over == {"link to a folder": 1}
    assert frame["reason"].dropna().tolist() == ["the file cannot be opened (it is no ordinary file)"]
