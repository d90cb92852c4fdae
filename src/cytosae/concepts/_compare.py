"""The same concepts on several sets of cells: blood and marrow, other stains, other cameras."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cytosae._errors import CytosaeError, UsageError
from cytosae.concepts._index import ConceptIndex
from cytosae.storage import commit_folder, write_json, write_table

KIND, VERSION = "comparison", 1
#: A concept counts as active in a set from these shares of its cells on.
LEVELS = (1e-4, 1e-3, 1e-2)

Floats = npt.NDArray[np.float64]


def relative_entropy(index: ConceptIndex) -> Floats:
    """Class entropy as a share of what even spread over the labels would give: 0 one label, 1 all alike; float64 [n_latents].

    The balance of the classes is out of it already (every label weighs by the share of its own cells), and the number of
    labels goes out by this division, so that data sets of other classes can be laid side by side. NaN where there are fewer than
    two labels, or the concept is never active.
    """
    n = sum(1 for count in index.manifest["labels"].values() if count)
    found = index.concepts["class_entropy"].to_numpy(np.float64, na_value=np.nan)
    return found / np.log(n) if n > 1 else np.full(len(found), np.nan)


def agreement(a: ConceptIndex, b: ConceptIndex) -> dict[str, Any]:
    """How alike two sets use a dictionary.

    Returns
    -------
    ``jaccard``: level -> Jaccard index of the concepts with at least that frequency; over the concepts active in both:
    ``log_frequency_correlation`` (Pearson), ``frequency_rank_correlation`` and ``activation_rank_correlation`` (Spearman),
    ``entropy_correlation`` (Spearman, of the relative entropies); ``same_top_label``: share of the concepts whose exemplars in both
    carry a majority label, that is the same one (None where the sets share no label). A number that cannot be had is None.
    """
    from scipy import stats  # takes a second to import

    x, y = (i.concepts["frequency"].to_numpy(np.float64) for i in (a, b))
    jaccard = {}
    for level in LEVELS:
        p, q = x >= level, y >= level
        jaccard[f"{level:g}"] = float((p & q).sum() / (p | q).sum()) if (p | q).any() else None
    both = (x > 0) & (y > 0)
    means = [i.concepts["mean_activation"].to_numpy(np.float64)[both] for i in (a, b)]
    entropies = [relative_entropy(i)[both] for i in (a, b)]
    return {
        "n_active_in_both": int(both.sum()),
        "jaccard": jaccard,
        "log_frequency_correlation": _correlated(np.log(x[both]), np.log(y[both]), stats.pearsonr),
        "frequency_rank_correlation": _correlated(x[both], y[both], stats.spearmanr),
        "activation_rank_correlation": _correlated(means[0], means[1], stats.spearmanr),
        "entropy_correlation": _correlated(entropies[0], entropies[1], stats.spearmanr),
        "same_top_label": _same_top_label(a, b),
    }


def compare_indices(indices: Sequence[ConceptIndex], out: Path | str, names: Sequence[str] = ()) -> pd.DataFrame:
    """Lay indices of one dictionary side by side and write the comparison.

    Parameters
    ----------
    indices
        At least two, over any sets of cells.
    out
        Folder: ``compare.parquet`` (one row a concept: for each set frequency, its rank, mean activation, relative entropy, top
        label), ``exemplars.parquet`` (``set, latent, rank, cell_id, value, patch``, those that are shown), ``compare.json``
        (agreement of each pair), ``compare.png``.
    names
        Of the sets; the names of the folders where empty.

    Raises
    ------
    CytosaeError
        They are of different dictionaries, or under different semantics.
    """
    if len(indices) < 2:
        raise UsageError("Comparing takes at least two indices.")
    names = list(names) or _names(indices)
    if len(names) != len(indices) or len(set(names)) != len(names):
        raise UsageError(f"Give each of the {len(indices)} indices a name of its own.")
    first = indices[0]
    for other in indices[1:]:
        _same_dictionary(first, other)
    table = pd.DataFrame({"latent": first.concepts["latent"]})
    for name, index in zip(names, indices, strict=True):
        c = index.concepts
        table[f"{name}.frequency"] = c["frequency"]
        table[f"{name}.rank"] = c["frequency"].rank(ascending=False, method="min").astype(np.int64)
        table[f"{name}.mean_activation"] = c["mean_activation"]
        table[f"{name}.relative_entropy"] = relative_entropy(index)
        table[f"{name}.top_label"] = c["top_label"]
    inputs = {name: index.hash for name, index in zip(names, indices, strict=True)}
    pairs = [
        {"sets": [a, b], **agreement(x, y)}
        for (a, x), (b, y) in itertools.combinations(zip(names, indices, strict=True), 2)
    ]
    shown = [
        index.exemplars[index.exemplars["shown"].astype(bool)].assign(set=name)
        for name, index in zip(names, indices, strict=True)
        if "shown" in index.exemplars
    ]
    config = {"names": list(names), "semantics": first.semantics}
    with commit_folder(Path(out), kind=KIND, version=VERSION, inputs=inputs, config=config) as (folder, extra):
        _write(folder / "compare.parquet", table, "comparison table", inputs)
        exemplars = pd.concat(shown, ignore_index=True)[["set", "latent", "rank", "cell_id", "value", "patch"]]
        _write(folder / "exemplars.parquet", exemplars, "comparison exemplars", inputs)
        write_json(folder / "compare.json", {"pairs": pairs})
        draw_comparison(table, names, pairs).savefig(folder / "compare.png", dpi=110)
        extra["n_latents"] = len(table)
    return table


def draw_comparison(table: pd.DataFrame, names: Sequence[str], pairs: Sequence[dict[str, Any]]) -> Any:
    """A figure with a panel a pair of sets: frequency against frequency, colour = relative entropy in the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(pairs) + 1.0, 4.6), layout="constrained")
    axes = figure.subplots(1, len(pairs), squeeze=False)[0]
    dots: Any = None
    for axis, pair in zip(axes, pairs, strict=True):
        a, b = pair["sets"]
        both = table[(table[f"{a}.frequency"] > 0) & (table[f"{b}.frequency"] > 0)]
        dots = axis.scatter(
            both[f"{a}.frequency"], both[f"{b}.frequency"], c=both[f"{a}.relative_entropy"].astype(float), s=4, linewidths=0,
            cmap="viridis", vmin=0, vmax=1, plotnonfinite=True,
        )  # fmt: skip
        low = min(both[f"{a}.frequency"].min(), both[f"{b}.frequency"].min()) if len(both) else 1e-3
        axis.plot([low, 1], [low, 1], color="0.5", linewidth=0.8)
        rho = pair["frequency_rank_correlation"]
        said = "" if rho is None else f", rank correlation {rho:.2f}"
        axis.set(
            xscale="log", yscale="log", xlabel=fill(f"share of cells, {a}", 52), ylabel=fill(f"share of cells, {b}", 44)
        )
        axis.set_title(f"{len(both):,} concepts in both{said}", fontsize=9)
    figure.colorbar(dots, ax=list(axes), label="relative entropy in the first set (0: one label)", pad=0.01)
    return figure


def _same_dictionary(a: ConceptIndex, b: ConceptIndex) -> None:
    x, y = a.manifest["inputs"].get("sae"), b.manifest["inputs"].get("sae")
    if x != y or len(a.concepts) != len(b.concepts):
        raise CytosaeError(
            f"{a.folder} and {b.folder} are indices of different dictionaries; their concepts have nothing to do with each other."
        )
    if a.semantics != b.semantics:
        raise CytosaeError(
            f"{a.folder} says {a.semantics} and {b.folder} says {b.semantics}; make both with the same --semantics."
        )


def _same_top_label(a: ConceptIndex, b: ConceptIndex) -> float | None:
    x, y = a.concepts, b.concepts
    shared = {k for k, n in a.manifest["labels"].items() if n} & {k for k, n in b.manifest["labels"].items() if n}
    clear = (x["top_label_share"] > 0.5) & (y["top_label_share"] > 0.5)
    clear &= x["top_label"].isin(shared) & y["top_label"].isin(shared)
    return float((x["top_label"] == y["top_label"])[clear].mean()) if clear.any() else None


def _correlated(x: Floats, y: Floats, how: Any) -> float | None:
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(how(x, y).statistic)


def _names(indices: Sequence[ConceptIndex]) -> list[str]:
    """Names of the folders, with the folder above where they are alike."""
    names = [i.folder.name for i in indices]
    if len(set(names)) == len(names):
        return names
    return [f"{i.folder.resolve().parent.name}/{i.folder.name}" for i in indices]


def _write(path: Path, table: pd.DataFrame, kind: str, inputs: dict[str, str]) -> None:
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    write_table(path, arrow, kind=kind, version=VERSION, inputs=inputs, atomic=False)
