"""A compiled forward pass: what torch's compiler makes of the blocks, for batches of one shape.

Compiled code adds in another order than the eager kernels, so tokens differ in their last bits: who keeps them records which
of the two made them. The compiler reads nothing pickled (its caches of graphs are switched off), chooses nothing by the clock
(so that the same network compiles to the same numbers again), and its object files lie in the cache folder of the user.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from cytosae.storage import cache_folder

#: Largest difference between compiled and eager tokens, relative to the largest token, with which compiled code is believed.
#: Measured: 5e-7 (float32) and 6e-3 (bfloat16) with DINOv2-S.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def why_not_compiled(device: str) -> str:
    """What is missing here to compile a forward pass; empty where nothing is."""
    kind = torch.device(device).type
    if kind == "cpu":
        wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
        return "" if any(shutil.which(name) for name in wanted) else "no C++ compiler is there"
    if kind == "cuda":
        return "" if importlib.util.find_spec("triton") else "triton is not installed"
    return f"nothing is compiled for {kind}"


def compile_blocks(blocks: Sequence[Any]) -> list[Callable[..., torch.Tensor]]:
    """Compiled stand-ins of blocks of one shape: the first call compiles one, and the others share its code."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    key = "TORCHINDUCTOR_CACHE_DIR"
    if (
        os.environ.get(key, default_cache_dir()) == default_cache_dir()
    ):  # torch sets its default too, a shared place in /tmp
        os.environ[key] = str(cache_folder() / "inductor")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it says where no graphics card is
    return [torch.compile(block, dynamic=False, fullgraph=True) for block in blocks]


@contextmanager
def compiler_settings() -> Iterator[None]:
    """What holds whenever compiled blocks are called, since a call may compile."""
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    with (
        inductor.patch(fx_graph_cache=False, max_autotune=False, compile_threads=1),
        functorch.patch(enable_autograd_cache=False),
        dynamo.patch(recompile_limit=64),  # each backbone of a process counts, all being calls of the same code
    ):
        yield
