"""Attention over a patient's cells (Ilse, Tomczak, Welling, ICML 2018) by torchmil, an optional part."""

from __future__ import annotations

import importlib.util
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae.patients._calibration import fit_temperature
from cytosae.patients._cohort import Cohort, Floats, Ints
from cytosae.patients._designs import settled
from cytosae.patients._methods import Answer
from cytosae.patients._solvers import softmax

#: Fixed beforehand: width of the attention, learning rate, decay, cells a patient in a step, patients in a step.
ATTENTION, RATE, DECAY, N_CELLS, N_PATIENTS = 64, 2e-3, 1e-2, 64, 8
#: Steps to choose from, by log loss on one inner part.
STEPS = (50, 100, 200, 400)


def mil_is_there() -> bool:
    """Whether torchmil is installed."""
    return importlib.util.find_spec("torchmil") is not None


@dataclass(frozen=True)
class AttentionModel:
    """A trained network with the standardisation of its tokens."""

    network: Any
    centre: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    steps: int

    def to_bytes(self) -> bytes:
        """Everything fitted, byte for byte."""
        buffer = io.BytesIO(self.centre.tobytes() + self.scale.tobytes() + self.steps.to_bytes(4, "little"))
        buffer.seek(0, io.SEEK_END)
        for value in self.network.state_dict().values():
            buffer.write(value.numpy().tobytes())
        return buffer.getvalue()


@dataclass(frozen=True)
class AttentionMIL:
    """Gated attention over the class tokens of a patient's cells, then one linear layer.

    Attributes
    ----------
    tokens
        [n_cells, d_in].
    bags
        Rows of each patient.
    sums, squares
        float64 [n_patients, d_in]: the patient's tokens, and their squares, summed.
    seed
        Of weights and draws.
    """

    tokens: npt.NDArray[np.floating[Any]]
    bags: list[Ints]
    sums: Floats
    squares: Floats
    seed: int

    @classmethod
    def of(cls, cohort: Cohort, class_tokens: npt.NDArray[np.floating[Any]], seed: int) -> AttentionMIL:
        """Bags of a cohort, their cells in an order of their own."""
        order = settled(cohort.owner, class_tokens)
        owner = cohort.owner[order]
        ends = np.searchsorted(owner, np.arange(len(cohort.patients) + 1))
        bags = [order[a:b] for a, b in itertools.pairwise(ends)]
        sums, squares = np.zeros((2, len(bags), class_tokens.shape[1]))
        for i, bag in enumerate(bags):
            some = np.asarray(class_tokens[bag], np.float64)
            sums[i], squares[i] = some.sum(0), (some**2).sum(0)
        return cls(class_tokens, bags, sums, squares, seed)

    def fit(self, train: Ints, inner: Sequence[tuple[Ints, Ints]], ask: Ints, y: Ints, classes: list[str]) -> Answer:
        """The number of steps is chosen on the first inner part; see `Method`."""
        steps, temperature = STEPS[1], 1.0
        if inner:
            part, rest = inner[0]
            found = self._train(part, y, len(classes), STEPS, rest)
            losses = [-np.log(np.maximum(softmax(z)[np.arange(len(rest)), y[rest]], 1e-300)).sum() for z in found[1]]
            best = int(np.argmin(losses))
            steps, temperature = STEPS[best], fit_temperature(found[1][best], y[rest])
        model, logits = self._train(train, y, len(classes), (steps,), ask)
        return Answer(model, logits[0], temperature)

    def _train(
        self, train: Ints, y: Ints, n_classes: int, stops: Sequence[int], ask: Ints
    ) -> tuple[AttentionModel, list[Floats]]:
        """Train up to the last of `stops`; gives the network and the logits of `ask` at each stop."""
        import torch
        from torchmil.nn import AttentionPool

        centre, scale = self._spread(train)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, 2**36]))
        logits = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            pool = AttentionPool(in_dim=self.tokens.shape[1], att_dim=ATTENTION, gated=True)
            network = torch.nn.ModuleDict({"pool": pool, "out": torch.nn.Linear(self.tokens.shape[1], n_classes)})
            optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
            order: list[int] = []
            for step in range(1, stops[-1] + 1):
                while len(order) < min(N_PATIENTS, len(train)):
                    order += rng.permutation(train).tolist()
                patients, order = np.array(order[:N_PATIENTS]), order[N_PATIENTS:]
                bags = [rng.permutation(self.bags[i])[:N_CELLS] for i in patients]
                X = torch.zeros(len(bags), max(map(len, bags)), self.tokens.shape[1])
                mask = torch.zeros(X.shape[:2])
                for i, bag in enumerate(bags):
                    X[i, : len(bag)] = torch.from_numpy((self._cells(bag) - centre) / scale)
                    mask[i, : len(bag)] = 1
                logit = network["out"](network["pool"](X, mask))
                loss = torch.nn.functional.cross_entropy(logit, torch.from_numpy(y[patients]))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                if step in stops:
                    logits.append(self._logits(network, centre, scale, ask))
        return AttentionModel(network, centre, scale, stops[-1]), logits

    def _cells(self, rows: Ints) -> npt.NDArray[np.float32]:
        return np.asarray(self.tokens[rows], np.float32)

    def _spread(self, patients: Ints) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Mean and standard deviation of the patients' tokens."""
        n = sum(len(self.bags[i]) for i in patients)
        mean = self.sums[patients].sum(0) / n
        scale = np.sqrt(np.maximum(self.squares[patients].sum(0) / n - mean**2, 0)) + 1e-6
        return mean.astype(np.float32), scale.astype(np.float32)

    def _logits(self, network: Any, centre: Any, scale: Any, patients: Ints) -> Floats:
        import torch

        with torch.inference_mode():
            rows = [torch.from_numpy((self._cells(self.bags[i]) - centre) / scale)[None] for i in patients]
            return np.concatenate([network["out"](network["pool"](X)).numpy() for X in rows]).astype(np.float64)
