"""One cell explained patch by patch: which concept speaks loudest where, and each of them alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytosae.concepts import rank_concepts
from cytosae.reports._gallery import Gallery, describe, exemplar_pictures
from cytosae.reports._pictures import COLOURS, SIDE, Overlay, jpeg_uri, overlay
from cytosae.reports._run import Run

N_CONCEPTS, N_SIMILAR = 6, 3


@dataclass(frozen=True)
class Part:
    """One of the concepts in a cell."""

    latent: int
    title: str
    number: int
    colour: str
    value: float
    frequency: float
    top_label: str
    n_patches: int
    picture: Overlay
    similar: list[Overlay]


@dataclass(frozen=True)
class ExplainedCell:
    """A cell, the squares in which one of its concepts is the loudest, and the concepts."""

    cell_id: int
    title: str
    name: str
    dataset: str
    image: str
    squares: list[tuple[float, float, float, float, str, float, int]]
    parts: list[Part]
    n_active: int


def explained_cells(run: Run, gallery: Gallery, n: int = 2) -> list[ExplainedCell]:
    """The strongest cell of the concepts that tell their label best on the cells judged, one a label."""
    ranked = sorted(
        (c for c in gallery.concepts if c.chosen_for and c.exemplars and c.on_cell >= 0.8),
        key=lambda c: (-c.auroc, c.latent),
    )
    cells: list[ExplainedCell] = []
    labels: set[str] = set()
    for card in ranked or [c for c in gallery.concepts if c.exemplars]:
        exemplars = run.index.exemplars_of(card.latent)["cell_id"].tolist()
        own = [c for c in exemplars if run.rows.loc[c, "label"] == card.chosen_for] or exemplars
        if card.top_label in labels or any(c.cell_id == own[0] for c in cells):
            continue
        labels.add(card.top_label)
        cells.append(explain_cell(run, int(own[0])))
        if len(cells) == n:
            break
    return cells


def explain_cell(run: Run, cell_id: int) -> ExplainedCell:
    """Explain one cell of a run."""
    codes = run.codes(cell_id)
    maximum = codes.max(0)
    pixels = run.pixels(cell_id)
    score = rank_concepts(codes, run.cell_shares(cell_id), run.index)
    order = [int(i) for i in np.argsort(-score, kind="stable")[:N_CONCEPTS] if score[i] > 0 and maximum[i] > 0]
    concepts = run.index.concepts
    parts = []
    for number, latent in enumerate(order):
        values = codes[:, latent].reshape(run.store.grid)
        known = concepts.loc[latent]
        label = known["top_label"] if isinstance(known["top_label"], str) else "no label"
        picture = overlay(pixels, values, float(values.max()), f"concept {latent}", f"largest code {values.max():.2f}")
        similar = [
            p
            for p in exemplar_pictures(run, run.index, latent, N_SIMILAR + 1)[0]
            if f"{run.cell_name(cell_id)}," not in p.title
        ]
        parts.append(
            Part(
                latent,
                run.title(latent),
                number + 1,
                COLOURS[number],
                float(maximum[latent]),
                float(known["frequency"]),
                label,
                int((values > 0).sum()),
                picture,
                similar[:N_SIMILAR],
            )
        )
    row = run.rows.loc[cell_id]
    return ExplainedCell(
        cell_id,
        run.cell_name(cell_id),
        describe(run, cell_id),
        str(row["dataset"]),
        jpeg_uri(pixels, 2 * SIDE, 90),
        loudest_squares(codes, order, maximum, run.store.grid),
        parts,
        int((maximum > 0).sum()),
    )


def loudest_squares(
    codes: npt.NDArray[np.float32], order: list[int], maximum: npt.NDArray[np.float32], grid: tuple[int, int]
) -> list[tuple[float, float, float, float, str, float, int]]:
    """For each patch where a listed concept is active: x, y, width, height, colour, opacity and number of the loudest.

    Loudness is the code relative to the concept's largest in this cell, so that a strong concept does not drown the rest.
    """
    if not order:
        return []
    relative = codes[:, order] / maximum[order]
    width, height = SIDE / grid[1], SIDE / grid[0]
    squares = []
    for patch in np.flatnonzero(relative.max(1) > 0.15):
        best = int(relative[patch].argmax())
        y, x = divmod(int(patch), grid[1])
        opacity = 0.25 + 0.55 * float(relative[patch, best])
        squares.append((x * width, y * height, width, height, COLOURS[best], opacity, best + 1))
    return squares
