"""Every number that an adaptation depends on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from cytosae._errors import UsageError


@dataclass(frozen=True)
class Adaptation:
    """The configuration of `adapt`.

    Attributes
    ----------
    frozen
        Share of the network's blocks, from the first on, that stay as they are; what they give is computed once.
    views
        Stored views of a cell: so many halves as many geometries, each stained in two ways. Even.
    batch
        Cells a step, two views of each.
    steps
        Steps in all.
    lr
        Largest rate of AdamW, that of the last trained block; it falls along a half cosine to a fiftieth.
    warmup
        Steps of linear warm-up.
    layer_decay
        The rate of each earlier block is so much of the next one's.
    weight_decay
        Of the matrices of the trained blocks and of the heads.
    same
        Share of the steps that compare two stains of one geometry; the others compare two geometries.
    masked
        Share of the views in which rectangles over a tenth to half of the patches are hidden from the student.
    also
        Of two stains of one geometry: share of the patches compared besides the hidden ones.
    feature
        Numbers to which a head brings a token.
    class_prototypes, patch_prototypes
        Prototypes in which the class token's, and a patch's share is told.
    class_kept, patch_kept
        Earlier outputs of the teacher over which its shares are balanced.
    student, teacher
        Temperatures.
    momentum
        How slowly the teacher follows at the start; at the end it stands still.
    spread
        Weight of the term that keeps class tokens apart (KoLeo).
    """

    frozen: float = 0.5
    views: int = 4
    batch: int = 16
    steps: int = 1_630
    lr: float = 1.5e-4
    warmup: int = 80
    layer_decay: float = 0.8
    weight_decay: float = 0.04
    same: float = 0.7
    masked: float = 0.7
    also: float = 0.35
    feature: int = 96
    class_prototypes: int = 256
    patch_prototypes: int = 1_024
    class_kept: int = 2_048
    patch_kept: int = 12_000
    student: float = 0.1
    teacher: float = 0.06
    momentum: float = 0.99
    spread: float = 0.05

    def __post_init__(self) -> None:
        checks = {
            "frozen": 0 <= self.frozen < 1,
            "views": self.views >= 2 and self.views % 2 == 0,
            "batch": self.batch >= 2,
            "steps": self.steps >= 1,
            "lr": 0 < self.lr < 1,
            "warmup": self.warmup >= 0,
            "layer_decay": 0 < self.layer_decay <= 1,
            "weight_decay": 0 <= self.weight_decay < 1,
            "same": 0 <= self.same <= 1 and (self.same == 1 or self.views >= 4),
            "masked": 0 <= self.masked <= 1,
            "also": 0 < self.also <= 1,
            "feature": self.feature >= 2,
            "class_prototypes": self.class_prototypes >= 2,
            "patch_prototypes": self.patch_prototypes >= 2,
            "class_kept": self.class_kept >= 2 * self.batch,
            "patch_kept": self.patch_kept >= 1,
            "student": 0 < self.student <= 1,
            "teacher": 0 < self.teacher <= 1,
            "momentum": 0 <= self.momentum < 1,
            "spread": 0 <= self.spread < 10,
        }
        for name, fine in checks.items():
            if not fine:
                more = " (two geometries need views=4 or more, or same=1)" if name == "same" else ""
                raise UsageError(f"{name}={getattr(self, name)} is not a possible value of an adaptation{more}.")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return dataclasses.asdict(self)
