"""Make the dictionary of the `.lbz` format: the structures of small models as exporters and lowbit write them.

The dictionary of a version of the format never changes; this shows where that of version 1 comes from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

import lowbit
from lowbit.container.wire import split
from lowbit.graph.saving import serialize

_NET = """
<ir_version: 8, opset_import: ["" : 17], producer_name: "pytorch", producer_version: "2.6.0">
main_graph (float[batch_size, 1, 28, 28] input) => (float[batch_size, 10] output) {
    "/conv1/Conv_output_0" = Conv <dilations = [1, 1], group = 1, kernel_shape = [5, 5], pads = [0, 0, 0, 0],
        strides = [1, 1]> (input, "conv1.weight", "conv1.bias")
    "/relu/Relu_output_0" = Relu ("/conv1/Conv_output_0")
    "/pool/MaxPool_output_0" = MaxPool <ceil_mode = 0, dilations = [1, 1], kernel_shape = [2, 2], pads = [0, 0, 0, 0],
        strides = [2, 2]> ("/relu/Relu_output_0")
    "/conv2/Conv_output_0" = Conv <dilations = [1, 1], group = 1, kernel_shape = [3, 3], pads = [1, 1, 1, 1],
        strides = [1, 1]> ("/pool/MaxPool_output_0", "conv2.weight", "conv2.bias")
    "/relu_1/Relu_output_0" = Relu ("/conv2/Conv_output_0")
    "/Flatten_output_0" = Flatten <axis = 1> ("/relu_1/Relu_output_0")
    "/fc1/Gemm_output_0" = Gemm <alpha = 1.0, beta = 1.0, transB = 1> ("/Flatten_output_0", "fc1.weight", "fc1.bias")
    "/relu_2/Relu_output_0" = Relu ("/fc1/Gemm_output_0")
    output = Gemm <alpha = 1.0, beta = 1.0, transB = 1> ("/relu_2/Relu_output_0", "fc2.weight", "fc2.bias")
}
"""
_SHAPES = {
    "conv1.weight": (8, 1, 5, 5),
    "conv1.bias": (8,),
    "conv2.weight": (16, 8, 3, 3),
    "conv2.bias": (16,),
    "fc1.weight": (32, 2304),
    "fc1.bias": (32,),
    "fc2.weight": (10, 32),
    "fc2.bias": (10,),
}
_RECIPES: tuple[dict[str, str], ...] = (
    {"method": "weight-only", "weights": "codebook16:per-channel"},
    {"method": "weight-only", "weights": "int4:per-channel"},
    {"method": "dynamic"},
    {"method": "static", "activations": "uint8"},
)


def main() -> None:
    """Run the command line."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("out", type=Path)
    out: Path = arguments.parse_args().out
    net = parser.parse_model(_NET)
    for node in net.graph.node:
        node.name = "/" + node.output[0].strip("/").rsplit("_output", 1)[0]
    rng = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        weight = rng.normal(0, 0.05, shape).astype(np.float32)
        net.graph.initializer.append(numpy_helper.from_array(weight, name))
    data = [{"input": rng.normal(size=(1, 1, 28, 28)).astype(np.float32)} for _ in range(8)]
    operators = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    found = "".join(sorted(operators)).encode()
    for recipe in _RECIPES:
        made = lowbit.quantize(net, data, test_data=data[:2], measure_seconds=0.0, **recipe).model.clone()
        made.metadata_props.clear()
        found += split(serialize(made)).structure
    found += split(net.SerializeToString()).structure
    out.write_bytes(found)


if __name__ == "__main__":
    main()
