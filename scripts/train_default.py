"""Train, index and pack the dictionary that the package brings (``make train-default``).

Usage: ``python scripts/train_default.py [--cells CELLS] [--hold-out dataset=NAME] [--sae SAE] [--index INDEX] ...``

Without ``--cells`` it takes the cells bundled with the package. Only cells with a credit that ends in a free licence (CC BY,
CC0 or MIT) get in; the data sets of ``--hold-out`` never get into the dictionary, but into the index. Every stage leaves an artifact in
``--work``; the command goes on from the last whole one. What is written to ``--out`` is at most 10 MB.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae import TokenStore, extract_tokens, fit, index_concepts, load_backbone, load_sae, read_cells
from cytosae._errors import CytosaeError
from cytosae._progress import enable_progress, say
from cytosae.backbones import BLOOD, parse_layer
from cytosae.cells import Cells, build_cells, bundled_path, select, write_cells
from cytosae.concepts import (
    Bundle,
    ConceptIndex,
    KnownCells,
    pack_captions,
    pack_index,
    pack_reference,
    pack_technical,
)
from cytosae.sae import round_sae
from cytosae.storage import commit_file, is_artifact, read_manifest, read_table
from cytosae.training import override
from model_card import model_card

LIMIT_BYTES = 10_000_000
FREE = ("CC BY 4.0", "CC BY 3.0", "CC0", "MIT")
_ACEVEDO = "Acevedo et al. 2020, Hospital Clinic of Barcelona, doi:10.17632/snkd93bnjr.1, CC BY 4.0"
_MARROW = "Matek et al. 2021, Munich Leukemia Laboratory, doi:10.7937/TCIA.AXH3-T579, CC BY 4.0"
CREDITS = {
    "acevedo_pbc": _ACEVEDO, "acevedo": _ACEVEDO, "bmc_marrow": _MARROW, "marrow": _MARROW,
    "chula_wbc": "Chulalongkorn University, github singgihbekti/WBC_Dataset, MIT",
    "bccd": "cosmicad and akshaylamba, github Shenggan/BCCD_Dataset, MIT",
}  # fmt: skip


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--cells", type=Path, help="cells.parquet [default: the bundled cells]")
    parser.add_argument("--backbone", default=BLOOD, help="packaged network, where tokens are extracted")
    parser.add_argument("--tokens", type=Path, help="their tokens; extracted where not given")
    parser.add_argument("--layer", default="-2", help="block or blocks of it, where tokens are extracted")
    parser.add_argument(
        "--unusual-block",
        type=int,
        help="block whose class tokens say how unusual an image is [default: the last of --layer]",
    )
    parser.add_argument("--class-tokens", type=Path, help="tokens of that block; extracted where not given")
    parser.add_argument("--where", action="append", default=[], help="cells that may be used at all (column=value)")
    parser.add_argument("--label", action="append", default=[], metavar="OLD=NEW", help="another word for a label")
    parser.add_argument("--hold-out", action="append", default=[], metavar="dataset=NAME", help="kept out of training")
    parser.add_argument("--sae", type=Path, help="an SAE that is there already")
    parser.add_argument("--index", type=Path, help="an index made with the rounded SAE in WORK/sae, and --cells-matrix")
    parser.add_argument(
        "--limit-cells", type=Path, help="a table of another origin, on which what is no cell is settled"
    )
    parser.add_argument("--limit-tokens", type=Path, help="its tokens, of that block")
    parser.add_argument("--limit-where", action="append", default=[], help="which of its cells")
    parser.add_argument("--credit", action="append", default=[], metavar="DATASET=TEXT", help="authors and licence")
    parser.add_argument("--technical", type=Path, help="technical.parquet of a scorecard of this dictionary")
    parser.add_argument("--scorecard", action="append", default=[], metavar="TITLE=FILE", help="for the model card")
    parser.add_argument(
        "--repeat", action="append", default=[], type=Path, metavar="FILE",
        help="scorecard.json of another dictionary by the same command: how far scores move with the training",
    )  # fmt: skip
    parser.add_argument(
        "--longer", action="append", default=[], type=Path, metavar="FILE",
        help="scorecard.json of a dictionary trained for longer on the same tokens, one a seed",
    )  # fmt: skip
    parser.add_argument("--presentations", type=int, help="patches shown in training [default: the recipe's]")
    parser.add_argument("--reference-cells", type=int, default=1_500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/default"))
    parser.add_argument("--out", type=Path, default=Path("src/cytosae/bundled/default"))
    return parser.parse_args(given)


def main(given: Sequence[str]) -> None:
    """Make every part that is not there."""
    options = arguments(given)
    credits = CREDITS | dict(_pair(text, "--credit") for text in options.credit)
    cards = {title: _scorecard(path) for title, path in (_pair(t, "--scorecard") for t in options.scorecard)}
    repeats, longer = [_scorecard(path) for path in options.repeat], [_scorecard(path) for path in options.longer]
    if longer and (len(longer) < 3 or len(repeats) < 2):
        raise CytosaeError("A difference between means takes three dictionaries a side: give --longer three times and --repeat twice.")  # fmt: skip
    cells = read_cells(options.cells) if options.cells else build_cells(bundled_path(), options.work / "cells.parquet")
    cells = _relabelled(
        cells, dict(_pair(text, "--label") for text in options.label), options.work / "relabelled.parquet"
    )
    frame = select(cells, options.where)
    for name in sorted(frame["dataset"].astype(str).unique()):
        if not credits.get(name, "").endswith(FREE):
            raise CytosaeError(f"The cells of {name} have no free licence on record; leave them out with --where, or give --credit {name}=...")  # fmt: skip
    held = [_pair(text, "--hold-out") for text in options.hold_out]
    if any(column != "dataset" for column, _ in held):
        raise CytosaeError("--hold-out takes dataset=NAME.")
    kept_out = [name for _, names in held for name in names.split(",")]
    store = TokenStore(options.tokens) if options.tokens else extract_tokens(
        cells, load_backbone(options.backbone), options.work / "tokens", layer=parse_layer(options.layer))  # fmt: skip
    source = options.sae or options.work / "trained"
    if options.sae is None:
        where = [*options.where, *([f"dataset!={','.join(kept_out)}"] if kept_out else [])]
        recipe = override("default", [f"presentations={options.presentations}"] if options.presentations else [])
        fit(store, cells, recipe, source, seed=options.seed, where=where, heldout=())
    rounded = options.work / "sae"
    if not _rounded(rounded, source):
        round_sae(source, rounded)
    sae = load_sae(rounded)
    index = ConceptIndex(options.index) if options.index else index_concepts(
        cells, sae, options.work / "index", store=store, where=options.where, cells_matrix=True)  # fmt: skip
    out: Path = options.out
    say(f"pack: {out}")
    round_sae(source, out / "sae")
    pack_index(index, sae, out / "index")
    pack_captions(index, cells, out / "captions.parquet")
    pack_technical(
        read_table(options.technical, "technical", 1)[0].to_pandas() if options.technical else None, index, out / "technical.parquet"
    )  # fmt: skip
    seen = store
    if options.unusual_block is not None:
        seen = TokenStore(options.class_tokens) if options.class_tokens else extract_tokens(
            cells, load_backbone(options.backbone), options.work / "class-tokens", layer=options.unusual_block,
            where=options.where, keep=("class",))  # fmt: skip
    known, limit_from = _known(options, cells, seen, kept_out)
    pack_reference(index, cells, out / "reference", known=known, credits={n: credits[n] for n in frame["dataset"].unique()},
                   n_cells=options.reference_cells, limit_from=limit_from, unusual_block=options.unusual_block)  # fmt: skip
    counts = frame.groupby("dataset").size()
    where = read_manifest(out / "sae", "sae", 1)["config"].get("where", [])
    bundle = Bundle(out)
    bundle.sae.info["where"] = where
    text = model_card(
        bundle, data=[f"{n}: {counts[n]:,} cells. {credits[n]}." for n in counts.index],
        kept_out=kept_out, scorecards=cards, command=_command(given), repeats=repeats, longer=longer,
    )  # fmt: skip
    with commit_file(out / "MODEL_CARD.md") as temporary:
        temporary.write_text(text, "utf-8")
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"Wrote {out}: {sae.n_latents:,} concepts, {size / 1e6:.1f} MB.")
    if size > LIMIT_BYTES:
        raise CytosaeError(f"{out} has {size:,} bytes, more than {LIMIT_BYTES:,}; take fewer --reference-cells.")


def _relabelled(cells: Cells, words: dict[str, str], out: Path) -> Cells:
    """The same cells, their labels in plain words and alike in all data sets."""
    unknown = sorted(set(words) - set(cells.frame["label"].dropna()))
    if unknown:
        raise CytosaeError(f"No cell has the label {unknown[0]!r} of --label.")
    if not words:
        return cells
    frame = cells.frame.assign(label=cells.frame["label"].replace(words))
    write_cells(out, frame, root=cells.root, inputs={"cells": cells.hash}, config={"labels": words})
    made: Cells = read_cells(out)
    return made


def _rounded(folder: Path, source: Path) -> bool:
    """Whether `folder` holds this dictionary, rounded."""
    return is_artifact(folder, "sae") and load_sae(folder).info["rounded"]["from"] == load_sae(source).hash


def _known(
    options: argparse.Namespace, cells: Cells, store: TokenStore, kept_out: Sequence[str]
) -> tuple[KnownCells, str]:
    """How unusual an image is: fitted on nine tenths of the cells, its scale on the others, its limit on another origin."""
    frame = select(cells, options.where)
    other = frame["dataset"].isin(kept_out).to_numpy()
    if options.limit_cells:
        table = read_cells(options.limit_cells)
        chosen = select(table, options.limit_where)
        tokens = _class_tokens(TokenStore(options.limit_tokens), chosen)
        fitted_on = np.ones(len(frame), bool)
        names = chosen["dataset"].unique()
    elif other.any():
        tokens, fitted_on, names = _class_tokens(store, frame[other]), ~other, np.array(kept_out)
    else:
        raise CytosaeError("What is no cell is settled on cells of another origin: give --hold-out or --limit-cells.")
    mine = _class_tokens(store, frame[fitted_on])
    aside = np.random.Generator(np.random.Philox(0)).permutation(len(mine)) < len(mine) // 10
    known = KnownCells.fit(mine[~aside], mine[aside], tokens)
    return known, f"{len(tokens):,} cells of {', '.join(names)}, none of which the fit has seen,"


def _class_tokens(store: TokenStore, frame: Any) -> npt.NDArray[np.float32]:
    rows = store.rows_of(frame["cell_id"].to_numpy(np.int64), frame["sha256"].tolist())
    last = store.d_in // store.n_blocks  # of several blocks the last, as `explain` takes it
    parts = [
        store.read(rows[i : i + 256], kind="class").float()[:, 0, -last:].numpy() for i in range(0, len(rows), 256)
    ]
    return np.concatenate(parts)


def _scorecard(path: Path | str) -> dict[str, Any]:
    try:
        card = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CytosaeError(
            f"{path} is no scorecard that can be read; give scorecard.json of 'cytosae evaluate'."
        ) from error
    if not isinstance(card, dict) or "sections" not in card:
        raise CytosaeError(f"{path} holds no scorecard; give scorecard.json of 'cytosae evaluate'.")
    return card


def _pair(text: str, option: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not value:
        raise CytosaeError(f"{option} {text!r} is not of the form NAME=VALUE.")
    return name, value


def _command(given: Sequence[str]) -> str:
    """The command without anybody's folders: paths become their last part."""
    words = ["python", "scripts/train_default.py"]
    for word in given:
        name, sign, value = word.rpartition("=")
        words.append(f"{name}{sign}{Path(value).name}" if "/" in value else word)
    return " ".join(shlex.quote(w) for w in words)


if __name__ == "__main__":
    enable_progress()
    try:
        main(sys.argv[1:])
    except CytosaeError as error:
        sys.exit(f"train_default: {error}")
