"""``metrics.jsonl`` of a run that goes on from a checkpoint."""

from __future__ import annotations

import json
from typing import Any


def forget_after(file: Any, first: int) -> None:
    """Cut the open log back to the checkpoint after `first` steps, from which the run goes on."""
    kept = [line for line in file if json.loads(line)["step"] < first] if first else []
    file.seek(0)
    file.truncate()
    file.writelines(kept)
