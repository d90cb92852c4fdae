"""Writes the small real files in this folder, with the packages that they are of.

Usage, where sae-lens and dictionary-learning are installed: ``python tests/sae/formats_files/write.py``.
Each folder gets what the package writes, and ``expected.safetensors``: tokens, and the package's codes and reconstructions.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}

import torch
from dictionary_learning import __version__ as dl_version
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary
from sae_lens import __version__ as lens_version
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAE, TrainStepInput
from safetensors.torch import save_file

HERE, D, N = Path(__file__).parent, 6, 16


def tokens(n: int, seed: int) -> torch.Tensor:
    """Tokens of a few directions, off centre, as those of a network are."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.nn.functional.normalize(torch.randn(12, D, generator=g), dim=1)
    codes = torch.rand(n, 12, generator=g) * (torch.rand(n, 12, generator=g) < 0.2)
    return 3 * codes @ basis + torch.linspace(-1, 1, D)


def expect(folder: Path, x: torch.Tensor, codes: torch.Tensor, y: torch.Tensor) -> None:
    save_file(
        {"x": x, "codes": codes.detach().contiguous(), "y": y.detach().contiguous()}, folder / "expected.safetensors"
    )


def dictionary_learning() -> None:
    shared: dict[str, Any] = {"activation_dim": D, "dict_size": N, "layer": 10, "lm_name": "vit", "device": "cpu", "seed": 0,
                              "steps": 40, "warmup_steps": 5}  # fmt: skip
    topk = {"k": 3, "threshold_start_step": 2, "lr": 3e-3}
    sparse = {"sparsity_warmup_steps": 2, "lr": 3e-3}
    kinds: dict[str, tuple[type, dict[str, Any]]] = {
        "dl-standard": (StandardTrainer, sparse),
        "dl-topk": (TopKTrainer, topk),
        "dl-batchtopk": (BatchTopKTrainer, topk),
        "dl-matryoshka": (MatryoshkaBatchTopKTrainer, {**topk, "group_fractions": [0.25, 0.75]}),
        "dl-jumprelu": (JumpReluTrainer, {"target_l0": 4.0, **sparse}),
        "dl-gated": (GatedSAETrainer, sparse),
    }
    for name, (trainer, options) in kinds.items():
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        known = trainer.__init__.__code__.co_varnames
        config = {k: v for k, v in {**shared, **options}.items() if k in known}
        data = iter([tokens(64, 100 + step) for step in range(60)])
        trainSAE(data, [{"trainer": trainer, **config}], steps=40, save_dir=str(folder / "run"), autocast_dtype=torch.float32,
                 device="cpu", verbose=False)  # fmt: skip
        for file in ("ae.pt", "config.json"):
            shutil.move(folder / "run" / "trainer_0" / file, folder / file)
        shutil.rmtree(folder / "run")
        if name == "dl-gated":
            continue
        x = tokens(32, 1)
        if name == "dl-matryoshka":
            from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE

            sae = MatryoshkaBatchTopKSAE.from_pretrained(str(folder / "ae.pt"), k=3)
        elif name == "dl-standard":
            from dictionary_learning import AutoEncoder

            sae = AutoEncoder.from_pretrained(str(folder / "ae.pt"), normalize_decoder=False)
        else:
            sae, _ = load_dictionary(str(folder), "cpu")
        codes = sae.encode(x)
        expect(folder, x, codes, sae.decode(codes))


def saelens() -> None:
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "lens-standard": ("standard", {}),
        "lens-standard-uncentred": ("standard", {"apply_b_dec_to_input": False}),
        "lens-standard-layernorm": ("standard", {"normalize_activations": "layer_norm"}),
        "lens-topk": ("topk", {"k": 3}),
        "lens-jumprelu": ("jumprelu", {"jumprelu_init_threshold": 0.3}),
        "lens-batchtopk": ("batchtopk", {"k": 3.0}),
        "lens-gated": ("gated", {}),
    }
    for name, (architecture, options) in kinds.items():
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(0)
        cls, config = get_sae_training_class(architecture)
        sae = cls(config(d_in=D, d_sae=N, **options))
        with torch.no_grad():
            sae.b_dec += tokens(64, 2).mean(0)
        adam = torch.optim.Adam(sae.parameters(), lr=1e-2)
        for step in range(40):
            coefficients = dict.fromkeys(sae.get_coefficients(), 0.01)
            out = sae.training_forward_pass(TrainStepInput(tokens(64, 100 + step), coefficients, None, step, False))
            adam.zero_grad()
            out.loss.backward()
            adam.step()
        sae.save_inference_model(folder)
        check = SAE.load_from_disk(folder)
        x = tokens(32, 1)
        codes = check.encode(x)
        expect(folder, x, codes, check.decode(codes))
        if name in ("lens-batchtopk", "lens-jumprelu", "lens-topk"):  # what a checkpoint of the training holds
            shutil.rmtree(HERE / f"{name}-checkpoint", ignore_errors=True)
            sae.save_model(HERE / f"{name}-checkpoint")
            shutil.copy(folder / "expected.safetensors", HERE / f"{name}-checkpoint")


dictionary_learning()
saelens()
versions = {"dictionary-learning": dl_version, "sae-lens": lens_version, "torch": torch.__version__.split("+")[0],
            "python": sys.version.split()[0]}  # fmt: skip
(HERE / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
