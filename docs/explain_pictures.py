"""Draw the pictures of ``docs/explain.md`` and of the tutorials.

Usage: ``python docs/explain_pictures.py CELL_IMAGE FIELD_IMAGE BOXES INDEX CELLS`` where INDEX is an index of the bundled dictionary over cells of at
least two data sets, made with ``cytosae index``, and CELLS its table.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from cytosae import ConceptIndex, load_backbone, read_cells
from cytosae.cells import ImageReader, decode_image
from cytosae.concepts import explain, load_bundle
from cytosae.reports import draw_explanation, explain_files, subjects_of
from cytosae.reports._canvas import FAINT, Canvas, outline, square
from cytosae.reports._explained import caption

IMAGES = Path(__file__).parent / "images"
N, SHOWN, SIDE, GAP = 12, 3, 100, 14


def main(cell: Path, field: Path, boxes: Path, index: Path, cells: Path) -> None:
    """Write all of them."""
    bundle, backbone = load_bundle(), load_backbone("dinov2-s-blood")
    save(draw_explanation(explain(cell, bundle.sae, backbone, n_concepts=7), bundle.reference), "explain")
    with tempfile.TemporaryDirectory() as folder:
        explain_files(subjects_of([field], boxes, 1.3), Path(folder) / "out", bundle.sae, backbone, bundle.sae.info["layer"], index=bundle.index,
                      reference=bundle.reference, n_concepts=3)  # fmt: skip
        save(Image.open(Path(folder) / "out" / "field.png").convert("RGB"), "explain-field", 1100)
    save(twelve(ConceptIndex(index), read_cells(cells), backbone), "bundled-concepts", 1400)


def choose(index: ConceptIndex, frame: pd.DataFrame) -> pd.DataFrame:
    """The twelve concepts by score, with their exemplars of two data sets.

    Score: of the exemplars shown of each data set (at least `SHOWN` each) the share that has the commonest label of all of them, the smaller
    of both; ties go to the more frequent concept. At most three concepts a label; technical ones are left out.
    """
    flagged = set(load_bundle().technical["latent"])
    shown = index.exemplars[index.exemplars["shown"].astype(bool)].merge(
        frame[["cell_id", "dataset", "label"]], on="cell_id"
    )
    rows: list[dict[str, Any]] = []
    for latent, mine in shown.groupby("latent"):
        sets = {name: part for name, part in mine.groupby("dataset") if len(part) >= SHOWN}
        if len(sets) < 2 or latent in flagged:
            continue
        label = mine["label"].mode().iloc[0]
        score = min(float((part["label"] == label).mean()) for part in sets.values())
        rows.append(
            {
                "latent": int(latent),
                "label": label,
                "score": score,
                "frequency": index.concepts["frequency"].iloc[int(latent)],
            }
        )
    best = pd.DataFrame(rows).sort_values(["score", "frequency"], ascending=False, kind="stable")
    return best.groupby("label", sort=False).head(3).head(N).reset_index(drop=True)


def twelve(index: ConceptIndex, cells: Any, backbone: Any) -> Image.Image:
    """Two columns of six concepts; each row: three exemplars of one data set, three of another, with the concept's outline."""
    frame = cells.frame
    rows, chosen, layer = frame.set_index("cell_id"), choose(index, frame), load_bundle().sae.info["layer"]
    print(chosen.to_string())
    bundle, reader = load_bundle(), ImageReader(cells.root)
    width = 2 * SHOWN * (SIDE + 6) + 40
    canvas = Canvas(2 * width + 3 * GAP, 6 * (SIDE + 74) + 30)
    for place, row in enumerate(chosen.itertuples()):
        x, y = GAP + (place % 2) * (width + GAP), 10 + (place // 2) * (SIDE + 74)
        said = next(bundle.said_of([row.latent]).itertuples())
        canvas.text(x, y, f"concept {row.latent}  {caption(said)}", 15, bold=True)
        canvas.text(x, y + 20, f"in {row.frequency:.1%} of cells; {row.score:.0%} or more of each data set's exemplars: {row.label}", 12,
                    colour=FAINT)  # fmt: skip
        mine = index.exemplars_of(row.latent).merge(frame[["cell_id", "dataset", "label"]], on="cell_id")
        for group, (name, part) in enumerate(sorted(mine.groupby("dataset"), key=lambda g: -len(g[1]))[:2]):
            left = x + group * (SHOWN * (SIDE + 6) + 20)
            for number, one in enumerate(part.head(SHOWN).itertuples()):
                found = rows.loc[one.cell_id]
                pixels = decode_image(reader.read(found["image"], found["sha256"])).pixels
                tokens = backbone.tokens(np.stack([backbone.preprocessing.resize(pixels)]), layer)[
                    0, backbone.n_prefix :
                ]
                picture = square(pixels, SIDE)
                outline(picture, bundle.sae.encode(tokens)[:, row.latent].numpy().reshape(backbone.grid), "#ffe100")
                canvas.paste(left + number * (SIDE + 6), y + 40, picture)
            canvas.text(left, y + SIDE + 44, str(name), 12, colour=FAINT)
    canvas.text(GAP, canvas.image.height - 24, "Research use only. The line encloses where the code is above half of its largest in that cell.", 12,
                colour=FAINT)  # fmt: skip
    return canvas.image


def save(picture: Image.Image, name: str, width: int = 1300) -> None:
    """A JPEG small enough for a repository."""
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82, optimize=True)
    (IMAGES / f"{name}.jpg").write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:6]))
