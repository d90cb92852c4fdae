"""A Hugging Face model folder: ``sae.safetensors``, ``sae.json`` and a model card; itself an SAE folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from cytosae._errors import UsageError
from cytosae.backbones import layer_option
from cytosae.sae._io import save_sae
from cytosae.sae._model import SparseAutoencoder
from cytosae.storage import created_by

#: What is said of a metric: its name in the card.
_METRICS = {
    "explained_variance": "explained variance of held-out tokens",
    "pca_fvu": "unexplained by as many principal components",
    "l0": "active latents a token",
    "dead_share": "share of latents that fire on fewer than 1 in 100,000 tokens",
    "n_tokens": "tokens measured on",
}
_ACTIVATION = {
    "relu": "`max(pre, 0)`",
    "threshold": "`pre` where `pre > threshold`, else 0",
    "topk": "the {k} largest positive `pre` of each token",
}


def write_hugging_face(folder: Path, sae: SparseAutoencoder, *, title: str, licence: str) -> None:
    """Write the three files into a folder that is being committed as a whole.

    Parameters
    ----------
    folder
        Where.
    sae
        The dictionary; its `info` becomes ``sae.json``.
    title
        Heading of the card.
    licence
        An identifier of the hub (``mit``, ``apache-2.0``, ``cc-by-4.0``, ``other``, ``unknown`` ...).
    """
    if re.fullmatch(r"[a-z0-9][a-z0-9.\-]{0,60}", licence) is None:
        raise UsageError(
            f"{licence!r} is no licence identifier; give one as the hub writes it, such as apache-2.0 or other."
        )
    keys = ("schema_version", "d_in", "n_latents", "activation", "k")
    save_sae(folder, sae, {key: value for key, value in sae.info.items() if key not in keys})
    (folder / "README.md").write_text(_card(sae, title, licence), "utf-8")


def _card(sae: SparseAutoencoder, title: str, licence: str) -> str:
    info = sae.info
    backbone = info.get("backbone") or {}
    front = {
        "license": licence, "library_name": "cytosae", "pipeline_tag": "feature-extraction",
        "tags": ["sparse-autoencoder", "interpretability", "vision-transformer", "hematology", "cytosae"],
    }  # fmt: skip
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    imported = info.get("imported") or {}
    block = None if info.get("layer") is None else layer_option(info["layer"])
    facts = {
        "tokens": f"{sae.d_in} numbers", "latents": f"{sae.n_latents:,}",
        "activation": _ACTIVATION[sae.activation].format(k=sae.k), "backbone": backbone.get("name"),
        "sha256 of the backbone's weights": backbone.get("sha256"), "block": block,
        "kinds of token": ", ".join(map(str, info.get("token_kinds") or [])) or None, "recipe": info.get("recipe"),
        "semantics": info.get("semantics"), "seed": info.get("seed"), "cells trained on": info.get("n_cells_train"),
        "written by": created_by(),
    }  # fmt: skip
    if imported:
        facts["imported from"] = imported.get("format")
        facts["folded on import"] = "; ".join(map(str, imported.get("changes") or [])) or "nothing"
    metrics = {text: info["metrics"].get(key) for key, text in _METRICS.items()} if info.get("metrics") else {}
    return f"""---
{head}---

# {_cell(title)}

A sparse autoencoder (dictionary) on the tokens of a frozen vision transformer.
`codes = act((x - b_dec) @ W_enc + b_enc)`, `y = codes @ W_dec + b_dec`, `x` being raw tokens.

**Research use only. Nothing this model gives is a diagnosis.**

{_table(("what", "value"), facts)}

## Metrics

{_table(("metric", "value"), metrics) if metrics else "None are recorded with this dictionary."}

## Use

```python
from cytosae import load_sae

sae = load_sae("FOLDER")  # this folder, as it was written
codes = sae.encode(tokens)  # tokens [..., {sae.d_in}] -> codes [..., {sae.n_latents}]
```

After editing this card, `cytosae import sae FOLDER --out SAE` makes a dictionary of the folder again.
"""


def _table(head: tuple[str, str], rows: dict[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    lines += [
        f"| {name} | {value if name == 'activation' else _cell('not known' if value is None else value)} |"
        for name, value in rows.items()
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """A value on one line of a Markdown table, without markup of its own."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return " ".join(str(value).split()).translate(str.maketrans("[]<>|`", "()‹›/'"))
