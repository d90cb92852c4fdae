"""Section 5: does a concept lie where its structure lies? Nucleus and cytoplasm by masks, and planted lesions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cytosae._errors import CytosaeError
from cytosae._progress import say
from cytosae.evaluation._bootstrap import Score, compare, draw_weights, interval
from cytosae.evaluation._context import Context
from cytosae.evaluation._lesions import LESIONS, plant
from cytosae.evaluation._masks import mask_shares
from cytosae.evaluation._regions import UNION, Images, PatchCodes, Side, best_overlap, find_region, in_pieces
from cytosae.evaluation._units import AxisUnits, Units

Array = npt.NDArray[Any]
#: Images with a mask wanted on each side, and taken at most.
MIN_IMAGES, _IMAGES, _IMAGES_FAST = 10, 400, 80
#: Random choices of an equal number of candidates.
_REPEATS, _REPEATS_FAST = 3, 2
ASKED = {"single": "best single concept", "single equal": "best single concept, equal candidates",
         "union": f"union of up to {UNION}", "union equal": f"union of up to {UNION}, equal candidates"}  # fmt: skip
_PRIOR = "mean training mask"


class Localisation:
    """Patch by patch against masks: average precision and IoU of single concepts and unions, and the gain over position."""

    name, version = "localisation", 1
    title = "Localisation"
    question = "Does a concept lie where its structure lies in the image, better than its usual place already says?"

    def missing(self, context: Context) -> str | None:
        """Masks of enough images on both sides, and all patches."""
        if "patch" not in context.kinds() or any(s.sampled for s in context.tokens.stores):
            return "the token store does not hold all patches"
        rows = _with_masks(context)
        n = [int((context.part[rows] == part).sum()) for part in ("choose", "score")]
        if min(n) < MIN_IMAGES:
            return f"masks of at least {MIN_IMAGES} images on both sides are needed (there are {n[0]} and {n[1]})"
        try:
            mask_shares(context.frame.iloc[rows[:1]], context.cells.root, context.tokens.stores[0].grid)
        except CytosaeError:  # its message names a file of this machine, the scorecard may travel
            return "the masks cannot be read where the table says they lie"
        return None

    def measure(self, context: Context) -> dict[str, Any]:
        """See `Section`."""
        rows = _with_masks(context)
        regions = mask_shares(context.frame.iloc[rows], context.cells.root, context.tokens.stores[0].grid)
        tokens = torch.cat([context.read(rows[i : i + 32], "patch") for i in range(0, len(rows), 32)])
        choosing = context.part[rows] == "choose"
        groups = _groups(context, rows)
        units = [*context.units, position_units(context)]
        n_repeats = _REPEATS_FAST if context.fast else _REPEATS
        found = locate(context, units, tokens, regions, choosing, groups, n_repeats)
        notes = [
            "The nucleus lies in the middle of the image, so position alone finds it: what counts is the gain over the mean training mask.",
            f"A patch counts as covered from half of its area on for average precision; IoU takes the share itself. Unions add up to {UNION} scaled units, grown on choosing images while their average precision rises.",
            "Masks come from one laboratory and one stain, drawn by experts; other stains may differ.",
        ]
        n = {"choosing images": int(choosing.sum()), "scored images": int((~choosing).sum()), "regions": len(regions)}
        n_lesions = 0
        left: list[str] = []
        for title, more, n_hosts in _lesions(context, units, n_repeats, left):
            for part in ("comparisons", "tables", "configurations"):
                found[part] += more[part]
            n[f"hosts of {title}"] = n_hosts
            n_lesions += 1
        if n_lesions:
            notes.append(
                "Planted lesions: the square was cut where the donor is palest in a spot (vacuole) or reddest (granules), by colour alone, and pasted with a faded rim; as many images carry a harmless square of another host, which has to stay silent."
            )
        return {
            "comparisons": found["comparisons"], "tables": found["tables"],
            "chosen": "Units, unions and thresholds were chosen on one half of the images, scored on the other; pictures that occur twice stand on one side.",
            "n": n, "notes": notes + [f"Planted lesions were left out: {why}." for why in left],
            "n_configurations": sum(found["configurations"]),
        }  # fmt: skip


def locate(
    context: Context,
    units: Sequence[Units],
    tokens: torch.Tensor,
    regions: dict[str, npt.NDArray[np.float64]],
    choosing: Array,
    groups: Array,
    n_repeats: int,
) -> dict[str, list[Any]]:
    """Find regions by every kind of units.

    Parameters
    ----------
    tokens
        Patch tokens [n, n_patches, d_in] of the images.
    regions
        name -> share of each patch, float64 [n, n_patches].
    choosing, groups
        bool and int [n]: images to choose on; images that are drawn together.

    Returns
    -------
    ``comparisons``, ``tables`` and ``configurations`` (how many were tried, by region)
    """
    weights = draw_weights(groups[~choosing], context.n_draws, context.seed)
    images = {name: Images(share, choosing, weights) for name, share in regions.items()}
    pieces = in_pieces(tokens)
    n_alive = {}
    for one in units:
        with torch.inference_mode():
            fires = torch.zeros(one.n_units, dtype=torch.bool)
            for piece in in_pieces(tokens[torch.from_numpy(choosing)]):
                fires |= (one.encode(piece.flatten(0, 1)) > 0).any(0)
        n_alive[one.name] = int(fires.sum())
    size = min(n_alive[u.name] for u in units if u.name != "position")
    sides: dict[str, dict[str, Side]] = {name: {} for name in regions}
    for one in units:
        say(f"{one.name}: {', '.join(regions)}")
        codes = PatchCodes(one, pieces)
        for name in regions:
            sides[name][one.name] = find_region(codes, images[name], size, n_repeats, context.seed)
        del codes
    titles = {u.name: u.title for u in units}
    comparisons, rows, configurations = [], [], []
    for name, found in sides.items():
        prior, prior_overlap = _prior(images[name])
        for asked, title in ASKED.items():
            ours = found["dictionary"].precision[asked]
            controls = [(n, titles[n], s.precision[asked]) for n, s in found.items() if n != "dictionary"]
            comparisons.append(compare(f"{name}: {title}, AP", ours, [*controls, ("prior", _PRIOR, prior)]))
            if asked in found["dictionary"].overlap:
                ours = found["dictionary"].overlap[asked]
                controls = [(n, titles[n], s.overlap[asked]) for n, s in found.items() if n != "dictionary"]
                comparisons.append(
                    compare(f"{name}: {title}, IoU", ours, [*controls, ("prior", _PRIOR, prior_overlap)])
                )
        for side, s in found.items():
            single, union = s.precision["single"], s.precision["union"]
            rows.append([name, titles[side], s.n_candidates, ", ".join(map(str, s.union.units)), _text(single),
                         _gain(single, prior), _text(union), _gain(union, prior),
                         _text(s.overlap["single"]), _text(s.overlap["union"])])  # fmt: skip
        rows.append([name, _PRIOR, 1, "", _text(prior), 0.0, _text(prior), 0.0, _text(prior_overlap), _text(prior_overlap)])  # fmt: skip
        configurations.append(sum(s.n_candidates for s in found.values()) + len(found) * 48 * (UNION - 1))
    header = ["region", "units", "candidates", "chosen (the first one alone: best single)", "single, AP", "gain over position", "union, AP",
              "gain over position", "single, IoU", "union, IoU"]  # fmt: skip
    table = {"title": ", ".join(regions), "header": header, "rows": rows, "note": "Scored images; 95% interval over images."}  # fmt: skip
    return {"comparisons": comparisons, "tables": [table], "configurations": configurations}


def position_units(context: Context) -> AxisUnits:
    """Position-only directions: the axes along which training tokens differ by place in the image on average, both signs."""
    grid = context.tokens.stores[0].grid
    sample = context.sample
    by_place = sample.view(-1, grid[0] * grid[1], sample.shape[1]).double().mean(0)
    _, size, axes = torch.linalg.svd(by_place - by_place.mean(0), full_matrices=False)
    kept = axes[size > 1e-6 * size[0]]
    signs = kept.gather(1, kept.abs().argmax(1, keepdim=True)).sign()
    return AxisUnits(
        sample.mean(0), (kept * signs).T.float().contiguous(), "position", "position-only directions, both signs"
    )


def _prior(images: Images) -> tuple[Score, Score]:
    """What the mean mask of the choosing images finds on the scored ones: average precision and IoU."""
    mean = images.share[images.choosing].mean(0)
    n = int((~images.choosing).sum())
    everywhere = np.broadcast_to(mean, (int(images.choosing.sum()), len(mean)))
    threshold = best_overlap(everywhere.ravel(), images.share[images.choosing].ravel())
    values = np.broadcast_to(mean, (n, len(mean)))
    return images.precision(values), images.overlap(values, threshold)


def _with_masks(context: Context) -> npt.NDArray[np.int64]:
    """Rows of cells with a mask that take part; where there are too many, the first of each side.

    A scored picture that is among the choosing ones too is left out.
    """
    has = context.frame["mask"].astype("string").fillna("").str.len().gt(0).to_numpy(bool)
    pictures = context.frame["sha256"].astype(str).to_numpy()
    has &= ~((context.part == "score") & np.isin(pictures, pictures[has & (context.part == "choose")]))
    limit = (_IMAGES_FAST if context.fast else _IMAGES) // 2
    return np.sort(np.concatenate([np.flatnonzero(has & (context.part == p))[:limit] for p in ("choose", "score")]))


def _groups(context: Context, rows: Array) -> Array:
    """Cells drawn together: those of one group, and equal files."""
    _, same = np.unique(context.frame["sha256"].astype(str).to_numpy()[rows], return_inverse=True)
    lowest = np.full(int(same.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(lowest, same, context.unit[rows])
    return np.asarray(lowest[same])


def _lesions(context: Context, units: Sequence[Units], n_repeats: int, left: list[str]) -> Any:
    """(name, what was found, hosts) of each lesion that can be planted; why not, of the others, goes into `left`."""
    backbone = context.backbone()
    if isinstance(backbone, str):
        left.append(f"the backbone is needed ({backbone.rstrip('.')})")
        return
    for lesion in LESIONS:
        try:
            planted = plant(context, lesion, *backbone)
        except CytosaeError:
            planted = f"{lesion.name}: the images cannot be read where the table says they lie"
        if isinstance(planted, str):
            left.append(planted)
            continue
        regions = {f"planted {lesion.name}": planted.share}
        found = locate(context, units, planted.tokens, regions, planted.choosing, planted.unit, n_repeats)
        yield lesion.name, found, planted.n_hosts


def _gain(score: Score, prior: Score) -> str:
    return _text(Score(score.value - prior.value, score.draws - prior.draws))


def _text(score: Score) -> str:
    found = interval(score)
    if found["value"] is None or found["low"] is None:
        return "not measurable"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
