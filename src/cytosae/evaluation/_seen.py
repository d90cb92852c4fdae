"""Whether the dictionary was trained on cells it is scored on."""

from __future__ import annotations

from typing import Any

import numpy as np

from cytosae._errors import CytosaeError
from cytosae.cells import select
from cytosae.evaluation._context import Context
from cytosae.storage import read_manifest


def cells_seen(context: Context) -> dict[str, Any]:
    """What is known of the cells the dictionary was trained on.

    Returns
    -------
    ``n_seen`` of ``n_scored`` cells (null where unknown), ``setting`` (``inductive``: none of them, ``transductive``,
    ``unknown``), and ``how`` it is known.
    """
    scored = context.frame["cell_id"].to_numpy(np.int64)[context.part == "score"]
    folder = context.paths.get("sae")
    if folder is None:
        return _answer(None, len(scored), "the dictionary was given in memory")
    manifest = read_manifest(folder, "sae", 1)
    same = {context.inputs["cells"], *(s.hash for s in context.tokens.stores)}
    inputs, where = manifest["inputs"], manifest["config"].get("where")
    if where is None or not ({inputs.get("cells"), inputs.get("tokens")} & same):
        return _answer(None, len(scored), "it was trained on another table, whose cells may be among these")
    try:
        chosen = select(context.cells, where)
    except CytosaeError:
        return _answer(None, len(scored), "this table lacks the column by which its training cells were chosen")
    if inputs.get("cells") != context.inputs["cells"]:  # known by its tokens: of a merged table only those cells
        chosen = chosen[context.tokens.cells_in(str(inputs.get("tokens")), chosen)]
    trained = chosen["cell_id"].to_numpy(np.int64)
    return _answer(
        int(np.isin(scored, trained).sum()), len(scored), f"training took {' and '.join(where) or 'all cells'}"
    )


def _answer(n_seen: int | None, n_scored: int, how: str) -> dict[str, Any]:
    setting = "unknown" if n_seen is None else "transductive" if n_seen else "inductive"
    return {"n_seen": n_seen, "n_scored": n_scored, "setting": setting, "how": how}
