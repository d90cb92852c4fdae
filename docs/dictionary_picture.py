"""Draw the picture of ``docs/default-dictionary.md``: concepts of two dictionaries on blood and on marrow.

Usage: ``python docs/dictionary_picture.py CELLS BEFORE TOKENS AFTER TOKENS`` where CELLS is the table of the corpus, and BEFORE and AFTER are
dictionaries trained on its Acevedo cells, each followed by the tokens that it reads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cytosae import SparseAutoencoder, TokenStore, load_sae, read_cells
from cytosae.cells import Cells, ImageReader, decode_image
from cytosae.evaluation._bootstrap import precisions_of_many
from cytosae.evaluation._origins import common_labels
from cytosae.reports._canvas import FAINT, Canvas, outline, square

#: column, value, and the cell type among which it is asked (empty: all)
ASKED = (
    ("label", "eosinophil", ""),
    ("label", "neutrophil", ""),
    ("cytoplasm_vacuole", "yes", "monocyte"),
    ("nucleus_shape", "unsegmented-band", "neutrophil"),
)
SIDE, GAP, SHOWN, BLOOD, MARROW = 92, 8, 4, 2400, 900


def main(table: Path, before: Path, tokens_before: Path, after: Path, tokens_after: Path) -> None:
    """Choose a concept for every question on one half of the blood cells, and show where it is strongest elsewhere."""
    cells, stores = read_cells(table), [TokenStore(tokens_before), TokenStore(tokens_after)]
    frame = cells.frame.assign(common=common_labels(cells.frame))
    blood = frame[frame["wbcatt_split"].eq("train")].sample(BLOOD, random_state=0)
    marrow = frame[frame["dataset"].eq("marrow") & frame["common"].ne("")].sample(MARROW, random_state=0)
    shown = pd.concat([blood, marrow]).reset_index(drop=True)
    values = [pooled(load_sae(path), store, shown) for path, store in zip((before, after), stores, strict=True)]
    width = 2 * (SHOWN * (SIDE + GAP) + 12)
    canvas = Canvas(2 * width + 30, len(ASKED) * (SIDE + 62) + 64)
    for side, (path, title) in enumerate(
        ((before, "three blocks of dinov2-s"), (after, "one block of dinov2-s-blood"))
    ):
        x = 10 + side * (width + 20)
        canvas.text(
            x, 8, f"{title}: strongest cells of the blood set (left) and of the marrow set (right)", 14, bold=True
        )
        for number, (column, value, among) in enumerate(ASKED):
            row(
                canvas,
                x,
                34 + number * (SIDE + 62),
                shown,
                values[side],
                load_sae(path),
                stores[side],
                cells,
                column,
                value,
                among,
            )
    canvas.text(10, canvas.image.height - 22, "Research use only. The line encloses where the code is above half of its largest in that cell; "
                "a label in red is another one than the concept was chosen for.", 12, colour=FAINT)  # fmt: skip
    canvas.image.save(Path(__file__).parent / "images" / "default-dictionary.jpg", quality=82, optimize=True)


def pooled(sae: SparseAutoencoder, store: TokenStore, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
    """The largest code of every concept in every cell: float32 [n_cells, n_latents]."""
    rows = store.rows_of(frame["cell_id"].to_numpy(), frame["sha256"].tolist())
    with torch.inference_mode():
        return np.concatenate([sae.encode(store.read(rows[[i]], kind="patch")[0].float()).amax(0)[None].numpy() for i in range(len(rows))])  # fmt: skip


def row(
    canvas: Canvas, x: int, y: int, frame: pd.DataFrame, values: npt.NDArray[Any], sae: SparseAutoencoder, store: TokenStore,
    cells: Cells, column: str, value: str, among: str,
) -> None:  # fmt: skip
    """One concept: its average precision and its strongest cells of both sets."""
    blood = frame["dataset"].eq("acevedo").to_numpy()
    asked = blood & (frame["label"].eq(among).to_numpy() if among else True) & frame[column].notna().to_numpy()
    half = np.arange(len(frame)) % 2 == 0
    positive = frame[column].eq(value).to_numpy() & asked

    def precision(units: npt.NDArray[Any], yes: npt.NDArray[np.bool_], where: npt.NDArray[np.bool_]) -> Any:
        return precisions_of_many(units[where], yes[where][:, None], np.ones((int(where.sum()), 1), bool))[:, 0]

    unit = int(np.argmax(precision(values, positive, asked & half)))
    one = values[:, [unit]]
    what = "" if column == "label" else column.replace("_", " ") + " "
    said = f"{what}{value.replace('_', ' ')}{' among ' + among + 's' if among else ''}: concept {unit}, AP {precision(one, positive, asked & ~half)[0]:.2f}"
    yes = frame["common"].eq(value).to_numpy()
    if column == "label":
        said += f" blood, {precision(one, yes & ~blood, ~blood)[0]:.2f} marrow"
    canvas.text(x, y, said, 13)
    reader = ImageReader(cells.root)
    for group, here in enumerate((asked & ~half, ~blood)):
        best = np.flatnonzero(here)[np.argsort(-one[here, 0], kind="stable")[:SHOWN]]
        for place, at in enumerate(best):
            cell = frame.iloc[at]
            picture = square(decode_image(reader.read(cell["image"], cell["sha256"])).pixels, SIDE)
            tokens = store.read(store.rows_of(np.array([cell["cell_id"]]), [cell["sha256"]]), kind="patch")[0].float()
            outline(picture, sae.encode(tokens)[:, unit].numpy().reshape(store.grid), "#ffe100")
            left = x + group * (SHOWN * (SIDE + GAP) + 12) + place * (SIDE + GAP)
            canvas.paste(left, y + 20, picture)
            right = bool(yes[at]) if column == "label" else bool(positive[at])
            known = column == "label" or group == 0
            label = str(cell["common"] if column == "label" or group else cell[column])
            canvas.text(left, y + 22 + SIDE, label, 11, width=SIDE, colour=FAINT if right or not known else "#c02020")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:6]))
