"""Adapt the later blocks of packaged DINOv2-S to cells without labels, for `docs/default-dictionary.md`.

Usage: ``python benchmarks/adapt_backbone.py CELLS --where dataset=acevedo --where 'wbcatt_split!=val,test' --out FOLDER``

Blocks 0 to 5 stay as they are: the tokens behind them are computed once, of four views a cell (two geometries, each stained in two
ways), 0.2 MB each. Blocks 6 to 10 are trained as a student that has to say of a view what a slowly following teacher says of another one:
the class token across all views, patches where the student sees nothing (masked), and patches of the same place in another stain. What
a token says is its share in prototypes, which start at the centres of a k-means of the tokens, so that there is a signal from the first
step (after DINO, Caron et al. 2021; iBOT, Zhou et al. 2022; SwAV, Caron et al. 2020; KoLeo, Sablayrolles et al. 2019). The result is the teacher:
``adapted.safetensors``, for ``--backbone dinobloom --weights``.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cytosae import load_backbone, read_cells
from cytosae.backbones import to_input
from cytosae.cells import select
from cytosae.storage import commit_file
from cytosae.tokens import load_images

#: The first block that is trained, and the first one behind those.
FIRST, LAST = 6, 11
GRID, TOKENS, WIDTH, SIDE = 16, 257, 384, 224
VIEWS = 4
#: Numbers a token is brought to, prototypes of class tokens and of patches, and outputs of the teacher kept to balance these.
FEATURE, PROTOTYPES, KEPT = 96, {"class": 256, "patch": 1024}, {"class": 2048, "patch": 12_000}
STUDENT, TEACHER = 0.1, 0.06


def geometry(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """[1, 3, side, side], zoomed, turned, mirrored and moved."""
    zoom = math.exp(rng.uniform(math.log(0.75), math.log(1.6)))
    quarter, mirrored = int(rng.integers(4)), int(rng.integers(2))
    angle = quarter * math.pi / 2 + rng.uniform(-0.2, 0.2)
    shift = rng.uniform(-0.12, 0.12, 2)
    c, s, m = math.cos(angle) / zoom, math.sin(angle) / zoom, 1 - 2 * mirrored
    matrix = torch.tensor([[[c * m, -s, shift[0]], [s * m, c, shift[1]]]], dtype=torch.float32)
    grid = F.affine_grid(matrix, [1, 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def stain(x: torch.Tensor, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """uint8 [side, side, 3]: another strength and balance of stain, cast, now and then grey, blurred, or a poor JPEG."""
    density = -torch.log(x.clamp(1 / 255, 1))
    strength = math.exp(rng.normal(0, 0.3)) * torch.tensor(np.exp(rng.normal(0, 0.15, 3)), dtype=torch.float32)
    cast = torch.tensor(rng.uniform(-0.03, 0.12, 3), dtype=torch.float32)
    x = torch.exp(-(density * strength.view(1, 3, 1, 1) + cast.view(1, 3, 1, 1))).clamp(0, 1)
    if rng.random() < 0.2:
        x = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    if rng.random() < 0.5:
        sigma = rng.uniform(0.3, 2.0)
        reach = int(3 * sigma) + 1
        weights = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / 2 / sigma**2)
        weights = (weights / weights.sum()).view(1, 1, 1, -1)
        x = F.conv2d(F.pad(x.transpose(0, 1), (reach, reach, 0, 0), mode="reflect"), weights)
        x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="reflect"), weights.transpose(2, 3)).transpose(0, 1)
    out: npt.NDArray[np.uint8] = (x[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    if rng.random() < 0.5:
        file = io.BytesIO()
        Image.fromarray(out).save(file, "JPEG", quality=int(rng.integers(30, 95)))
        out = np.asarray(Image.open(file))
    return out


def view(image: npt.NDArray[np.uint8], cell: int, number: int) -> npt.NDArray[np.uint8]:
    """View `number` of a cell; views 0 and 1, and 2 and 3, show the same geometry."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    first = np.random.default_rng((number - number % 2, cell))
    moved = geometry(x, first)
    return stain(moved, np.random.default_rng((number, cell)) if number % 2 else first)


def write_views(path: Path, frame: Any, root: str, backbone: Any) -> None:
    """Tokens behind block 5 of all views: bfloat16 [views, cells, tokens, width]."""
    tokens = np.lib.format.open_memmap(path, "w+", np.int16, (VIEWS, len(frame), TOKENS, WIDTH))
    net, since = backbone.model, time.time()
    for a in range(0, len(frame), 16):
        images = load_images(frame.iloc[a : a + 16], root, backbone)
        for number in range(VIEWS):
            pixels = np.stack([view(image, a + i, number) for i, image in enumerate(images)])
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                x = net._pos_embed(net.patch_embed(to_input(torch.from_numpy(pixels), backbone.preprocessing)))
                for block in net.blocks[:FIRST]:
                    x = block(x)
            tokens[number, a : a + len(pixels)] = x.bfloat16().view(torch.int16).numpy()
        if a % 320 == 0:
            print(f"views of {a:,} of {len(frame):,} cells, {time.time() - since:.0f} s", flush=True)
    tokens.flush()


class Blocks(nn.Module):
    """The trained blocks; their last output, each token brought to mean 0 and variance 1."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.blocks = copy.deepcopy(net.blocks[FIRST:LAST])
        self.mask = nn.Parameter(torch.zeros(WIDTH))
        self.requires_grad_(True)  # those of a backbone are frozen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return F.layer_norm(x.float(), (WIDTH,))


class Prototypes(nn.Module):
    """A projection that starts at the half-whitened principal components, and prototypes that start at cluster centres."""

    def __init__(self, tokens: torch.Tensor, n: int) -> None:
        super().__init__()
        mean = tokens.mean(0)
        _, spread, axes = torch.linalg.svd(tokens - mean, full_matrices=False)
        scale = (spread[:FEATURE] / len(tokens) ** 0.5).sqrt()
        self.project = nn.Linear(WIDTH, FEATURE)
        with torch.no_grad():
            self.project.weight.copy_(axes[:FEATURE] / scale[:, None])
            self.project.bias.copy_(-(axes[:FEATURE] @ mean) / scale)
            points = F.normalize(self.project(tokens), dim=1)
            centres = points[torch.randperm(len(points))[:n]].clone()
            for _ in range(12):
                nearest = (points @ centres.T).argmax(1)
                centres = F.normalize(torch.zeros_like(centres).index_add_(0, nearest, points) + 1e-3 * centres, dim=1)
        self.centres = nn.Parameter(centres)

    def feature(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.project(tokens).float(), dim=-1)

    def logits(self, feature: torch.Tensor) -> torch.Tensor:
        return feature @ F.normalize(self.centres, dim=1).T


def balanced(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Shares in the prototypes, all of which are used alike over the rows (Sinkhorn-Knopp, three rounds)."""
    q = torch.exp((logits - logits.max()) / temperature)
    for _ in range(3):
        q = q / q.sum(0, keepdim=True).clamp_min(1e-9)
        q = q / q.sum(1, keepdim=True)
    return q


def hidden(n: int, rng: np.random.Generator) -> torch.Tensor:
    """bool [n, tokens]: rectangles over a tenth to half of the patches, in seven of ten views."""
    mask = torch.zeros(n, TOKENS, dtype=torch.bool)
    for i in range(n):
        if rng.random() < 0.7:
            wanted, m = rng.uniform(0.1, 0.5) * GRID**2, np.zeros((GRID, GRID), bool)
            while m.sum() < wanted:
                high, wide = rng.integers(3, 8, 2)
                r, c = rng.integers(0, GRID + 1 - high), rng.integers(0, GRID + 1 - wide)
                m[r : r + high, c : c + wide] = True
            mask[i, 1:] = torch.from_numpy(m.ravel())
    return mask


def spread(feature: torch.Tensor) -> torch.Tensor:
    """KoLeo: minus the mean log distance to the nearest other row."""
    with torch.no_grad():
        nearest = (feature @ feature.T - 2 * torch.eye(len(feature))).argmax(1)
    return -torch.log((feature - feature[nearest]).norm(dim=1) + 1e-6).mean()


def _modules(net: Any) -> Any:
    return nn.ModuleDict({"blocks": Blocks(net)})


class Training:
    """Student, teacher, prototypes and optimiser over the stored views."""

    def __init__(self, stored: npt.NDArray[np.int16], net: Any, lr: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.stored, self.rng, self.n = stored, np.random.default_rng(seed), stored.shape[1]
        self.student = _modules(net)
        found: dict[str, list[torch.Tensor]] = {"class": [], "patch": []}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for a in range(0, self.n, 24):
                z = self.student["blocks"](
                    self.read(int(self.rng.integers(VIEWS)), np.arange(a, min(self.n, a + 24), 2))
                )
                found["class"].append(z[:, 0].float())
                found["patch"].append(z[:, 1 + self.rng.choice(GRID**2, 16, replace=False)].flatten(0, 1).float())
        for kind, n in PROTOTYPES.items():
            self.student[kind] = Prototypes(torch.cat(found[kind]), n)
        self.place = self.read(0, np.arange(0, self.n, max(1, self.n // 256))).mean(0)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.kept = {kind: torch.zeros(0, FEATURE) for kind in PROTOTYPES}
        self.lr = lr
        blocks = list(self.student["blocks"].blocks)
        rates = [(block, 0.8 ** (len(blocks) - 1 - i)) for i, block in enumerate(blocks)]
        rates += [(self.student[kind], 2.0) for kind in PROTOTYPES]
        groups: list[dict[str, Any]] = [
            {
                "params": [p for p in module.parameters() if (p.ndim > 1) == wide],
                "weight_decay": 0.04 * wide,
                "rate": rate,
            }
            for module, rate in rates
            for wide in (True, False)
        ]
        groups.append({"params": [self.student["blocks"].mask], "weight_decay": 0.0, "rate": 10.0})
        self.optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))

    def read(self, number: int, cells: npt.NDArray[np.int64]) -> torch.Tensor:
        """float32 [cells, tokens, width] of one view."""
        return torch.from_numpy(self.stored[number, cells]).view(torch.bfloat16).float()

    def shares(self, kind: str, feature: torch.Tensor) -> torch.Tensor:
        """What the teacher says of these rows, balanced over them and those it saw before."""
        self.kept[kind] = torch.cat([feature, self.kept[kind]])[: KEPT[kind]]
        return balanced(self.teacher[kind].logits(self.kept[kind]), TEACHER)[: len(feature)]

    def step(self, done: float, warm: float, batch: int) -> dict[str, float]:
        """One step with two views of each of `batch` cells; `done` is the share of the training behind it."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * group["rate"] * warm * (0.49 * (1 + math.cos(math.pi * done)) + 0.02)
        cells = np.sort(self.rng.choice(self.n, batch, replace=False))
        same = self.rng.random() < 0.7  # two stains of one geometry, or two geometries
        if same:
            a = 2 * int(self.rng.integers(VIEWS // 2))
            views = (a, a + 1)
        else:
            views = (int(self.rng.integers(2)), 2 + int(self.rng.integers(2)))
        x = torch.cat([self.read(number, cells) for number in views])
        mask = hidden(len(x), self.rng)
        look = mask.clone()
        if same:
            look[:, 1:] |= torch.rand(len(x), GRID**2) < 0.35
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            told = self.teacher["blocks"](x)
            about = told.roll(batch, 0) if same else told
            features = {
                "class": self.teacher["class"].feature(told[:, 0]),
                "patch": self.teacher["patch"].feature(about[look]),
            }
        with torch.no_grad():
            wanted = {kind: self.shares(kind, feature) for kind, feature in features.items()}
        blocks = self.student["blocks"]
        with torch.autocast("cpu", torch.bfloat16):
            said = blocks(torch.where(mask[..., None], self.place + blocks.mask, x))
            feature = self.student["class"].feature(said[:, 0])
            logits = {"class": self.student["class"].logits(feature),
                      "patch": self.student["patch"].logits(self.student["patch"].feature(said[look]))}  # fmt: skip
        wanted["class"] = wanted["class"].roll(batch, 0)
        losses = {
            kind: -(wanted[kind] * F.log_softmax(logits[kind].float() / STUDENT, 1)).sum(1).mean()
            for kind in PROTOTYPES
        }
        apart = (spread(feature[:batch].float()) + spread(feature[batch:].float())) / 2
        loss = losses["class"] + losses["patch"] + 0.05 * apart
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.parameters(), 3.0)
        self.optimiser.step()
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 0.005 * (1 + math.cos(math.pi * done)))
        return {kind: float(value.detach()) for kind, value in losses.items()} | {"apart": float(apart.detach())}

    def weights(self, net: Any) -> dict[str, torch.Tensor]:
        """The whole network with the teacher's blocks, by timm's names."""
        state = {name: value.clone() for name, value in net.state_dict().items()}
        for i, block in enumerate(self.teacher["blocks"].blocks):
            state |= {f"blocks.{FIRST + i}.{name}": value.clone() for name, value in block.state_dict().items()}
        return state


def main() -> None:
    """Write the views where they are missing, train, write ``adapted.safetensors``."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("cells", type=Path)
    parser.add_argument("--where", action="append", default=[], help="cells that train (column=value)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1_630)
    parser.add_argument("--batch", type=int, default=16, help="cells a step, two views of each")
    parser.add_argument("--lr", type=float, default=1.5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone("dinov2-s")
    cells = read_cells(options.cells)
    frame = select(cells, options.where)
    views, whole = options.out / "views.npy", options.out / "views.json"
    of = {"cells": cells.hash, "where": options.where, "views": VIEWS, "first": FIRST}
    if not whole.is_file() or json.loads(whole.read_text("utf-8")) != of:
        whole.unlink(missing_ok=True)
        write_views(views, frame, cells.root, backbone)
        whole.write_text(json.dumps(of), "utf-8")
    training = Training(np.load(views, mmap_mode="r"), backbone.model, options.lr, options.seed)
    since = time.time()
    for step in range(options.steps):
        losses = training.step(step / options.steps, min(1.0, (step + 1) / 80), options.batch)
        if (step + 1) % 10 == 0:
            rate = (step + 1) * 2 * options.batch / (time.time() - since)
            print(
                f"step {step + 1:,}, {rate:.1f} views a second,",
                {k: round(v, 3) for k, v in losses.items()},
                flush=True,
            )
    with commit_file(options.out / "adapted.safetensors") as temporary:
        save_file(training.weights(backbone.model), temporary)
    print(f"Wrote {options.out / 'adapted.safetensors'}.")


if __name__ == "__main__":
    main()
