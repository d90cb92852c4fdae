"""The scorecard: chosen sections, each finished one kept on disk, then ``scorecard.json``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cytosae._errors import UsageError, nearest
from cytosae._progress import say
from cytosae.evaluation._context import Context
from cytosae.evaluation._section import Section
from cytosae.evaluation._seen import cells_seen
from cytosae.storage import commit_file, created_by, hash_json, write_json

KIND, VERSION = "scorecard", 1
#: Parts that look at the further dictionaries given with --sae.
BESIDE_OTHERS = ("reconstruction", "stability")


def chosen_sections(sections: Sequence[Section], parts: Sequence[str]) -> list[Section]:
    """The sections named in `parts`, all where it is empty, in their own order.

    Raises
    ------
    UsageError
        There is no such section.
    """
    names = [s.name for s in sections]
    for part in parts:
        if part not in names:
            raise UsageError(f"There is no part {part!r}{nearest(part, names)}.")
    return [s for s in sections if not parts or s.name in parts]


def make_scorecard(context: Context, sections: Sequence[Section], parts: Sequence[str] = ()) -> dict[str, Any]:
    """Measure the sections named in `parts` (all where empty) and write ``scorecard.json`` into the context's folder.

    A section that was finished before with the same inputs, settings and program is kept. Each is committed as
    ``sections/NAME.json`` as soon as it is measured, so that an interrupted run goes on from there. Sections that are not
    asked for but were finished before the same way stand in the scorecard too.

    Returns
    -------
    The scorecard: ``kind``, ``version``, ``created_by``, ``inputs``, ``config``, ``cells`` (how many, in which part, how many the
    dictionary was trained on), ``n_configurations``, ``sections`` (by name, in order) and ``skipped`` (name -> why).
    """
    done: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    asked = chosen_sections(sections, parts)
    for section in sections:
        kept = _kept(context, section)
        if kept is not None:
            if section in asked:
                say(f"{section.name}: kept as it is")
            done[section.name] = kept
        elif section in asked:
            why = section.missing(context)
            if why is None:
                done[section.name] = _measured(context, section)
            else:
                say(f"{section.name}: skipped; {why}")
                skipped[section.name] = why
    cells = {
        "n": len(context.frame), "n_choose": int((context.part == "choose").sum()),
        "n_score": int((context.part == "score").sum()), "n_left_out": int((context.part == "").sum()),
        "n_groups_scored": len(np.unique(context.unit[context.part == "score"])),
        "n_quarantined": context.cells.n_quarantined, "n_closed": context.n_closed, "seen": cells_seen(context),
    }  # fmt: skip
    card = {
        "kind": KIND, "version": VERSION, "created_by": created_by(), "inputs": context.inputs, "config": context.config,
        "cells": cells, "dictionary": _about(context), "sections": [{"name": n, **s} for n, s in done.items()],
        "skipped": skipped, "n_configurations": sum(int(s.get("n_configurations", 0)) for s in done.values()),
    }  # fmt: skip
    with commit_file(context.out / "scorecard.json") as temporary:
        write_json(temporary, card)
    return card


def _about(context: Context) -> dict[str, Any]:
    info = context.sae.info
    return {"n_latents": context.sae.n_latents, "d_in": context.sae.d_in, "activation": context.sae.activation,
            "recipe": info.get("recipe"), "token_kinds": info.get("token_kinds"), "layer": info.get("layer"),
            "backbone": (info.get("backbone") or {}).get("name")}  # fmt: skip


def _measured(context: Context, section: Section) -> dict[str, Any]:
    say(f"{section.name}: {section.question}")
    started = time.monotonic()
    record = _plain({"title": section.title, "question": section.question, **section.measure(context)})
    record |= {"key": _key(context, section), "seconds": round(time.monotonic() - started, 1)}
    with commit_file(_path(context, section)) as temporary:
        write_json(temporary, record)
    say(f"{section.name}: {record['seconds']:.0f} s")
    return dict(record)


def _path(context: Context, section: Section) -> Path:
    return context.out / "sections" / f"{section.name}.json"


def _key(context: Context, section: Section) -> str:
    """Of the work behind a section; further dictionaries count where they are looked at only, so that one more keeps the rest."""
    further = set[str]() if section.name in BESIDE_OTHERS else {f"sae-{name}" for name in context.saes}
    further -= {"sae-frozen-decoder"}  # a control of every part
    inputs = {name: value for name, value in context.inputs.items() if name not in further}
    return hash_json([created_by(), section.name, section.version, inputs, context.config])


def _kept(context: Context, section: Section) -> dict[str, Any] | None:
    """The section as it was finished before by the same work; None where there is none, or it is not whole."""
    try:
        found = dict(json.loads(_path(context, section).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    files = [context.out / name for name in found.get("files", [])]
    return found if found.get("key") == _key(context, section) and all(f.is_file() for f in files) else None


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's; what is no number becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
