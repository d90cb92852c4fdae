"""Student and teacher: one step, the state for a checkpoint, and the adapted weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from cytosae.backbones import Backbone
from cytosae.training.adapt._adaptation import Adaptation
from cytosae.training.adapt._heads import Prototypes, balanced, hidden_patches, spread
from cytosae.training.adapt._views import Views, device_type

#: Cells a pass of those whose tokens the prototypes start at (every second one of so many), and patches of each.
_START_CELLS, _START_PATCHES = 24, 16
#: Cells whose mean token stands in for a hidden one; cells on which `Adapter.measure` looks.
_PLACE_CELLS, _MEASURED = 256, 64
_KINDS = ("class", "patch")


class Blocks(nn.Module):
    """Trained blocks, numbered as in the network; each token of their output brought to mean 0 and variance 1."""

    def __init__(self, backbone: Backbone, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last, self._run = first, last, backbone.run_blocks
        self.blocks = nn.ModuleList(copy.deepcopy(backbone.model.blocks[i]) for i in range(first, last + 1))
        self.mask = nn.Parameter(torch.zeros(backbone.d_in))
        self.requires_grad_(True)  # those of a backbone are frozen

    def __deepcopy__(self, memo: dict[int, Any]) -> Blocks:
        new = copy.copy(self)
        new.__dict__ = {k: v if k == "_run" else copy.deepcopy(v, memo) for k, v in self.__dict__.items()}
        return new

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, n_tokens, d_in] behind block `first` - 1 -> the same behind block `last`."""
        numbered = dict(enumerate(self.blocks, start=self.first))
        x = self._run(x, self.first, self.last + 1, numbered)
        return F.layer_norm(x.float(), x.shape[-1:])


class Adapter:
    """Self-distillation over stored views.

    The student says of one view of a cell what the teacher, which follows it slowly, says of another one: the class token
    across views (DINO, Caron et al. 2021), patches where the student sees nothing (iBOT, Zhou et al. 2022), and patches of one
    place in another stain. What a token says is its share in prototypes, balanced over many tokens.

    Random numbers come from `rng` and torch's own generator; `state` holds both.
    """

    def __init__(self, views: Views, backbone: Backbone, config: Adaptation, first: int, last: int, seed: int, *,
                 bfloat16: bool, fresh: bool = True) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.views, self.config, self.n = views, config, views.n_cells
        self.rng = np.random.default_rng(seed)
        self.device, self.bfloat16 = backbone.device, bfloat16
        self.grid, self.n_prefix, self.n_class = backbone.grid, backbone.n_prefix, backbone.n_class
        n_found = sum(-(-(min(self.n, a + _START_CELLS) - a) // 2) for a in range(0, self.n, _START_CELLS))
        many = {"class": n_found, "patch": n_found * min(_START_PATCHES, self.n_patches)}
        wanted = {"class": config.class_prototypes, "patch": config.patch_prototypes}
        kept = {"class": config.class_kept, "patch": config.patch_kept}
        width, feature = backbone.d_in, min(config.feature, backbone.d_in, n_found)
        blocks = Blocks(backbone, first, last).to(self.device)
        found = self._start_tokens(blocks) if fresh else None
        self.student = nn.ModuleDict({"blocks": blocks})
        for kind in _KINDS:
            head = Prototypes(width, feature, max(2, min(wanted[kind], many[kind] // 4)))
            if found is not None:
                head.start(found[kind])
            self.student[kind] = head.to(self.device)
        self.place = self.read(0, np.arange(0, self.n, max(1, self.n // _PLACE_CELLS))).mean(0)
        self.teacher: Any = copy.deepcopy(self.student).requires_grad_(False)
        self.kept = {kind: torch.zeros(kept[kind], feature, device=self.device) for kind in _KINDS}
        self.n_kept = {kind: torch.zeros((), dtype=torch.int64) for kind in _KINDS}
        self._generators = {"numpy": torch.zeros(37, dtype=torch.uint8), "torch": torch.get_rng_state()}
        self.optimiser = self._optimiser()

    @property
    def n_patches(self) -> int:
        """Patches of a view."""
        return self.grid[0] * self.grid[1]

    def _optimiser(self) -> torch.optim.AdamW:
        student: Any = self.student
        c, blocks = self.config, list(student["blocks"].blocks)
        rates = [(block, c.layer_decay ** (len(blocks) - 1 - i)) for i, block in enumerate(blocks)]
        rates += [(self.student[kind], 2.0) for kind in _KINDS]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in module.parameters() if (p.ndim > 1) == wide],
             "weight_decay": c.weight_decay * wide, "rate": rate}
            for module, rate in rates
            for wide in (True, False)
        ]  # fmt: skip
        groups.append({"params": [self.student["blocks"].mask], "weight_decay": 0.0, "rate": 10.0})
        optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=c.lr, betas=(0.9, 0.98))
        for p in self.student.parameters():  # before the first step, so that a checkpoint finds their places
            optimiser.state[p] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p),
                                  "exp_avg_sq": torch.zeros_like(p)}  # fmt: skip
        return optimiser

    def read(self, number: int, cells: npt.NDArray[np.int64]) -> torch.Tensor:
        """float32 [cells, n_tokens, d_in] of one view."""
        return self.views.read(number, cells).to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(device_type(self.device), torch.bfloat16, enabled=self.bfloat16)

    def _whole(self, tokens: torch.Tensor) -> torch.Tensor:
        """What stands for the whole cell: the class token, or where there is none the mean patch; [n, d_in]."""
        return tokens[:, 0] if self.n_class else tokens[:, self.n_prefix :].mean(1)

    def _start_tokens(self, blocks: Blocks) -> dict[str, torch.Tensor]:
        found: dict[str, list[torch.Tensor]] = {kind: [] for kind in _KINDS}
        with torch.no_grad(), self._autocast():
            for a in range(0, self.n, _START_CELLS):
                number = int(self.rng.integers(self.config.views))
                z = blocks(self.read(number, np.arange(a, min(self.n, a + _START_CELLS), 2)))
                some = self.rng.choice(self.n_patches, min(_START_PATCHES, self.n_patches), replace=False)
                found["class"].append(self._whole(z).float().cpu())
                found["patch"].append(z[:, self.n_prefix + some].flatten(0, 1).float().cpu())
        return {kind: torch.cat(parts) for kind, parts in found.items()}

    def _shares(self, kind: str, feature: torch.Tensor) -> torch.Tensor:
        """What the teacher says of these rows, balanced over them and those it saw before."""
        kept, n = self.kept[kind], int(self.n_kept[kind])
        rows = torch.cat([feature, kept[:n]])[: max(len(kept), len(feature))]
        n = min(len(rows), len(kept))
        kept[:n], self.n_kept[kind][...] = rows[:n], n
        return balanced(self.teacher[kind].logits(rows), self.config.teacher)[: len(feature)]

    def step(self, step: int) -> dict[str, float]:
        """One step; gives the losses."""
        c, batch = self.config, min(self.config.batch, self.n)
        done = step / c.steps
        fall = 0.49 * (1 + math.cos(math.pi * done)) + 0.02
        rise = min(1.0, (step + 1) / c.warmup) if c.warmup else 1.0
        for group in self.optimiser.param_groups:
            group["lr"] = c.lr * group["rate"] * rise * fall
        cells = np.sort(self.rng.choice(self.n, batch, replace=False))
        same = self.rng.random() < c.same
        if same:
            a = 2 * int(self.rng.integers(c.views // 2))
            numbers = [a, a + 1]
        else:
            two = np.array([0, 1]) if c.views == 4 else self.rng.choice(c.views // 2, 2, replace=False)
            numbers = [2 * int(g) + int(self.rng.integers(2)) for g in two]
        x = torch.cat([self.read(number, cells) for number in numbers])
        hidden = hidden_patches(len(x), self.grid, c.masked, self.rng)
        look = hidden | (torch.rand(len(x), self.n_patches) < c.also) if same else hidden.clone()
        look[0, 0] |= not look.any()
        nothing = torch.zeros(len(x), self.n_prefix, dtype=torch.bool)
        hidden, look = (torch.cat([nothing, m], 1).to(self.device) for m in (hidden, look))

        with torch.no_grad(), self._autocast():
            told = self.teacher["blocks"](x)
            about = told.roll(batch, 0) if same else told
            features = {
                "class": self.teacher["class"].feature(self._whole(told)),
                "patch": self.teacher["patch"].feature(about[look]),
            }
        with torch.no_grad():
            wanted = {kind: self._shares(kind, features[kind]) for kind in _KINDS}
        wanted["class"] = wanted["class"].roll(batch, 0)
        student: Any = self.student
        with self._autocast():
            said = student["blocks"](torch.where(hidden[..., None], self.place + student["blocks"].mask, x))
            feature = student["class"].feature(self._whole(said))
            logits = {"class": student["class"].logits(feature),
                      "patch": student["patch"].logits(student["patch"].feature(said[look]))}  # fmt: skip
        losses = {
            kind: -(wanted[kind] * F.log_softmax(logits[kind].float() / c.student, 1)).sum(1).mean() for kind in _KINDS
        }
        apart = (spread(feature[:batch].float()) + spread(feature[batch:].float())) / 2
        loss = losses["class"] + losses["patch"] + c.spread * apart
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.parameters(), 3.0)
        self.optimiser.step()
        with torch.no_grad():
            follow = (1 - c.momentum) / 2 * (1 + math.cos(math.pi * done))
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, follow)
        said_of = {kind: float(value.detach()) for kind, value in losses.items()}
        return {**said_of, "apart": float(apart.detach()), "lr": c.lr * rise * fall}

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """What the teacher's tokens are like, on views 0 and 1 (two stains of one geometry) of some cells.

        Returns
        -------
        ``stain``: half the mean squared distance of patches of one place in two stains, over the patches' variance (0: the
        stain makes no difference, 1: as different as any two patches). ``n_dimensions``: participation ratio of the
        patches' covariance, (sum of eigenvalues)^2 / sum of their squares; it falls to 1 when tokens collapse.
        """
        cells = np.unique(np.linspace(0, self.n - 1, _MEASURED).round().astype(np.int64))
        parts = []
        for number in (0, 1):
            for a in range(0, len(cells), self.config.batch):
                with self._autocast():
                    z = self.teacher["blocks"](self.read(number, cells[a : a + self.config.batch]))
                parts.append(z[:, self.n_prefix :].flatten(0, 1).cpu())
        tokens = torch.cat(parts).double()
        half = len(tokens) // 2
        centred = tokens - tokens.mean(0)
        variance = centred.square().sum(1).mean()
        values = torch.linalg.eigvalsh(centred.T @ centred)
        stain = (tokens[:half] - tokens[half:]).square().sum(1).mean() / 2 / variance
        return {"stain": float(stain), "n_dimensions": float(values.sum() ** 2 / values.square().sum())}

    def state(self) -> dict[str, torch.Tensor]:
        """Everything a fresh process needs to go on; call `restore` after its tensors were filled."""
        s = self.rng.bit_generator.state
        numbers = [s["state"]["state"].to_bytes(16), s["state"]["inc"].to_bytes(16), bytes([s["has_uint32"]]),
                   s["uinteger"].to_bytes(4)]  # fmt: skip
        self._generators["numpy"].copy_(torch.frombuffer(bytearray(b"".join(numbers)), dtype=torch.uint8))
        self._generators["torch"].copy_(torch.get_rng_state())
        out = {f"generator.{name}": t for name, t in self._generators.items()}
        for who in ("student", "teacher"):
            out |= {f"{who}.{name}": p.data for name, p in getattr(self, who).named_parameters()}
        for name, p in self.student.named_parameters():
            out |= {f"{key}.{name}": t for key, t in self.optimiser.state[p].items()}
        for kind in _KINDS:
            out |= {f"kept.{kind}": self.kept[kind], f"n_kept.{kind}": self.n_kept[kind]}
        return out

    def restore(self) -> None:
        """Set the generators to what was read into the tensors of `state`."""
        raw = self._generators["numpy"].numpy().tobytes()
        state, inc = (int.from_bytes(raw[a : a + 16]) for a in (0, 16))
        self.rng.bit_generator.state = {
            "bit_generator": "PCG64", "state": {"state": state, "inc": inc},
            "has_uint32": raw[32], "uinteger": int.from_bytes(raw[33:]),
        }  # fmt: skip
        torch.set_rng_state(self._generators["torch"])

    def is_finite(self) -> bool:
        """Whether the weights are numbers: others are not worth a checkpoint."""
        return all(bool(torch.isfinite(p).all()) for p in self.student.parameters())

    def weights(self, backbone: Backbone) -> dict[str, torch.Tensor]:
        """The whole network with the teacher's blocks, by timm's names."""
        state = {name: value.detach().cpu().clone() for name, value in backbone.model.state_dict().items()}
        blocks = self.teacher["blocks"]
        for i, block in enumerate(blocks.blocks, start=blocks.first):
            state |= {f"blocks.{i}.{name}": value.detach().cpu().clone() for name, value in block.state_dict().items()}
        return state
