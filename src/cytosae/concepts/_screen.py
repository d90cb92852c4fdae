"""Codes that equal a float32 encode at nearly the speed of a bfloat16 product: bfloat16 proposes, float32 decides.

The product of rounded tokens and rounded weights misses the true pre-activation by at most

    |x.w - x'.w'| <= |x - x'| |w| + |x'| |w - w'|      (Cauchy and Schwarz; both differences are measured, not guessed)

and by the rounding of its sums and of its result. Each latent's bias is raised by that much, so that whatever may be a code
comes out positive: no code is ever lost. Every candidate is then computed again in float32 from the unrounded token
and weight, one dot product each, so that a token's codes depend neither on the other tokens nor on how they are cut into
chunks. Latents whose bias is so low that no token of the chunk can reach it are left out of the product.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from cytosae.concepts._codes import Codes
from cytosae.concepts._reach import Reach
from cytosae.sae import SparseAutoencoder

#: Tokens a product: its result [ROWS, n_latents] in bfloat16 is written into one buffer again and again.
ROWS = 512
#: Twice the unit roundoffs of bfloat16 and float32.
_U16, _U32 = 2.0**-8, 2.0**-23


class ScreenedEncoder:
    """bfloat16 proposes, float32 decides: an `Encoder`.

    Attributes
    ----------
    n_tokens, n_candidates, n_codes
        What was seen, proposed, and active.
    n_misjudged
        Candidates on the wrong side of the threshold in bfloat16 alone: how often the screen by itself would have erred.
    n_skipped
        Pre-activations that were never computed, since they provably cannot be codes.
    """

    path, aligned = "bfloat16 proposes, float32 decides", False

    def __init__(self, sae: SparseAutoencoder) -> None:
        # a latent's numbers lie together: bfloat16 runs twice as fast, rows gather
        self.weights = sae.W_enc.T.contiguous()
        self.b_enc, self.b_dec = sae.b_enc.float(), sae.b_dec.float()
        self.threshold = sae.threshold.clamp(min=0) if sae.threshold is not None else torch.zeros(sae.n_latents)
        self.rounded = self.weights.bfloat16()
        self.reach = Reach(self.weights)
        self.norm = self.reach.norm
        self.norm_error = (self.weights - self.rounded.float()).norm(dim=1)
        self.norm_rounded = self.rounded.float().norm(dim=1)
        self.kept_weights = self.rounded
        self.buffer = torch.empty(ROWS * sae.n_latents, dtype=torch.bfloat16)
        self.n_tokens = self.n_candidates = self.n_codes = self.n_misjudged = self.n_skipped = 0

    def __call__(self, x: torch.Tensor) -> Codes:
        """Codes of tokens, float32 [n, d_in]."""
        centred = x.float() - self.b_dec
        parts = self._pieces(centred) if len(x) else []
        counts = torch.cat([p[0] for p in parts]) if parts else torch.empty(0, dtype=torch.int64)
        row_start = torch.zeros(len(x) + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=row_start[1:])
        latent = torch.cat([p[1] for p in parts]) if parts else torch.empty(0, dtype=torch.int32)
        value = torch.cat([p[2] for p in parts]) if parts else torch.empty(0)
        self.n_tokens += len(x)
        self.n_codes += len(value)
        return Codes(row_start, latent, value, len(self.norm))

    def candidate_share(self, x: torch.Tensor) -> float:
        """Share of the pre-activations of some tokens that would be candidates; leaves the counts alone."""
        centred = x.float() - self.b_dec
        rounded, margin = self._margins(centred)
        bias = self._bias(centred, margin)
        counts = [len(self._propose(piece, bias)[1]) for piece in torch.split(rounded, ROWS)]
        self._forget()
        return sum(counts) / max(len(x) * len(self.norm), 1)

    def take_counts(self) -> dict[str, int]:
        """What was counted since the last call; what was learned of latents that cannot fire is forgotten too."""
        out = {
            "n_tokens": self.n_tokens, "n_codes": self.n_codes, "n_candidates": self.n_candidates,
            "n_misjudged_by_screen": self.n_misjudged, "n_skipped": self.n_skipped,
        }  # fmt: skip
        self.n_tokens = self.n_candidates = self.n_codes = self.n_misjudged = self.n_skipped = 0
        self._forget()
        return out

    def _forget(self) -> None:
        self.reach.forget()
        self.kept_weights = self.rounded

    def _pieces(self, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Codes of centred tokens, `ROWS` at a time: number a token, latents, values."""
        rounded, margin = self._margins(x)
        bias = self._bias(x, margin)
        out = []
        for piece, screened in zip(torch.split(x, ROWS), torch.split(rounded, ROWS), strict=True):
            counts, latent, guess = self._propose(screened, bias)
            self.n_candidates += len(latent)
            self.n_skipped += len(piece) * (len(self.norm) - len(self.reach.kept))
            value = self._recompute(piece, counts, latent)
            active = value > self.threshold[latent]
            self.n_misjudged += int(((guess > margin[latent]) != active).sum())
            row = torch.repeat_interleave(torch.arange(len(piece)), counts)[active]
            out.append((torch.bincount(row, minlength=len(piece)), latent[active].to(torch.int32), value[active]))
        return out

    def _margins(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens in bfloat16, and for each latent a bound on the error of the screened pre-activation."""
        rounded = x.bfloat16()
        error = float((x - rounded.float()).norm(dim=1).max())
        size = float(rounded.float().norm(dim=1).max())
        margin = error * self.norm + size * self.norm_error
        # sums of d products in float32, in whatever order
        margin += size * self.norm_rounded * (x.shape[1] + 8) * _U32
        # near zero the product is about minus the bias: it may be rounded to bfloat16, and the bias is
        return rounded, 1.02 * margin + 1.01 * _U16 * (self.b_enc - self.threshold).abs()

    def _bias(self, x: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
        """Bias of the product, in bfloat16: what lifts every possible code above zero; latents that cannot fire are left out."""
        lifted = self.b_enc - self.threshold + margin
        if self.reach.widen(x, lifted):
            self.kept_weights = self.rounded if self.reach.whole else self.rounded[self.reach.kept]
        return (lifted if self.reach.whole else lifted[self.reach.kept]).bfloat16()

    def _propose(self, rounded: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Candidates in row order: number a token, latents, and screened distance from the threshold plus the margin."""
        n, width = len(rounded), len(self.reach.kept)
        out = self.buffer[: n * width].view(n, width)
        torch.addmm(bias, rounded, self.kept_weights.T, out=out)
        # the sign and the order of positive bfloat16 numbers are those of their bits
        found = np.flatnonzero(out.view(torch.int16).numpy().ravel() > 0)
        row, column = np.divmod(found, max(width, 1))
        counts = torch.from_numpy(np.bincount(row, minlength=n))
        guess = out.view(-1)[torch.from_numpy(found)].float()
        return counts, self.reach.kept[torch.from_numpy(column)], guess

    def _recompute(self, x: torch.Tensor, counts: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Pre-activations of the candidates in float32, one dot product each."""
        row_start = torch.zeros(len(x) + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=row_start[1:])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its sparse rows a beta
            pattern = torch.sparse_csr_tensor(
                row_start, latent, self.b_enc[latent], size=(len(x), len(self.norm)), check_invariants=False
            )
            found: torch.Tensor = torch.sparse.sampled_addmm(pattern, x, self.weights.T).values()
        return found
