"""The protocol of a classification: which models, on which folds, with which choices."""

from __future__ import annotations

from dataclasses import dataclass, field

from cytosae._errors import UsageError, nearest
from cytosae.patients._profiles import ProfileRule

CONCEPTS, CONCEPTS_L1 = "concept_profile", "concept_profile_l1"
#: What concepts have to be better than.
BASELINES = ("class_token", "mean_tokens", "raw_neurons", "pca", "composition", "n_cells", "file_header",
             "attention_mil", "majority")  # fmt: skip
MODELS = (CONCEPTS, CONCEPTS_L1, *BASELINES)
#: Those that want the tokens themselves.
OF_TOKENS = frozenset({"class_token", "mean_tokens", "raw_neurons", "pca", "attention_mil"})


@dataclass(frozen=True)
class ClassifyConfig:
    """The protocol."""

    n_folds: int = 5
    """Folds; each diagnosis needs as many patients."""
    n_repeats: int = 5
    """Repetitions with other folds; a patient's out-of-fold probabilities are averaged over them."""
    n_inner: int = 3
    """Folds within the training part, in which scaling and C are chosen by log loss."""
    Cs: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
    """Inverse penalties to choose from; the smallest of equals."""
    n_bootstrap: int = 2_000
    """Draws of patients for the intervals."""
    seed: int = 0
    """Of folds and draws."""
    rule: ProfileRule = field(default_factory=ProfileRule)
    """How profiles are counted and concepts filtered."""
    models: tuple[str, ...] = MODELS
    """Models of the table; the concept profile is always there."""
    n_concepts: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    """Sizes for the accuracy against the number of concepts, which are chosen inside the folds."""

    def __post_init__(self) -> None:
        if self.n_folds < 2 or self.n_repeats < 1 or self.n_inner < 2 or not self.Cs or self.n_bootstrap < 100:
            raise UsageError("n_folds and n_inner must be 2 or more, n_repeats 1, n_bootstrap 100, and Cs not empty.")
        for name in self.models:
            if name not in MODELS:
                raise UsageError(f"There is no model {name!r}{nearest(name, MODELS)}.")
        if any(n < 1 for n in self.n_concepts):
            raise UsageError("n_concepts must be 1 or more.")
