"""The same concepts on another origin: blood beside bone marrow, which the dictionary never saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from cytosae.concepts import indexed_cells
from cytosae.patients import trained_among
from cytosae.reports._axis import LogAxis
from cytosae.reports._gallery import Gallery, exemplar_pictures
from cytosae.reports._pictures import Overlay
from cytosae.reports._run import Run
from cytosae.reports._select import label_auroc

#: Labels that name the same cells in the two sets.
SAME_LABEL = {"ig": "promyelocyte"}
_WIDTH, _HEIGHT = 520, 470
_BOX = (58.0, 14.0, 505.0, 420.0)
_N_ROWS, _N_PICTURES = 8, 4
#: A concept counts as active in a set when so large a share of its cells carries it.
ACTIVE = 0.01


@dataclass(frozen=True)
class TransferDot:
    """One concept: its place in the plot, and what pointing at it says."""

    x: float
    y: float
    latent: int
    title: str
    shown: bool


@dataclass(frozen=True)
class TransferRow:
    """One concept on both sides; an AUROC is None where the label does not occur."""

    latent: int
    label: str
    other_label: str | None
    frequency: float
    other_frequency: float
    auroc: float
    other_auroc: float | None
    pictures: list[Overlay]
    other_pictures: list[Overlay]


@dataclass(frozen=True)
class Transfer:
    """All that the page shows of the second origin."""

    n: int
    n_other: int
    n_seen: int | None
    fewest: int
    jaccard: float
    correlation: float
    rows: list[TransferRow]
    dots: list[TransferDot]
    width: int
    height: int
    box: tuple[float, float, float, float]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    diagonal: tuple[float, float, float, float]


def transfer(run: Run, gallery: Gallery, name: str = "index-marrow") -> Transfer | None:
    """Frequencies, agreement, and the concepts of the gallery side by side; None where the run has no such index."""
    other = run.other_index(name)
    if other is None:
        return None
    here, there = (i.concepts["frequency"].to_numpy(float) for i in (run.index, other))
    active, active_there = here > ACTIVE, there > ACTIVE
    both = float((active & active_there).sum()) / max(int((active | active_there).sum()), 1)
    alive = (here > 0) & (there > 0)
    across, up = LogAxis.over(here, _BOX[0], _BOX[2]), LogAxis.over(there, _BOX[3], _BOX[1])
    shown = set(gallery.latents)
    dots = [
        TransferDot(across.at(here[i]), up.at(there[i]), int(i),
                    f"Concept {i}: in {here[i]:.1%} of blood cells, {there[i]:.1%} of marrow cells", int(i) in shown)
        for i in np.flatnonzero((here > 0) | (there > 0))
    ]  # fmt: skip
    dots.sort(key=lambda d: d.shown)
    low, high = max(across.low, up.low), min(across.high, up.high)
    trained, _ = trained_among(run.cells.frame, run.cells, other, run.sae_manifest)
    shown_there = run.cells.frame["cell_id"].isin(indexed_cells(other, run.cells)["cell_id"])
    rows = _rows(run, gallery, name)
    fewest = min((int(other.manifest["labels"][r.other_label]) for r in rows if r.other_label), default=0)
    return Transfer(
        run.index.n_cells, other.n_cells, None if trained is None else int((trained & shown_there).sum()), fewest, both, float(stats.spearmanr(here[alive], there[alive]).statistic),
        rows, dots, _WIDTH, _HEIGHT, _BOX, across.ticks(), up.ticks(),
        (across.at(10**low), up.at(10**low), across.at(10**high), up.at(10**high)),
    )  # fmt: skip


def _rows(run: Run, gallery: Gallery, name: str) -> list[TransferRow]:
    """For each label that occurs on both sides the concept that was chosen for it first."""
    other, matrix = run.other_index(name), run.matrix(name)
    assert other is not None
    there = set(other.manifest["labels"])
    rows: list[TransferRow] = []
    for card in gallery.concepts:
        if not card.chosen_for or any(r.label == card.chosen_for for r in rows):
            continue
        label = SAME_LABEL.get(card.chosen_for, card.chosen_for)
        if label not in there:
            continue
        auroc = None
        if matrix is not None:
            auroc = float(label_auroc(matrix.maximum[:, [card.latent]], matrix.obs["label"].to_numpy(str), label)[0])
        rows.append(
            TransferRow(
                card.latent, card.chosen_for, label, card.frequency, float(other.concepts["frequency"][card.latent]),
                card.auroc, auroc, card.exemplars[:_N_PICTURES],
                exemplar_pictures(run, other, card.latent, _N_PICTURES)[0],
            )
        )  # fmt: skip
    return rows[:_N_ROWS]
