"""BatchTopK (arXiv 2412.06410): k codes a token on average, the batch sharing them out."""

from __future__ import annotations

from cytosae.sae.models._base import Model
from cytosae.sae.ops import Rule


class BatchTopK(Model):
    """The ``k * n_tokens`` largest pre-activations of a batch; in inference one calibrated threshold."""

    name = "batchtopk"
    activation = "threshold"

    def rule(self) -> Rule:
        """The largest of the batch."""
        return Rule("batchtopk", k=self.k)
