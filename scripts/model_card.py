"""The model card of a packaged dictionary, in Markdown, from what its parts say of themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from cytosae.backbones import layer_text
from cytosae.concepts import Bundle

#: Suggestions and flags listed.
N_SUGGESTED, N_TECHNICAL = 40, 40
#: Scores with one of these words lie between 0 and 1.
_SHARES = frozenset({"AP", "F1", "IoU", "accuracy", "found"})
LIMITS = """- It reads tokens of the backbone and block named above and no others; `explain` checks this.
- It has seen the cells of one laboratory, one stain and one microscope. On other origins concepts may mean something else, or
  nothing. `cytosae compare` shows how they move.
- Suggested captions are statistics of exemplars, not names: a concept may follow what the label goes along with (colour,
  size, focus). No expert has looked at them.
- How unusual an image is says how far it is from the known cells as a whole, not whether a cell is ill.
- Concepts are correlated with each other and with the labels; that one is strong in a cell does not say why.
"""

_ABOUT_REPEATS = """An interval beside a score draws cells: it says how far the score of this very dictionary may lie from that on all such cells. The column
*another training* says what the same command gives when it trains again, with another seed or on another processor, where sums are rounded otherwise: the 95%
prediction interval for one more dictionary, from those that were scored.
"""

_ABOUT_LONGER = """The last column: dictionaries that were trained for longer on the same tokens: the difference of the means over seeds, and its 95% interval (Welch).
"""


def model_card(
    bundle: Bundle,
    *,
    data: Sequence[str],
    kept_out: Sequence[str],
    scorecards: Mapping[str, Mapping[str, Any]],
    command: str,
    repeats: Sequence[Mapping[str, Any]] = (),
    longer: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Markdown of the card.

    Parameters
    ----------
    bundle
        All but the card.
    data
        One line a data set: name, cells, credit and licence.
    kept_out
        Data sets that were kept out of the dictionary.
    scorecards
        Title -> content of a ``scorecard.json``.
    command
        The command that makes it.
    repeats
        Contents of ``scorecard.json`` of other dictionaries by the same command, with another seed or on another processor.
    longer
        The same of dictionaries that were trained for longer on the same tokens, one a seed.
    """
    sae, index, reference = bundle.sae, bundle.index, bundle.reference
    info, recipe = sae.info, sae.info["hyperparameters"]
    parts = [
        f"# The bundled dictionary `{bundle.folder.name}`\n",
        f"{sae.n_latents:,} concepts of blood cells, as {info['backbone']['name']} sees them. **Research use only: nothing here is a "
        "diagnosis.**\n",
        "## Data\n",
        *[f"- {line}" for line in data],
        f"- Trained on {info['n_cells_train']:,} cells ({info['n_tokens_train']:,} patch tokens), chosen by "
        f"`{' and '.join(_where(sae)) or 'all'}`. Kept out of training: {', '.join(kept_out) or 'nothing'}.",
        f"- Statistics, exemplars and suggestions: {index.n_cells:,} cells (`{' and '.join(index.manifest['config']['where']) or 'all'}`). "
        f"Reference set: {len(reference.cells):,} of them, with pictures of 64 x 64 pixels.\n",
        "## Licence\n",
        "The weights: MIT, as the rest of this package. The small pictures of the reference set keep the licence of their data "
        "set (above); credit their authors.\n",
        "## Recipe\n",
        f"`{info['recipe']}` ({recipe['model']}): expansion {recipe['expansion']:g}, k {recipe['k']:g}, {recipe['presentations']:,} "
        f"presentations, learning rate {recipe['lr']:g}, seed {info['seed']}; tokens of {layer_text(info['layer'])}, {recipe['tokens']} tokens only. "
        f"Matrices stored in float16 and used in float32. Made by:\n\n```\n{command}\n```\n",
        f"- dictionary: `{sae.hash}`\n- index: `{index.hash}`\n- backbone: `{info['backbone']['sha256']}`\n",
        "## Scorecard\n",
    ]
    if not scorecards:
        parts.append(
            "Not measured yet for this dictionary: give `--scorecard TITLE=scorecard.json` of `cytosae evaluate`.\n"
        )
    for title, card in scorecards.items():
        parts += _scores(title, card, repeats, longer)
    parts += ["## What is no cell\n", _refusals(reference.manifest.data, reference.known.limit)]
    parts += [
        "## Suggested captions\n",
        _suggestions(bundle),
        "## Known technical concepts\n",
        _technical(bundle.technical),
    ]
    parts += ["## Limits\n", LIMITS]
    return "\n".join(parts).rstrip() + "\n"


def _where(sae: Any) -> list[str]:
    return [str(w) for w in sae.info.get("where", [])]


def _scores(
    title: str,
    card: Mapping[str, Any],
    repeats: Sequence[Mapping[str, Any]] = (),
    longer: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """A table of one scorecard's comparisons, each with its interval, its best control, and what other trainings would score."""
    cells = card.get("cells", {})
    again, long = [_values(c) for c in (card, *repeats)], [_values(c) for c in longer]
    columns, about = [], [f"{cells.get('n', 0):,} cells, {cells.get('n_score', 0):,} of them scored; 95% intervals.\n"]
    rows: list[list[str]] = []
    if len(again) > 2:
        columns.append(f"another training ({len(again)} dictionaries)")
        about.append(_ABOUT_REPEATS)
    compared = [difference(_of(again, key), _of(long, key)) for key in _keys(card)]
    if len(again) > 2 and len(long) > 2:
        columns.append(f"trained for longer ({len(long)}), less this ({len(again)})")
        about.append(_about_longer(compared))
    for section in card.get("sections", []):
        for one in section.get("comparisons", []):
            controls = [c for c in one.get("controls", []) if c.get("value") is not None]
            best = max(controls, key=lambda c: c["value"], default=None)
            beside = f"{best.get('title', best['name'])}: {_interval(best)}" if best else "none"
            row = [section["title"], one["what"], _interval(one["dictionary"]), beside, one.get("verdict", "")]
            if len(again) > 2:
                share = any(word in _SHARES for word in one["what"].replace(",", " ").split())
                row.append(another_training(_of(again, (section["title"], one["what"])), share=share))
            if len(again) > 2 and len(long) > 2:
                found = compared[len(rows)]
                row.append(f"{found[0]:+.3f} ({found[1]:+.3f} to {found[2]:+.3f})" if found else "")
            rows.append(row)
    for name, why in card.get("skipped", {}).items():
        rows.append([name, f"left out: {why}", *[""] * (3 + len(columns))])
    head = ["part", "measure", "dictionary", "best control", "verdict", *columns]
    lines = [head, ["---"] * len(head), *rows]
    return [f"### {title}\n", *about, *(f"| {' | '.join(line)} |" for line in lines), ""]


def _keys(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(s["title"], c["what"]) for s in card.get("sections", []) for c in s.get("comparisons", [])]


def _values(card: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    scored = [c["dictionary"].get("value") for s in card["sections"] for c in s.get("comparisons", [])]
    return dict(zip(_keys(card), scored, strict=True))


def _of(cards: Sequence[Mapping[tuple[str, str], Any]], key: tuple[str, str]) -> list[float]:
    return [c[key] for c in cards if c.get(key) is not None]


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean of `theirs` less that of `ours` and its 95% interval by Welch's t; None for fewer than three of either.

    Welch 1947, "The generalization of Student's problem when several different population variances are involved",
    Biometrika 34(1/2).
    """
    if min(len(ours), len(theirs)) < 3:
        return None
    a, b = np.asarray(theirs, float), np.asarray(ours, float)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    gap = float(a.mean() - b.mean())
    if va + vb == 0:
        return gap, gap, gap
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    reach = float(stats.t.ppf(0.975, df) * np.sqrt(va + vb))
    return gap, gap - reach, gap + reach


def _about_longer(compared: Sequence[tuple[float, float, float] | None]) -> str:
    found = [c for c in compared if c is not None]
    ahead, behind = sum(low > 0 for _, low, _ in found), sum(high < 0 for _, _, high in found)
    return (
        f"{_ABOUT_LONGER}Of {len(found)} scores the interval lies above 0 (longer is better) {ahead} times and below 0 {behind} times; chance alone "
        f"would give about {0.025 * len(found):.0f} of each.\n"
    )


def another_training(values: Sequence[float], *, share: bool = False) -> str:
    """The 95% prediction interval for one more dictionary, as text: mean -/+ t(n - 1) s sqrt(1 + 1/n); empty for fewer than three.

    Of a `share` only the part between 0 and 1.

    Whitmore 1986, "Prediction limits for a univariate normal observation", The American Statistician 40(2).
    """
    n = len(values)
    if n < 3:
        return ""
    mean = sum(values) / n
    s = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    reach = float(stats.t.ppf(0.975, n - 1)) * s * math.sqrt(1 + 1 / n)
    low, high = mean - reach, mean + reach
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{low:.3g} to {high:.3g}"


def _interval(value: Mapping[str, Any]) -> str:
    text = f"{value['value']:.3g}" if value.get("value") is not None else "not known"
    if value.get("low") is not None and value.get("high") is not None:
        text += f" ({value['low']:.3g} to {value['high']:.3g})"
    return text


def _refusals(manifest: Mapping[str, Any], limit: float) -> str:
    return (
        f"An image whose class token is further than {limit:.1f} from the known cells (Mahalanobis' distance) is taken for no picture of a "
        f"single blood cell. The limit: 99% of {manifest['limit_from']} are nearer. How many are refused, rightly and "
        "wrongly, stands in the documentation of `cytosae explain`.\n"
    )


def _suggestions(bundle: Bundle) -> str:
    """The strongest suggestions, one a concept."""
    captions = bundle.captions
    best = captions.drop_duplicates("latent").sort_values(["q", "lift"], ascending=[True, False], kind="stable")
    listed = best.groupby(["column", "value"], sort=False).head(3).head(N_SUGGESTED)
    head = (
        f"For {best['latent'].nunique():,} of {bundle.sae.n_latents:,} concepts something is more frequent among the exemplars than among all "
        "cells (one-sided hypergeometric test, Benjamini-Hochberg over all concepts and values, q < 0.05). These are "
        f"suggestions, not names. Those with the smallest q, at most three a value; all of them: `captions.parquet`.\n\n"
        "| concept | suggestion | exemplars with it | among all cells | lift | q |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    rows = [
        f"| {r.latent} | {str(r.column).replace('_', ' ')}: {r.value} | {r.n_with} of {r.n} | {r.share_of_all:.0%} | {r.lift:.1f} | {r.q:.1g} |"
        for r in listed.itertuples()
    ]
    return head + "\n".join(rows) + "\n"


def _technical(flagged: pd.DataFrame) -> str:
    if not len(flagged):
        return "Not measured yet: give `--technical technical.parquet` of `cytosae evaluate --parts technical`.\n"
    counts = flagged["flags"].str.split(", ").explode().value_counts()
    head = (
        f"{len(flagged):,} concepts speak of the picture (its place, colour, focus, border or source) as much as of the cell, as far as could "
        f"be measured ({', '.join(f'{k}: {v:,}' for k, v in counts.items())}). `explain` marks them. The first {min(N_TECHNICAL, len(flagged))}; "
        "all of them: `technical.parquet`.\n\n| concept | flags |\n| --- | --- |\n"
    )
    return head + "\n".join(f"| {r.latent} | {r.flags} |" for r in flagged.head(N_TECHNICAL).itertuples()) + "\n"
