"""One training step of other libraries, in their own environment (`make bench-peers`): ``peers.py NAME SIZE KIND --threads N``.

Every library's own classes and its own loss, gradient treatment and optimiser; the weights are those of `_steps.problem`, so that
all see the same tokens and the same number of active latents. Prints one line of JSON. bench_training.py calls this.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os

import torch

from _steps import LR, K, Step, problem, timed

#: Which step each library has for a kind.
PEERS = {
    "saelens": ("topk", "relu", "relu-start"),
    "dictionary_learning": ("topk", "relu", "relu-start"),
    "overcomplete": ("topk", "relu", "relu-start"),
    "sparsify": ("topk",),
}
_PACKAGE = {
    "saelens": "sae-lens",
    "dictionary_learning": "dictionary-learning",
    "overcomplete": "overcomplete",
    "sparsify": "eai-sparsify",
}
_L1 = 8e-5


def saelens(D: torch.Tensor, bias: torch.Tensor, kind: str) -> Step:
    """SAELens: its training forward pass, Adam, gradient clipping at 1 as its trainer does."""
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    m, d = D.shape
    if kind == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=m, k=K))
    else:
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d, d_sae=m, l1_coefficient=_L1))
    _fill({sae.W_enc: D.T, sae.W_dec: D, sae.b_enc: bias})
    adam = torch.optim.Adam(sae.parameters(), lr=LR)

    def step(x: torch.Tensor) -> float:
        out = sae.training_forward_pass(TrainStepInput(
            sae_in=x, coefficients={"l1": _L1}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False,
        ))  # fmt: skip
        adam.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        acts = out.feature_acts
        return float((acts.to_dense() if acts.is_sparse else acts).gt(0).sum()) / len(x)

    return step


def dictionary_learning(D: torch.Tensor, bias: torch.Tensor, kind: str) -> Step:
    """dictionary_learning: its trainers' `update`."""
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    m, d = D.shape
    common = {
        "steps": 10_000,
        "activation_dim": d,
        "dict_size": m,
        "layer": 0,
        "lm_name": "none",
        "lr": LR,
        "device": "cpu",
    }
    trainer = TopKTrainer(k=K, **common) if kind == "topk" else StandardTrainer(l1_penalty=_L1, **common)
    _fill({trainer.ae.encoder.weight: D, trainer.ae.encoder.bias: bias, trainer.ae.decoder.weight: D.T})
    steps = iter(range(1, 10**6))  # from 1: its step 0 computes a geometric median besides

    def step(x: torch.Tensor) -> float:
        trainer.update(next(steps), x)
        return float(K if kind == "topk" else 0)

    return step


def overcomplete(D: torch.Tensor, bias: torch.Tensor, kind: str) -> Step:
    """overcomplete: the body of its `train_sae` (clipping at 1), without what it measures for its log."""
    from overcomplete.sae import SAE, TopKSAE
    from overcomplete.sae.losses import mse_l1

    m, d = D.shape
    sae = TopKSAE(d, nb_concepts=m, top_k=K) if kind == "topk" else SAE(d, nb_concepts=m)
    linear = next(module for module in sae.encoder.modules() if isinstance(module, torch.nn.Linear))
    _fill({linear.weight: D} | ({linear.bias: bias} if linear.bias is not None else {}))
    adam = torch.optim.Adam(sae.parameters(), lr=LR)

    def step(x: torch.Tensor) -> float:
        adam.zero_grad()
        pre, z, y = sae(x)
        mse_l1(x, y, pre, z, sae.get_dictionary(), penalty=0.0 if kind == "topk" else _L1).backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        return float(z.gt(0).sum()) / len(x)

    return step


def sparsify(D: torch.Tensor, bias: torch.Tensor, kind: str) -> Step:
    """sparsify: forward, FVU, parallel gradients removed, Adam, unit decoder, as its trainer does."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernel wants a graphics card
    from sparsify import SparseCoder, SparseCoderConfig

    m, d = D.shape
    sae = SparseCoder(d, SparseCoderConfig(num_latents=m, k=K))
    _fill({sae.encoder.weight: D, sae.encoder.bias: bias, sae.W_dec: D})
    adam = torch.optim.Adam(sae.parameters(), lr=LR)

    def step(x: torch.Tensor) -> float:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x)
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        return float(out.latent_acts.gt(0).sum()) / len(x)

    return step


def _fill(parts: dict[torch.Tensor, torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, values in parts.items():
            parameter.copy_(values)


def main() -> None:
    """Time one library on one size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=list(PEERS))
    parser.add_argument("size", metavar="DxLATENTSxTOKENS")
    parser.add_argument("kind")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    d, n_latents, n = map(int, arguments.size.split("x"))
    batches, D, bias = problem(d, n_latents, n, arguments.kind)
    step = globals()[arguments.name](D, bias, arguments.kind)
    print(json.dumps({**timed(step, batches), "version": importlib.metadata.version(_PACKAGE[arguments.name])}))


if __name__ == "__main__":
    main()
