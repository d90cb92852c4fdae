"""The concepts worth looking at: exemplars with the map over them, statistics, and label shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cytosae.concepts import CellsByConcepts, ConceptIndex, named_concepts
from cytosae.evaluation import on_cell_share
from cytosae.reports._pictures import Overlay, overlay
from cytosae.reports._run import Run
from cytosae.reports._select import MIN_ACTIVE, choose_concepts

N_SHOWN = 8
#: Concepts shown where they are chosen by their exemplars alone, and so many tried for them: one off the cell follows, as a warning.
_N_BY_EXEMPLARS, _TRIED = 15, 80


@dataclass(frozen=True)
class Share:
    """One label's bar: in how many of its cells the concept is active."""

    label: str
    n_active: int
    n: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.n_active / self.n if self.n else 0.0


@dataclass(frozen=True)
class Card:
    """A concept as the page shows it."""

    latent: int
    chosen_for: str | None
    name: str | None
    named_by: str | None
    headline: str
    exemplars: list[Overlay]
    frequency: float
    mean_activation: float
    max_activation: float
    label_entropy: float
    auroc: float
    on_cell: float
    n_judged: int
    n_top: int
    top_label: str
    shares: list[Share]


@dataclass(frozen=True)
class Gallery:
    """All cards, and how they were chosen: on an index of other cells (`chosen_apart`), by their exemplars' labels alone (else by all cells)."""

    concepts: list[Card]
    chosen_apart: bool
    by_exemplars: bool
    n_labels: int

    @property
    def latents(self) -> list[int]:
        """The concepts shown."""
        return [card.latent for card in self.concepts]


def make_gallery(run: Run) -> Gallery:
    """Choose concepts on the training part (where its index is there) and draw them on the other cells."""
    chosen = choose(run)
    names = named_concepts(run.index)
    matrix, n_labels = run.matrix("index"), len(run.index.manifest["labels"])
    by_exemplars = matrix is None or not n_labels
    cards = [_card(run, run.index, names, row, by_exemplars) for row in chosen.itertuples()]
    chosen_apart = run.matrix("index-train") is not None and matrix is not None and n_labels > 0
    return Gallery(cards, chosen_apart, by_exemplars, n_labels)


def choose(run: Run) -> pd.DataFrame:
    """The concepts to show; without cells x concepts those on the cell whose exemplars agree most in their label."""
    test: CellsByConcepts | None = run.matrix("index")
    if test is not None and run.index.manifest["labels"]:
        train = run.matrix("index-train")
        chosen_on = run.other_index("index-train") if train is not None else run.index
        return choose_concepts(
            train if train is not None else test,
            test,
            run.index,
            lambda latent: on_cell(run, chosen_on or run.index, latent),
        )
    table = run.index.concepts
    best = table[table["n_cells_active"] >= max(1, min(MIN_ACTIVE, run.index.n_cells))].sort_values(
        ["top_label_share", "max_activation"], ascending=False, kind="stable"
    )
    shown, off = list[int](), list[int]()
    for latent in best["latent"].head(_TRIED):
        (shown if on_cell(run, run.index, int(latent)) >= 0.5 else off).append(int(latent))
        if len(shown) == _N_BY_EXEMPLARS:
            break
    return pd.DataFrame({"latent": [*shown, *off[:1]], "label": None, "auroc_chosen": np.nan, "auroc": np.nan})


def exemplar_pictures(run: Run, index: ConceptIndex, latent: int, n: int) -> tuple[list[Overlay], float]:
    """The first `n` exemplars with the map over them, and the share of the concept that lies on the cell."""
    rows = index.exemplars_of(latent).head(n)
    maps, shares, pictures = [], [], []
    top = float(rows["value"].max()) if len(rows) else 0.0
    for row in rows.itertuples():
        cell_id = int(row.cell_id)
        pixels = run.pixels(cell_id)
        values = run.maps(cell_id, [latent])[0]
        maps.append(values)
        shares.append(run.cell_shares(cell_id))
        pictures.append(
            overlay(
                pixels, values, top, describe(run, cell_id), f"{run.cell_name(cell_id)}, activation {row.value:.2f}"
            )
        )
    if not pictures:
        return [], float("nan")
    return pictures, on_cell_share(np.stack(maps), np.stack(shares))


def on_cell(run: Run, index: ConceptIndex, latent: int) -> float:
    """The share of a concept that lies on the cell, over its first exemplars in an index."""
    cell_ids = [int(c) for c in index.exemplars_of(latent).head(N_SHOWN)["cell_id"]]
    if not cell_ids:
        return float("nan")
    maps = np.stack([run.maps(c, [latent])[0] for c in cell_ids])
    return on_cell_share(maps, np.stack([run.cell_shares(c) for c in cell_ids]))


def describe(run: Run, cell_id: int) -> str:
    """The label of a cell, the finer one where it is known and says more."""
    row = run.rows.loc[cell_id]
    label = row["label"] if isinstance(row["label"], str) else "no label"
    fine = row.get("fine_label")
    if isinstance(fine, str) and len(fine) > 3 and fine != label and not fine.endswith("unspecified"):
        return fine.replace("_", " ")
    return label


def _card(run: Run, index: ConceptIndex, names: pd.DataFrame, row: Any, by_exemplars: bool) -> Card:
    latent = int(row.latent)
    known = names.loc[latent]
    named = isinstance(known["name"], str)
    pictures, on_cell = exemplar_pictures(run, index, latent, N_SHOWN)
    shares = index.labels[index.labels["latent"] == latent].set_index("label")["n_cells_active"]
    counts = index.manifest["labels"]
    bars = [Share(label, int(shares.get(label, 0)), int(n)) for label, n in counts.items()]
    bars.sort(key=lambda b: (-b.share, b.label))
    n_judged = int(min(10, known["n_cells_active"]))
    share = known["top_label_share"]
    n_top = round(float(share) * n_judged) if share == share else 0
    top_label = known["top_label"] if isinstance(known["top_label"], str) else "–"
    return Card(
        latent=latent,
        chosen_for=row.label if isinstance(row.label, str) else None,
        name=known["name"] if named else None,
        named_by=known["named_by"] if named else None,
        headline=_headline(row, by_exemplars, on_cell, n_top, n_judged, top_label if bars else None),
        exemplars=pictures,
        frequency=float(known["frequency"]),
        mean_activation=float(known["mean_activation"]),
        max_activation=float(known["max_activation"]),
        label_entropy=float(known["label_entropy"]),
        auroc=float(row.auroc),
        on_cell=on_cell,
        n_judged=n_judged,
        n_top=n_top,
        top_label=top_label,
        shares=bars,
    )


def _headline(row: Any, by_exemplars: bool, on_cell: float, n_top: int, n_judged: int, top_label: str | None) -> str:
    """What is known at a glance; `top_label`: None where no cell has a label."""
    if top_label is not None and (isinstance(row.label, str) or by_exemplars):
        where = "" if on_cell >= 0.5 else ", but mostly off the cell in the middle"
        return f"{n_top} of the {n_judged} strongest cells: {top_label}{where if by_exemplars else ''}"
    if on_cell < 0.5:
        return "Mostly off the cell in the middle"
    return "On the cell; no cell has a label" if top_label is None else "Not tied to a cell type, on the cell"
