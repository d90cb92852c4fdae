"""Draw the landscape of the published dictionary from its released statistics, and print its numbers.

Usage: ``python docs/released_picture.py FOLDER``, where FOLDER holds one folder of released statistics a data set.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

from cytosae.concepts import active_jaccard, draw_landscape, import_statistics, landscape_numbers

NAMES = {"mll23": "MLL23", "acevedo": "Acevedo"}


def main() -> None:
    """Write the picture and print the numbers as they stand on the page."""
    if len(sys.argv) != 2:
        sys.exit("released_picture: give the folder of the released statistics")
    with tempfile.TemporaryDirectory() as folder:
        indices = {
            title: import_statistics(Path(sys.argv[1]) / name, Path(folder) / name) for name, title in NAMES.items()
        }
        figure = draw_landscape(list(indices.values()), list(indices))
        figure.savefig(Path(__file__).parent / "images" / "released.jpg", dpi=110, pil_kwargs={"quality": 85})
        for title, index in indices.items():
            print(title, landscape_numbers(index))
        for (a, x), (b, y) in itertools.combinations(indices.items(), 2):
            print(f"Jaccard {a} {b}", active_jaccard(x, y))


if __name__ == "__main__":
    main()
