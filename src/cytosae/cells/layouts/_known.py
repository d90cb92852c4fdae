"""The published data sets as they lie on disk: MLL23, Acevedo, Matek 2019, BMC and AML_Hehr."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pyarrow as pa

from cytosae.cells.layouts import _vocabulary as words
from cytosae.cells.layouts._entry import Entry, LayoutOptions, Source
from cytosae.cells.layouts._folder import walked
from cytosae.cells.layouts._folds import read_folds

#: 25 micrometres on 288 pixels, as the data descriptor of MLL23 states
MLL23_UM_PER_PX = 25 / 288

_EXTRA = {"source_label": pa.string(), "harmonised_label": pa.string()}


def read_mll23(source: Path, options: LayoutOptions) -> Source:
    """MLL23: 18 class folders of TIFF anywhere below the source; ``um_per_px`` is 25/288 for 288 px wide images."""

    def reading(name: str) -> Entry | str:
        label = _nearest_folder(name, words.MLL23)
        if label is None:
            return "not below one of the 18 class folders of MLL23"
        extra = {"source_label": label, "harmonised_label": words.MLL23[label]}
        return Entry(name, label=label, dataset="mll23", um_per_px=MLL23_UM_PER_PX, um_for_width=288, extra=extra)

    return walked(source, "mll23", reading, extra_types=_EXTRA)


def read_acevedo(source: Path, options: LayoutOptions) -> Source:
    """Acevedo (PBC): the prefix of the file name decides, not the folder.

    ``label`` is one of the eight published classes, ``fine_label`` the finer class of the prefix. So the leftover
    folders ``ig`` and ``neutrophil`` of re-arranged copies do no harm. A folder that contradicts the prefix is kept in
    the column ``folder_disagrees``.
    """

    def reading(name: str) -> Entry | str:
        path = PurePosixPath(name)
        match = re.match(r"([A-Z]+)_\d", path.name)
        prefix = match.group(1) if match else ""
        if prefix not in words.ACEVEDO:
            return "without a known prefix (BA, EO, ERB, IG, LY, MO, NEUTROPHIL, BNE, SNE, MMY, MY, PMY, PLATELET)"
        label, fine, common = words.ACEVEDO[prefix]
        folder = path.parent.name.lower()
        extra = {
            "source_label": prefix,
            "harmonised_label": common,
            "fine_label": fine,
            "folder_disagrees": folder if folder and folder not in _acevedo_folders(label, fine, prefix) else None,
        }
        return Entry(name, label=label, dataset="acevedo_pbc", extra=extra)

    return walked(
        source, "acevedo", reading, extra_types={**_EXTRA, "fine_label": pa.string(), "folder_disagrees": pa.string()}
    )


def read_matek19(source: Path, options: LayoutOptions) -> Source:
    """Matek 2019: ``<CODE>/<CODE>_0001.tiff`` anywhere below the source; folders named ``augmented`` are passed over."""

    def reading(name: str) -> Entry | str:
        if "augmented" in (part.lower() for part in PurePosixPath(name).parts[:-1]):
            return "augmented copies"
        return _coded(name, words.MATEK19, "matek19", "not below one of the 15 code folders of Matek 2019")

    return walked(source, "matek19", reading, extra_types=_EXTRA)


def read_bmc(source: Path, options: LayoutOptions) -> Source:
    """BMC: ``<CODE>/0001-1000/<CODE>_00001.jpg`` anywhere below the source, 21 codes."""
    return walked(
        source, "bmc",
        lambda name: _coded(name, words.BMC, "bmc", "not below one of the 21 code folders of BMC"),
        extra_types=_EXTRA,
    )  # fmt: skip


def read_aml_hehr(source: Path, options: LayoutOptions) -> Source:
    """AML_Hehr: ``<diagnosis>/<patient>/*.TIF``; with ``folds``, the published fold is the column ``split``.

    All five folds are kept in ``split_fold_0`` to ``split_fold_4``; a patient in none of them has no split.

    Raises
    ------
    CytosaeError
        The folds put a patient into two parts, or contradict the diagnosis.
    """
    folds = read_folds(options.folds, options.fold) if options.folds is not None else None

    def reading(name: str) -> Entry | str:
        parts = PurePosixPath(name).parts
        place = next((i for i, part in enumerate(parts[:-2]) if part in words.AML_HEHR), None)
        if place is None:
            return f"not in <diagnosis>/<patient>/, the diagnosis being one of {', '.join(words.AML_HEHR)}"
        diagnosis, patient = parts[place], parts[place + 1]
        if folds is None:
            return Entry(name, patient=patient, diagnosis=diagnosis, dataset="aml_hehr")
        folds.check(patient, diagnosis)
        return Entry(
            name, patient=patient, diagnosis=diagnosis, dataset="aml_hehr",
            split=folds.split(patient), extra=folds.columns(patient),
        )  # fmt: skip

    return walked(source, "aml_hehr", reading, extra_types=folds.types() if folds else {})


def _coded(name: str, codes: dict[str, tuple[str, str | None]], dataset: str, reason: str) -> Entry | str:
    code = _nearest_folder(name, codes)
    if code is None:
        return reason
    label, common = codes[code]
    return Entry(name, label=label, dataset=dataset, extra={"source_label": code, "harmonised_label": common})


def _nearest_folder(name: str, known: object) -> str | None:
    """The last folder of a path that is a known class."""
    return next((p for p in reversed(PurePosixPath(name).parts[:-1]) if p in known), None)  # type: ignore[operator]


def _acevedo_folders(label: str, fine: str, prefix: str) -> set[str]:
    """Folder names under which cells of a prefix are published or re-arranged."""
    names = {label, fine.replace(" ", "_"), fine, prefix.lower(), *fine.split()[:1]}
    return names | {n + "s" for n in names}
