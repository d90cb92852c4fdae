"""``cytosae fit``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cytosae._errors import UsageError
from cytosae.cli._common import done, find_cells, verb


@verb("fit", out="The SAE folder to write; with --sweep the folder of all of them.")
@click.argument("tokens", type=click.Path(path_type=Path))
@click.option(
    "--cells",
    type=click.Path(path_type=Path),
    help="The cells.parquet the tokens were made from. [default: the one beside TOKENS]",
)
@click.option("--recipe", default="default", show_default=True, help="default, small, relu-l1 or cytosae-2025.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one field of the recipe; repeatable."
)
@click.option(
    "--sweep", "sweeps", multiple=True, metavar="KEY=V1,V2",
    help="Train one dictionary for each value, in one pass over the tokens; repeated: all combinations. KEY may be seed.",
)  # fmt: skip
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Cells to train on; repeatable. [default: split=train where the table has that split, else all]",
)
@click.option(
    "--heldout",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Cells for the final metrics. [default: those of the same data sets that are not trained on]",
)
@click.option(
    "--tensorboard", type=click.Path(path_type=Path), help="Also write TensorBoard event files below this folder."
)
def command(
    tokens: Path, cells: Path | None, recipe: str, settings: tuple[str, ...], sweeps: tuple[str, ...], where: tuple[str, ...],
    heldout: tuple[str, ...], tensorboard: Path | None, out: Path, device: str, seed: int,
) -> None:  # fmt: skip
    """Train a sparse autoencoder on the tokens in TOKENS (a token store).

    Interrupted, it goes on from its last checkpoint when called again. Curves and metrics are in OUT/fit.html.
    """
    from cytosae.cells import read_cells
    from cytosae.reports import write_fit_page
    from cytosae.sae import load_sae
    from cytosae.tokens import TokenStore
    from cytosae.training import Member, fit_many, override, tensorboard_log

    chosen = override(recipe, settings)
    members = _members(chosen, sweeps, out, seed) if sweeps else [Member(out, chosen, seed)]
    log = tensorboard_log(tensorboard) if tensorboard else None
    store = TokenStore(tokens)
    table = read_cells(find_cells(cells, tokens, store.manifest["inputs"]["cells"]))
    if not where and (table.ok["split"] == "train").any():
        where = ("split=train",)
        if not heldout:
            trained_on = sorted(table.ok[table.ok["split"] == "train"]["dataset"].dropna().unique())
            rest = table.ok[(table.ok["split"] != "train") & table.ok["dataset"].isin(trained_on)]
            heldout = ("split!=train", f"dataset={','.join(trained_on)}") if len(rest) else ()
    fit_many(store, table, members, seed=seed, where=where, heldout=heldout, device=device, log=log)
    saes = {m.out.name: load_sae(m.out, device=device) for m in members}
    for m in members:
        write_fit_page(m.out, saes[m.out.name])
    if sweeps:
        _write_sweep(out, saes, [s.partition("=")[0] for s in sweeps])
        return
    sae = saes[out.name]
    metrics = sae.info["metrics"]
    text = f"Wrote {out}: {sae.n_latents:,} latents trained on {sae.info['n_cells_train']:,} cells"
    if metrics:
        text += (
            f"; on {sae.info['n_cells_heldout']:,} other cells explained variance {metrics['explained_variance']:.3f}, "
            f"{metrics['l0']:.1f} latents a token, {metrics['dead_share']:.1%} dead"
        )
    done(text + ".")


def _members(chosen: Any, sweeps: Sequence[str], out: Path, seed: int) -> list[Any]:
    """One member for each combination of the swept values, in a folder named by them."""
    from cytosae.training import SHARED, Member, replace

    keys, values = [], []
    for sweep in sweeps:
        key, sign, text = sweep.partition("=")
        mark = ";" if key == "levels" else ","
        parts = [part for part in text.split(mark) if part.strip()]
        if not sign or not parts:
            raise UsageError(f"--sweep {sweep!r} is not of the form key=value,value.")
        if key in SHARED:
            raise UsageError(
                f"--sweep cannot vary {key}, which all dictionaries of one pass share; use --set {key}=..."
            )
        if key in keys or len(set(parts)) < len(parts):
            raise UsageError(f"--sweep {sweep}: {key} is given twice; name every value once.")
        keys.append(key)
        values.append(parts)
    members = []
    for combination in itertools.product(*values):
        pairs = dict(zip(keys, combination, strict=True))
        own_seed = pairs.pop("seed", str(seed))
        if not own_seed.isdecimal():
            raise UsageError(f"--sweep seed={own_seed}: a seed is a whole number.")
        name = "_".join(f"{k}-{v.replace('/', ':')}" for k, v in zip(keys, combination, strict=True))
        members.append(Member(out / name, replace(chosen, [f"{k}={v}" for k, v in pairs.items()]), int(own_seed)))
    return members


def _write_sweep(out: Path, saes: dict[str, Any], keys: Sequence[str]) -> None:
    import pandas as pd

    from cytosae.reports import sweep_rows, write_sweep_page
    from cytosae.storage import commit_file

    rows = sweep_rows(saes, keys)
    table = pd.DataFrame(rows)
    with commit_file(out / "sweep.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_sweep_page(out / "sweep.html", rows)
    print(table.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    done(f"Wrote {out}: {len(rows)} dictionaries, sweep.csv and sweep.html.")
