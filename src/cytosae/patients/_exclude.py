"""Concepts left out of tests and models: those that speak of the picture rather than of the cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._errors import CytosaeError, UsageError
from cytosae.storage import artifact_hash, read_table


def excluded_latents(
    exclude: Sequence[int] | Path | str, n_latents: int, sae: str | None
) -> tuple[npt.NDArray[np.bool_], dict[str, Any]]:
    """Which concepts are left out, bool [n_latents], and the record of it.

    Parameters
    ----------
    exclude
        Latents, or a ``technical.parquet``: then every concept with a flag is left out.
    n_latents
        Of the dictionary.
    sae
        Hash of the dictionary that the index was made with.

    Raises
    ------
    CytosaeError
        The table speaks of another dictionary, or cannot be read.
    UsageError
        A latent that the dictionary does not have.
    """
    from cytosae.evaluation._technical import KIND, VERSION

    out = np.zeros(n_latents, bool)
    if not isinstance(exclude, Path | str):
        latents = np.asarray(exclude, np.int64)
        beyond = latents[(latents < 0) | (latents >= n_latents)]
        if len(beyond):
            raise UsageError(f"The dictionary has concepts 0 to {n_latents - 1}; {beyond[0]} cannot be left out.")
        out[latents] = True
        return out, {"n": int(out.sum()), "by": "list"}
    path = Path(exclude)
    if path.is_dir():
        path = path / "technical.parquet"
    table, record = read_table(path, KIND, VERSION)
    if sae is None or record["inputs"].get("sae") != sae or table.num_rows != n_latents:
        raise CytosaeError(
            f"{path} speaks of another dictionary than the index; give the technical.parquet of a scorecard of this one."
        )
    flagged = table.column("flags").to_numpy(zero_copy_only=False).astype(str) != ""
    out[table.column("latent").to_numpy()[flagged]] = True
    return out, {"n": int(out.sum()), "by": "technical", "technical": artifact_hash(path)}
