"""TopK (arXiv 2406.04093): the k largest pre-activations of each token."""

from __future__ import annotations

from cytosae.sae.models._base import Model
from cytosae.sae.ops import Rule


class TopK(Model):
    """A fixed number of codes a token, in training and in inference."""

    name = "topk"
    activation = "topk"

    def rule(self) -> Rule:
        """The `k` largest of each token."""
        return Rule("topk", k=self.k)
