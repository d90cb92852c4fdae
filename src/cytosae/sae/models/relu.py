"""ReLU with an L1 penalty on the codes (arXiv 2309.08600), the kind the published CytoSAE is."""

from __future__ import annotations

from cytosae.sae.models._base import Model
from cytosae.sae.ops import Rule


class ReluL1(Model):
    """Every positive pre-activation is a code; decoder rows of unit norm keep the penalty from being evaded."""

    name = "relu-l1"

    def rule(self) -> Rule:
        """All positive values."""
        return Rule("relu")
