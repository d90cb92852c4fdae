from __future__ import annotations

import os
from pathlib import Path

from cytosae._errors import CytosaeError
from cytosae.cells.layouts._entry import Entry, Source

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")


def read_folder(source: Path) -> Source:
    """Images below a folder; the label is the name of the first folder below it (none for images directly in it).

    Hidden files and folders, `__MACOSX` leftovers and files without an image extension are passed over and counted.

    Raises
    ------
    CytosaeError
        No such folder, or no image in it.
    """
    if not source.exists():
        raise CytosaeError(f"The folder {source} does not exist; check the path.")
    if not source.is_dir():
        raise CytosaeError(
            f"{source} is a file; give a folder of images, a manifest (.csv, .tsv, .parquet), or --layout."
        )
    passed = {"hidden": 0, "not an image file": 0}
    found: list[str] = []
    for folder, names, file_names in os.walk(source):
        hidden = [n for n in names if n.startswith(".") or n == "__MACOSX"]
        names[:] = sorted(n for n in names if n not in hidden)
        for name in sorted(file_names):
            if name.startswith("."):
                passed["hidden"] += 1
            elif not name.lower().endswith(EXTENSIONS):
                passed["not an image file"] += 1
            else:
                found.append((Path(folder) / name).relative_to(source).as_posix())
    if not found:
        raise CytosaeError(
            f"No image found below {source}; expected files ending in {', '.join(EXTENSIONS[:6])} in class folders."
        )
    entries = [
        Entry(image=name, label=name.split("/")[0] if "/" in name else None, dataset=source.resolve().name)
        for name in sorted(found)
    ]
    return Source(str(source.resolve()), entries, "folder", {k: n for k, n in passed.items() if n})
