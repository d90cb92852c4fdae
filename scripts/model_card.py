"""The model card of a packaged dictionary, in Markdown, from what its parts say of themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from cytosae.backbones import layer_text
from cytosae.concepts import Bundle
from cytosae.training import RECIPES

#: Suggestions and flags listed.
N_SUGGESTED, N_TECHNICAL = 40, 40
LIMITS = """- It reads tokens of the backbone and block named above and no others; `explain` checks this.
- It has seen the cells of one laboratory, one stain and one microscope. On other origins concepts may mean something else, or
  nothing. `cytosae compare` shows how they move.
- Suggested captions are statistics of exemplars, not names: a concept may follow what the label goes along with (colour,
  size, focus). No expert has looked at them.
- How unusual an image is says how far it is from the known cells as a whole, not whether a cell is ill.
- Concepts are correlated with each other and with the labels; that one is strong in a cell does not say why.
"""

_ABOUT_REPEATS = """An interval beside a score draws cells: it says how far the score of this very dictionary may lie from that on all such cells. The last
column says what the same command gives when it trains again, with another seed or on another processor, where sums are rounded otherwise: the 95%
prediction interval for one more dictionary, from those that were scored.
"""


def model_card(
    bundle: Bundle,
    *,
    data: Sequence[str],
    kept_out: Sequence[str],
    scorecards: Mapping[str, Mapping[str, Any]],
    command: str,
    repeats: Sequence[Mapping[str, Any]] = (),
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
        f"`{_recipe(info)}` ({recipe['model']}): expansion {recipe['expansion']:g}, k {recipe['k']:g}, {recipe['presentations']:,} "
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
        parts += _scores(title, card, repeats)
    parts += ["## What is no cell\n", _refusals(reference.manifest.data, reference.known.limit)]
    parts += [
        "## Suggested captions\n",
        _suggestions(bundle),
        "## Known technical concepts\n",
        _technical(bundle.technical),
    ]
    parts += ["## Limits\n", LIMITS]
    return "\n".join(parts).rstrip() + "\n"


def _recipe(info: Mapping[str, Any]) -> str:
    """The recipe whose numbers these are, else the name it was trained under: names may have moved since."""
    trained = {k: v for k, v in info["hyperparameters"].items() if k not in ("name", "presentations")}
    same = [
        name
        for name, recipe in RECIPES.items()
        if all(trained.get(k) == v for k, v in recipe.as_dict().items() if k not in ("name", "presentations"))
    ]
    return same[0] if same else str(info["recipe"])


def _where(sae: Any) -> list[str]:
    return [str(w) for w in sae.info.get("where", [])]


def _scores(title: str, card: Mapping[str, Any], repeats: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """A table of one scorecard's comparisons, each with its interval, its best control, and what another training would score."""
    cells = card.get("cells", {})
    others = [
        {(s["title"], c["what"]): c["dictionary"].get("value") for s in r["sections"] for c in s.get("comparisons", [])}
        for r in repeats
    ]
    another = [f" another training ({1 + len(others)} dictionaries) |", " --- |"] if len(others) > 1 else ["", ""]
    rows = [f"### {title}\n", f"{cells.get('n', 0):,} cells, {cells.get('n_score', 0):,} of them scored; 95% intervals.\n",
            *([_ABOUT_REPEATS] if len(others) > 1 else []),
            f"| part | measure | dictionary | best control | verdict |{another[0]}", f"| --- | --- | --- | --- | --- |{another[1]}"]  # fmt: skip
    for section in card.get("sections", []):
        for one in section.get("comparisons", []):
            controls = [c for c in one.get("controls", []) if c.get("value") is not None]
            best = max(controls, key=lambda c: c["value"], default=None)
            beside = f"{best.get('title', best['name'])}: {_interval(best)}" if best else "none"
            key = (section["title"], one["what"])
            values = [v for v in (one["dictionary"].get("value"), *(o.get(key) for o in others)) if v is not None]
            rows.append(
                f"| {section['title']} | {one['what']} | {_interval(one['dictionary'])} | {beside} | {one.get('verdict', '')} |"
                + (f" {another_training(values)} |" if len(others) > 1 else "")
            )
    for name, why in card.get("skipped", {}).items():
        rows.append(f"| {name} | left out: {why} | | | |" + (" |" if len(others) > 1 else ""))
    return [*rows, ""]


def another_training(values: Sequence[float]) -> str:
    """The 95% prediction interval for one more dictionary, as text: mean -/+ t(n - 1) s sqrt(1 + 1/n); empty for fewer than three.

    Whitmore 1986, "Prediction limits for a univariate normal observation", The American Statistician 40(2).
    """
    n = len(values)
    if n < 3:
        return ""
    mean = sum(values) / n
    s = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    reach = float(stats.t.ppf(0.975, n - 1)) * s * math.sqrt(1 + 1 / n)
    return f"{mean - reach:.3g} to {mean + reach:.3g}"


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
