"""A graph that became a module can be exported by PyTorch, as it is and with an open batch."""

from __future__ import annotations

import warnings

import torch
from onnx import parser

from lowbit.interpreter import to_torch


def test_a_quantized_graph_is_exported_with_an_open_batch() -> None:
    """Shapes, axes and pads are initializers in ONNX, and must be numbers in an exported program."""
    module = to_torch(
        parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 2] y)
        <float scale = {0.05}, uint8 zero = {128}, int64[2] shape = {-1, 2}, int64[1] axes = {2},
         int64[4] pads = {0, 1, 0, 1},
         int64[3] split = {0, 2, 2}> {
            codes = QuantizeLinear (x, scale, zero)
            values = DequantizeLinear (codes, scale, zero)
            cube = Reshape (values, split)
            summed = ReduceSum <keepdims = 0> (cube, axes)
            padded = Pad (summed, pads)
            halves = Reshape (padded, shape)
            first, second = Split <axis = 0> (halves)
            y = Add (first, second)
        }
    """)
    ).eval()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fixed = torch.export.export(module, (x,))
        opened = torch.export.export(module, (x,), dynamic_shapes={"inputs": ({0: torch.export.Dim.AUTO},)})
    assert torch.equal(fixed.module()(x)[0], module(x)[0])
    assert torch.equal(opened.module()(x[:4])[0], module(x[:4])[0])
