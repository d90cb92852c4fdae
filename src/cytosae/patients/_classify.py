"""Telling diagnoses apart: cross-validation by patient, every choice made inside the training part, all models on the same folds."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytosae._errors import CytosaeError
from cytosae._progress import Meter
from cytosae.patients._cohort import Cohort, Ints
from cytosae.patients._designs import Extras, concept_design, make_designs
from cytosae.patients._linear import LinearModel
from cytosae.patients._methods import Answer, Fitted, Linear, Method, l1, l2
from cytosae.patients._mil import AttentionMIL, mil_is_there
from cytosae.patients._plan import FixedFolds, Fold, drawn_folds, inner_parts
from cytosae.patients._protocol import CONCEPTS, CONCEPTS_L1, MODELS, OF_TOKENS, ClassifyConfig
from cytosae.patients._record import Facts, Sums, make_curve, make_record

#: Patients from which on folds are fitted beside one another (smaller fits would only wait for the interpreter), and how many.
LARGE, MOST_THREADS = 300, 4


@dataclass(frozen=True)
class FoldFit:
    """What one fold of one repetition fitted: the test patients (names) and the models by name."""

    repeat: int
    fold: int
    test: tuple[str, ...]
    models: dict[str, Fitted]


@dataclass(frozen=True)
class Classification:
    """The record as it stands in `classification.json`, the fitted folds, and the model of all patients.

    `temperature` is what the final model's logits are divided by to be calibrated.
    """

    record: dict[str, Any]
    folds: list[FoldFit]
    final: LinearModel
    temperature: float = 1.0


def classify(
    cohort: Cohort,
    config: ClassifyConfig | None = None,
    *,
    fixed: FixedFolds | None = None,
    extras: Extras | None = None,
) -> Classification:
    """Measure how well concept profiles tell the target apart, beside their baselines on the same folds.

    Parameters
    ----------
    cohort
        From `read_cohort`. Patients without target or usable cells take no part and are listed.
    config
        The protocol.
    fixed
        Folds from files, in place of drawn ones. Where they hold validation patients, settings are chosen on these.
    extras
        What other models want beside the cohort; a model whose ingredient is missing is left out, with the reason.

    Returns
    -------
    The record (see `classification.json` in the artifact), every fitted fold, and the final model of all patients.

    Raises
    ------
    CytosaeError
        Fewer than two classes, a class with fewer patients than folds, or fixed folds that do not fit the cohort.
    """
    with threadpool_limits(1):  # thousands of small products: threads only wait for one another
        return _classify(cohort, config or ClassifyConfig(), fixed, extras or Extras())


def _classify(cohort: Cohort, config: ClassifyConfig, fixed: FixedFolds | None, extras: Extras) -> Classification:
    rows = cohort.judged
    target = cohort.classes[rows].astype(str)
    patients = [str(p) for p in cohort.patients["patient"].iloc[rows]]
    classes = sorted({str(name) for name in target})
    y_rows = np.searchsorted(classes, target)
    if len(classes) < 2:
        raise CytosaeError(
            f"Only one {cohort.target} has patients with usable cells; a classification wants two or more."
        )
    if fixed is None:
        _check_drawn(classes, np.bincount(y_rows, minlength=len(classes)), config, cohort.target)
        folds = drawn_folds(y_rows, config.n_folds, config.n_repeats, config.seed)
    else:
        if cohort.target == "diagnosis":
            fixed.check(patients, list(target))
        folds = fixed.folds(patients)
        _check_fixed(folds, y_rows, classes, fixed.name)
    y = np.full(len(cohort.patients), -1, np.int64)
    y[rows] = y_rows
    everyone = Fold(0, 0, np.arange(len(rows)), np.arange(0))
    shape = (len(rows), len(classes))
    found: list[dict[str | int, Answer]] = [{} for _ in folds]

    def fit_all(methods: Mapping[Any, Method], what: str) -> None:
        def linear(fold: Fold) -> dict[Any, Answer]:
            where = rows[fold.train], _inner(fold, rows, y_rows, config), rows[fold.test], y, classes
            return {name: method.fit(*where) for name, method in methods.items() if isinstance(method, Linear)}

        with Meter(len(folds), what, "folds") as meter:
            for i, (fold, answers) in enumerate(_in_order(linear, folds, len(rows))):
                for name in (name for name in methods if name not in answers):  # torch has one state: one after another
                    inner = _inner(fold, rows, y_rows, config)
                    answers[name] = methods[name].fit(rows[fold.train], inner, rows[fold.test], y, classes)
                found[i].update(answers)
                meter.add(1)

    methods = _concept_methods(cohort, config)
    curve = {n: l2(methods[CONCEPTS].design, config.Cs, n) for n in config.n_concepts}
    fit_all({**methods, **curve}, "classification: concepts")
    final = methods[CONCEPTS].fit(rows, _inner(everyone, rows, y_rows, config), rows[:0], y, classes)
    names, sizes = list(methods), list(curve)
    del methods, curve  # the values of all concepts, before the tokens of all cells come
    others, absent = _other_methods(cohort, config, extras)
    for other, make in others.items():  # one after another, each with its data gone before those of the next are made
        fit_all({other: make()}, f"classification: {other}")
    names = [n for n in MODELS if n in names or n in others]
    sums = {name: Sums(np.zeros(shape), np.zeros(shape), [], []) for name in [*names, "majority", *sizes]}
    n_tested, fits = np.zeros(len(rows)), []
    chosen: dict[int, Counter[int]] = {n: Counter() for n in sizes}
    for fold, answers in zip(folds, found, strict=True):
        counts = np.bincount(y[rows[fold.train]], minlength=len(classes))
        constant = np.where(np.arange(len(classes)) == counts.argmax(), 0.0, -np.inf)
        answers["majority"] = Answer(None, np.tile(constant, (len(fold.test), 1)), 1.0)
        for name, answer in answers.items():
            sums[name].add(fold.test, answer)
        for n in sizes:
            chosen[n].update(answers[n].model.kept.tolist())
        n_tested[fold.test] += 1
        models = {name: answers[name].model for name in names}
        fits.append(FoldFit(fold.repeat, fold.fold, tuple(patients[i] for i in fold.test), models))
    tested = np.flatnonzero(n_tested)
    facts = Facts(cohort, config, classes, y_rows, patients, tested, n_tested, folds, fixed)
    record = make_record(facts, {k: v for k, v in sums.items() if isinstance(k, str)}, fits)
    record["by_n_concepts"] = make_curve(facts, {n: sums[n] for n in sizes}, sums[CONCEPTS], chosen)
    return Classification(record | {"absent": absent}, fits, final.model, final.temperature)


def _inner(fold: Fold, rows: Ints, y: Ints, config: ClassifyConfig) -> list[tuple[Ints, Ints]]:
    return [(rows[a], rows[b]) for a, b in inner_parts(fold, y, config.n_inner, config.seed)]


def _in_order(work: Callable[[Fold], Any], folds: Sequence[Fold], n_patients: int) -> Iterator[tuple[Fold, Any]]:
    """Each fold with what `work` makes of it, in order; folds of large cohorts beside one another, with the same result."""
    import torch

    n = min(torch.get_num_threads(), MOST_THREADS) if n_patients > LARGE else 1
    if n == 1:
        yield from ((fold, work(fold)) for fold in folds)
        return
    with ThreadPoolExecutor(n) as pool:
        waiting: deque[tuple[Fold, Any]] = deque()
        rest = iter(folds)
        try:
            while True:
                waiting.extend((fold, pool.submit(work, fold)) for fold in itertools.islice(rest, n + 1 - len(waiting)))
                if not waiting:
                    return
                fold, future = waiting.popleft()
                yield fold, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _concept_methods(cohort: Cohort, config: ClassifyConfig) -> dict[str, Linear]:
    """The models of concept profiles."""
    design = concept_design(cohort, config.rule)
    methods = {CONCEPTS: l2(design, config.Cs)}
    if CONCEPTS_L1 in config.models:
        methods[CONCEPTS_L1] = l1(design)
    return methods


def _other_methods(
    cohort: Cohort, config: ClassifyConfig, extras: Extras
) -> tuple[dict[str, Callable[[], Method]], dict[str, str]]:
    """What makes the other models that can be fitted, in order, and why some are not there."""
    wanted = set(config.models)
    if wanted <= {CONCEPTS, CONCEPTS_L1}:
        return {}, {}
    pooled = None
    if wanted & OF_TOKENS:
        pooled = extras.pooled() if callable(extras.pooled) else extras.pooled
    designs, absent = make_designs(cohort, config.rule, pooled, extras.files)

    def linear(name: str) -> Method:
        return l2(designs[name](), config.Cs)

    def attention() -> Method:
        return AttentionMIL.of(cohort, pooled.class_token, config.seed)  # type: ignore[union-attr,arg-type]

    methods: dict[str, Callable[[], Method]] = {}
    for name in (n for n in MODELS if n in wanted):
        if name in designs:
            methods[name] = partial(linear, name)
        elif name == "attention_mil":
            if "class_token" in absent:
                absent[name] = absent["class_token"]
            elif not mil_is_there():
                absent[name] = "torchmil is not installed (pip install 'cytosae[mil]')"
            else:
                methods[name] = attention
    return methods, {name: why for name, why in absent.items() if name in wanted}


def _check_drawn(classes: list[str], sizes: Ints, config: ClassifyConfig, target: str) -> None:
    few = int(sizes.argmin())
    if sizes[few] < config.n_folds:
        remedy = f"use --folds {sizes[few]} or fewer" if sizes[few] >= 2 else "add patients or leave this one out"
        raise CytosaeError(
            f"{target} {classes[few]!r} has {sizes[few]} patient{'s' * bool(sizes[few] != 1)} with usable cells, but "
            f"{config.n_folds} folds want at least {config.n_folds}; {remedy}."
        )


def _check_fixed(folds: Sequence[Fold], y: Ints, classes: list[str], name: str) -> None:
    for k, label in enumerate(classes):
        for fold in folds:
            if not (y[fold.train] == k).any():
                raise CytosaeError(f"Fold {fold.fold} of {name} trains on no patient of {label!r}; mend the folds.")
        if not any((y[fold.test] == k).any() for fold in folds):
            raise CytosaeError(f"{name} tests no patient of {label!r}, so it cannot be scored; mend the folds.")
