from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cytosae._errors import CytosaeError
from cytosae.cells._spool import sorted_names
from cytosae.cells.layouts._entry import EXTENSIONS, Entry, LayoutOptions, Source


def read_folder(source: Path, options: LayoutOptions) -> Source:
    """Images below a folder; the label is the name of the first folder below it (none for images directly in it).

    Hidden files and folders, `__MACOSX` leftovers and files without an image extension are passed over and counted.

    Raises
    ------
    CytosaeError
        No such folder, or no image in it.
    """
    dataset = source.resolve().name
    return walked(
        source,
        "folder",
        lambda name: Entry(image=name, label=name.split("/")[0] if "/" in name else None, dataset=dataset),
    )


#: From a path below the source to an entry, or to the reason why it is passed over.
Reading = Callable[[str], Entry | str]


def walked(source: Path, layout: str, reading: Reading, **more: object) -> Source:
    """A source of all images below a folder, each turned into an entry by `reading`.

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
    passed: dict[str, int] = {}
    entries = _Walk(source, reading, passed)
    if next(iter(entries), None) is None:
        found = f" ({', '.join(f'{n} {reason}' for reason, n in passed.items())} passed over)" if passed else ""
        raise CytosaeError(
            f"No image found below {source} for layout {layout}{found}; "
            f"expected files ending in {', '.join(EXTENSIONS[:6])} in the folders that docs/cells-{layout}.md shows."
        )
    return Source(str(source.resolve()), entries, layout, passed, **more)  # type: ignore[arg-type]


def image_paths(source: Path, passed: dict[str, int] | None = None) -> Iterator[str]:
    """Paths of all image files below a folder, relative to it, folder by folder in alphabetical order.

    However many images a folder has, memory does not hold their names. Links to folders are not followed. `passed`
    counts what is left.
    """
    count = {} if passed is None else passed
    waiting = [""]
    while waiting:
        below = waiting.pop()
        prefix, folders = f"{below}/" if below else "", list[str]()
        yield from (prefix + name for name in sorted_names(_listed(source / below, folders, count)))
        waiting += [prefix + name for name in sorted(folders, reverse=True)]


def _listed(folder: Path, folders: list[str], count: dict[str, int]) -> Iterator[str]:
    """Names of the image files in one folder, in any order; the folders in it are added to `folders`."""
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                if item.name.startswith(".") or item.name == "__MACOSX":
                    count["hidden"] = count.get("hidden", 0) + 1
                elif item.is_dir(follow_symlinks=False):
                    folders.append(item.name)
                elif item.name.lower().endswith(EXTENSIONS):
                    yield item.name
                elif item.is_dir():
                    count["link to a folder"] = count.get("link to a folder", 0) + 1
                else:
                    count["not an image file"] = count.get("not an image file", 0) + 1
    except OSError as error:
        raise CytosaeError(f"The folder {folder} cannot be listed ({error.strerror}); check its permissions.") from None


@dataclass(frozen=True)
class _Walk:
    source: Path
    reading: Reading
    passed: dict[str, int]

    def __iter__(self) -> Iterator[Entry]:
        self.passed.clear()
        for name in image_paths(self.source, self.passed):
            entry = self.reading(name)
            if isinstance(entry, str):
                self.passed[entry] = self.passed.get(entry, 0) + 1
            else:
                yield entry
