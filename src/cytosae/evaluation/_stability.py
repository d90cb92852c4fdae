"""Section 7: does another start find the same concepts?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._progress import say
from cytosae.evaluation._bootstrap import Score, compare, interval
from cytosae.evaluation._candidates import POOLS, Candidates
from cytosae.evaluation._context import Context
from cytosae.evaluation._matching import HUNGARIAN, code_correlations, codes_of, decoder_cosines, match
from cytosae.evaluation._targets import ATTRIBUTES, targets_of
from cytosae.sae import SparseAutoencoder

Array = npt.NDArray[Any]
#: From which likeness on a concept counts as found again, by decoder and by codes.
SAME = 0.9
_CELLS, _CELLS_FAST, _TOKENS = 200, 60, 30_000
#: Of how many tokens a concept has to fire on at least one in so many to count as alive.
_ALIVE = 10_000


class Stability:
    """Share of alive concepts that other dictionaries have too, and whether the high-scoring ones are among them."""

    name, version = "stability", 1
    title = "Stability"
    question = "Do other seeds and other starts find the same concepts, above all those that score high?"

    def missing(self, context: Context) -> str | None:
        """Another dictionary of the same tokens."""
        if "patch" not in context.kinds():
            return "the token store holds no patch tokens"
        if not context.saes:
            return "only one dictionary was given; give others of the same tokens with --sae"
        return None

    def measure(self, context: Context) -> dict[str, Any]:
        """See `Section`."""
        tokens = _tokens(context)
        codes = codes_of(context.sae, tokens)
        alive = _alive(codes)
        high = _high_scoring(context)
        others: dict[str, SparseAutoencoder] = dict(context.saes)
        random = context.random_dictionary
        by_chance = _compare(context, codes, alive, random, tokens, "random")
        comparisons, rows, kept = [], [], []
        for name, sae in others.items():
            found = _compare(context, codes, alive, sae, tokens, name)
            for by in ("decoder", "codes"):
                ours, control = (_share(f[by][alive] > SAME, context) for f in (found, by_chance))
                comparisons.append(
                    compare(
                        f"found again in {name}, by {by}",
                        ours,
                        [("random", "random directions, fitted decoder", control)],
                    )
                )
                among = np.intersect1d(high, np.flatnonzero(alive))
                best = _share(found[by][among] > SAME, context) if len(among) else None
                rows.append([name, by, found["n"], _text(ours), float((found[by][alive] > 0.7).mean()),
                             float(np.median(found[by][alive])), _text(best) if best else "not measurable",
                             float((by_chance[by][alive] > SAME).mean())])  # fmt: skip
            kept.append(found["decoder"] > SAME)
        tables = [{"title": "Alive concepts found again", "rows": rows,
                   "header": ["in", "by", "alive there", f"likeness above {SAME}", "above 0.7", "median likeness",
                              f"of the {len(high)} high-scoring ones, above {SAME}", "by chance (random directions)"],
                   "note": "95% interval over concepts. Likeness: cosine of decoder directions, or correlation of codes on the same tokens."}]  # fmt: skip
        if len(kept) > 1:
            times = np.sum(kept, axis=0)[alive]
            tables.append({"title": "In how many of the other dictionaries", "header": ["dictionaries", "concepts", "share"],
                           "rows": [[n, int((times == n).sum()), float((times == n).mean())] for n in range(len(kept) + 1)]})  # fmt: skip
        return {
            "comparisons": comparisons, "tables": tables,
            "chosen": "High-scoring concepts are the best single ones of each measurable label and attribute on choosing cells; scored cells' tokens match the codes.",
            "n": {"alive concepts": int(alive.sum()), "tokens": len(tokens), "other dictionaries": len(others), "high-scoring concepts": len(high)},
            "notes": [
                f"Pairs are one to one: the best assignment (Hungarian) up to {HUNGARIAN:,} latents, mutual nearest neighbours above.",
                "A wider or narrower dictionary splits or joins concepts; then a concept may be there and not be found one to one.",
                "Dictionaries that share a start or an order of tokens agree more than independent ones; say how they were made.",
                "Found again does not mean meaningful: artefacts are found again too.",
            ],
            "n_configurations": 1,
        }  # fmt: skip


def _compare(
    context: Context, codes: Any, alive: Array, other: SparseAutoencoder, tokens: Any, name: str
) -> dict[str, Any]:
    """Likeness of every latent of the dictionary to its partner, float32 [n_latents], ``decoder`` and ``codes``; alive there ``n``."""
    say(f"stability: matching with {name}")
    theirs = codes_of(other, tokens)
    a, b = np.flatnonzero(alive), np.flatnonzero(_alive(theirs))
    out: dict[str, Any] = {"n": len(b)}
    for by, likeness in (("decoder", decoder_cosines(context.sae, other, a, b)),
                         ("codes", code_correlations(codes, theirs, a, b))):  # fmt: skip
        out[by] = np.zeros(context.sae.n_latents, np.float32)
        out[by][a] = match(likeness).likeness
    return out


def _alive(codes: Any) -> Array:
    n = np.diff(codes.indptr)
    return np.asarray(n >= max(1, codes.shape[0] // _ALIVE))


def _tokens(context: Context) -> Any:
    """Patch tokens [m, d_in] of some scored cells, at most `_TOKENS`."""
    import torch

    rows = np.flatnonzero(context.part == "score")
    rows = rows if len(rows) else np.arange(len(context.frame))
    rng = np.random.Generator(np.random.Philox(key=[context.seed, 67]))
    limit = _CELLS_FAST if context.fast else _CELLS
    rows = rows if len(rows) <= limit else np.sort(rng.choice(rows, limit, replace=False))
    x = torch.cat([context.read(rows[i : i + 16], "patch").flatten(0, 1) for i in range(0, len(rows), 16)])
    if len(x) > _TOKENS:
        x = x[torch.from_numpy(np.sort(rng.choice(len(x), _TOKENS, replace=False)))]
    return x


def _high_scoring(context: Context) -> npt.NDArray[np.int64]:
    """The best single concept of every measurable label and attribute, on choosing cells."""
    columns = [c for c in ("label", *ATTRIBUTES) if c in context.frame]
    targets = [t for c in columns for t in targets_of(context.frame, context.part, c) if t.measurable]
    if not targets:
        return np.empty(0, np.int64)
    X = {pool: np.asarray(context.features(context.dictionary, pool)) for pool in POOLS}
    choosing = np.logical_or.reduce([t.choose for t in targets])
    candidates = Candidates.of(X, targets, choosing)
    return np.unique([candidates.best(i).unit for i in range(len(targets))])


def _share(hit: Array, context: Context) -> Score:
    """The share of concepts, drawn with replacement."""
    rng = np.random.Generator(np.random.Philox(key=[context.seed, 71]))
    n = max(len(hit), 1)
    draws = [float(hit[rng.integers(len(hit), size=len(hit))].mean()) if len(hit) else np.nan for _ in range(context.n_draws)]  # fmt: skip
    return Score(float(hit.sum()) / n, np.array(draws))


def _text(score: Score) -> str:
    found = interval(score)
    if found["value"] is None or found["low"] is None:
        return "not measurable"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
