"""Codes that equal a float32 encode at the speed of integer products: integers propose, float32 decides, all compiled.

`cytosae.sae.ops.native` bounds what rounding to integers may miss (Cauchy and Schwarz, from the rounding errors as measured)
and proposes every latent that could reach its threshold; each is then one float32 dot product of the unrounded token and
weight, its partial sums in an order that is fixed by `d_in`. So a token's codes depend neither on the other tokens, nor on how
they are cut into chunks, nor on the bits of the integers.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cytosae.concepts._codes import Codes
from cytosae.concepts._reach import Reach
from cytosae.sae import SparseAutoencoder
from cytosae.sae.ops import Rule
from cytosae.sae.ops.native import NativePath

#: Twice the unit roundoff of float32.
_U32 = 2.0**-23


class NativeEncoder:
    """Integers propose, float32 decides: an `Encoder`, for every activation.

    Attributes
    ----------
    n_tokens, n_candidates, n_codes
        What was seen, proposed, and active.
    n_misjudged
        Candidates on the wrong side of the threshold by the integers alone (with ``topk``: of zero).
    n_skipped
        Pre-activations that were never computed, since they provably cannot be codes.
    """

    path, aligned = "integers propose, float32 decides", False

    def __init__(self, sae: SparseAutoencoder) -> None:
        with torch.inference_mode(False):  # the path keeps the integers of tensors that know when they change
            rows = sae.W_enc.float().T.clone(memory_format=torch.contiguous_format)
        self.b_enc, self.b_dec, self.rule = sae.b_enc.float(), sae.b_dec.float(), sae.rule()
        self.threshold = torch.zeros(sae.n_latents)
        if sae.threshold is not None and sae.activation == "threshold":
            self.threshold = sae.threshold.float().clamp(min=0)
            self.rule = Rule("threshold", threshold=self.threshold)
        self.reach = Reach(rows)
        self._start()
        self.n_tokens = self.n_codes = self.n_skipped = 0

    @property
    def n_candidates(self) -> int:
        return self._native.n_candidates

    @property
    def n_misjudged(self) -> int:
        return self._native.n_misjudged

    def __call__(self, x: torch.Tensor) -> Codes:
        """Codes of tokens, float32 [n, d_in]."""
        n_latents = len(self.reach.weights)
        if not len(x):
            return Codes(
                torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.int32), torch.empty(0), n_latents
            )
        centred = x.float() - self.b_dec
        off = float(centred.norm(dim=1).max()) * (x.shape[1] + 8) * _U32 * self.reach.norm
        if self.reach.widen(centred, self.b_enc - self.threshold + off):
            self._narrow()
        found = self._native.select(centred, self._rows, self._bias, self._rule)
        self.n_tokens += len(x)
        self.n_codes += len(found.value)
        self.n_skipped += len(x) * (n_latents - len(self.reach.kept))
        latent = found.latent if self.reach.whole else self.reach.kept[found.latent.long()].to(torch.int32)
        return Codes(found.row_start, latent, found.value, n_latents)

    def candidate_share(self, x: torch.Tensor) -> float:
        """Share of the pre-activations of some tokens that would be candidates; leaves the counts alone."""
        probe = NativePath(proven=True)
        probe.select(x.float() - self.b_dec, self.reach.weights, self.b_enc, self.rule)
        return probe.n_candidates / max(len(x) * len(self.b_enc), 1)

    def take_counts(self) -> dict[str, int]:
        """What was counted since the last call; what was learned of latents and of the sizes of codes is forgotten too."""
        out = {
            "n_tokens": self.n_tokens, "n_codes": self.n_codes, "n_candidates": self.n_candidates,
            "n_misjudged_by_screen": self.n_misjudged, "n_skipped": self.n_skipped,
        }  # fmt: skip
        self.n_tokens = self.n_codes = self.n_skipped = 0
        self.reach.forget()
        self._start()
        return out

    def _start(self) -> None:
        """Begin with all latents and no memory: the counts of a shard do not depend on the shards before it."""
        self._native = NativePath(proven=True)
        self._narrow()

    def _narrow(self) -> None:
        """The rows, biases and thresholds of the latents that are kept."""
        kept = self.reach.kept
        if self.reach.whole:
            self._rows, self._bias, self._rule = self.reach.weights, self.b_enc, self.rule
            return
        with torch.inference_mode(False):
            self._rows = self.reach.weights[kept.clone()]
        self._bias = self.b_enc[kept]
        threshold = None if self.rule.threshold is None else self.rule.threshold[kept]
        self._rule = replace(self.rule, threshold=threshold)
