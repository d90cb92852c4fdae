"""How much profiles and differential concepts depend on the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from cytosae.patients._cohort import Cohort
from cytosae.patients._differential import DifferentialConfig, differential
from cytosae.patients._profiles import ProfileRule, profile_patients

QUANTILES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def sensitivity(
    cohort: Cohort,
    quantiles: Sequence[float] = QUANTILES,
    rule: ProfileRule | None = None,
    config: DifferentialConfig | None = None,
    *,
    fdr: float = 0.05,
) -> pd.DataFrame:
    """Profiles and hits at several quantiles, beside those of `rule`.

    The curve is for showing how much a result hangs on the threshold; choosing the quantile with the most hits would make
    every q too small.

    Returns
    -------
    One row a quantile: ``quantile``, ``mean_profile`` (over patients and concepts), ``n_zero`` (concepts with threshold 0),
    ``n_tested``, ``n_hits`` (comparison and concept with q below `fdr`), ``jaccard`` (of the hits, with those of `rule`; NaN
    where neither has any), ``correlation`` (Spearman, of the effects of what both test, with those of `rule`).
    """
    rule, config = rule or ProfileRule(), config or DifferentialConfig()
    by = ["diagnosis", "against", "latent"]
    reference = differential(profile_patients(cohort, rule), config).set_index(by)
    wanted = set(reference.index[reference["q"] < fdr])
    rows = []
    for quantile in quantiles:
        profiles = profile_patients(cohort, replace(rule, quantile=quantile))
        table = differential(profiles, config).set_index(by)
        hits = set(table.index[table["q"] < fdr])
        both = table.index.intersection(reference.index)
        effects = [t.loc[both, "effect"].to_numpy() for t in (table, reference)]
        rows.append({
            "quantile": quantile, "mean_profile": float(np.nanmean(profiles.X)),
            "n_zero": int((profiles.var["threshold"] == 0).sum()), "n_tested": int(profiles.var["tested"].sum()),
            "n_hits": len(hits), "jaccard": len(hits & wanted) / len(hits | wanted) if hits | wanted else np.nan,
            "correlation": float(stats.spearmanr(*effects).statistic) if len(both) > 2 else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)
