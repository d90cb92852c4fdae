"""TensorBoard as an adapter: the lines of ``metrics.jsonl``, written as scalars as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cytosae._errors import UsageError
from cytosae.training._fit import Log


def tensorboard_log(folder: Path | str) -> Log:
    """A `log` for `fit` that writes event files below `folder`, one run a dictionary.

    Raises
    ------
    UsageError
        The package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs the package tensorboard: pip install 'cytosae[tensorboard]'.") from error
    writers: dict[str, Any] = {}

    def log(name: str, line: dict[str, float]) -> None:
        if name not in writers:
            writers[name] = SummaryWriter(str(Path(folder) / name))
        for key, value in line.items():
            if key not in ("step", "tokens"):
                writers[name].add_scalar(key, value, int(line["tokens"]))
        writers[name].flush()

    return log
