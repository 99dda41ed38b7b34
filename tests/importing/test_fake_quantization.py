"""Modules that already carry quantization: eager QAT, exported Q/DQ operators, and functions of torch."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lowbit.graph import clean
from lowbit.importing import import_model

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def operators(model: Any) -> list[str]:
    return sorted(node.op_type for node in clean(model).model.graph)


def prepared(weights: Any) -> nn.Module:
    """Return a small network as `torch.ao.quantization.prepare_qat` makes it, calibrated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.ao.quantization as ao

        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
                self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.dequant(self.relu(self.conv(self.quant(x))))

        torch.manual_seed(0)
        network = Network().train()
        network.qconfig = ao.QConfig(activation=ao.default_fake_quant, weight=weights)
        ao.prepare_qat(network, inplace=True)
        network(X)
        network(-X)
    return network


@pytest.mark.parametrize("kind", ["default_weight_fake_quant", "default_per_channel_weight_fake_quant"])
def test_fake_quantizers_become_pairs(kind: str) -> None:
    """`import_model` itself runs the graph beside the module, to 50 dB; fake quantizers go on observing afterwards."""
    import torch.ao.quantization as ao

    network = prepared(getattr(ao, kind))
    quantizers = {name: type(module).__name__ for name, module in network.named_modules() if "fake_quant" in name}
    imported = import_model(network, X[:1])
    found = operators(imported.model)
    assert found.count("QuantizeLinear") == found.count("DequantizeLinear") >= 2
    assert not {"Round", "Floor", "Clip"} & set(found)
    after = {name: type(module).__name__ for name, module in network.named_modules() if "fake_quant" in name}
    assert after == quantizers
    assert network.training
    shape = imported.model.graph.inputs[0].shape
    assert shape is not None
    assert not isinstance(shape[0], int), "the batch stays open"


@pytest.mark.parametrize(
    ("low", "high"), [(0, 255), (-128, 127), (-127, 127), (0, 127), (-8, 7), (-32768, 32767), (0, 15)]
)
def test_functions_of_torch(low: int, high: int) -> None:
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            zero = (low + high + 1) // 2
            y = torch.fake_quantize_per_tensor_affine(x, 0.03, zero, low, high)
            scale, zeros = torch.tensor([0.05, 0.02, 0.1]), torch.full((3,), zero, dtype=torch.int32)
            return torch.fake_quantize_per_channel_affine(y, scale, zeros, 1, low, high)

    imported = import_model(Functional(), X)
    assert ("QuantizeLinear" in operators(imported.model)) == (low >= -128 and high <= 255)


def test_operators_of_exported_quantizers() -> None:
    import torch.ao.quantization.fx._decomposed

    pairs = torch.ops.quantized_decomposed

    class Converted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", torch.randint(-127, 128, (4, 3, 3, 3), dtype=torch.int8))
            self.register_buffer("scales", torch.rand(4) * 0.01 + 0.001)
            self.register_buffer("zeros", torch.zeros(4, dtype=torch.int64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = pairs.quantize_per_tensor(x, 0.02, 128, 0, 255, torch.uint8)
            x = pairs.dequantize_per_tensor(x, 0.02, 128, 0, 255, torch.uint8)
            weight = pairs.dequantize_per_channel(self.codes, self.scales, self.zeros, 0, -127, 127, torch.int8)
            y = nn.functional.conv2d(x, weight)
            scale, zero = torch.tensor(0.01), torch.tensor(10)
            y = pairs.quantize_per_tensor.tensor(y, scale, zero, -128, 127, torch.int8)
            return pairs.dequantize_per_tensor.tensor(y, scale, zero, -128, 127, torch.int8)

    module = Converted()
    imported = import_model(module, X)
    assert operators(imported.model) == sorted(["QuantizeLinear"] * 2 + ["DequantizeLinear"] * 3 + ["Conv"])
    stored = imported.model.graph.initializers["codes"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), module.codes.numpy())


def test_torchao_pt2e() -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        program = torch.export.export(network, (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        observed = prepare_pt2e(program.module(), quantizer)
        observed(X)
        converted = convert_pt2e(observed)
    found = operators(import_model(converted, X).model)
    assert found.count("Conv") == 2
    assert found.count("QuantizeLinear") == 2
    assert found.count("DequantizeLinear") == 4
