"""Modules of PyTorch as ONNX: what they compute, what they are called, and what is said of those that cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lowbit
from lowbit.exceptions import DataError, LowbitError, ModelError
from lowbit.graph import clean, serialize
from lowbit.importing import import_model, is_foreign
from lowbit.runtime import open_session

CLASSES = 6


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        return self.head(self.drop(y.mean((2, 3)))).flatten(1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = self.layer(self.embed(ids))
        weights = torch.ones_like(ids) if mask is None else mask
        return {"hidden": hidden, "pooled": (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(4, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, (last, _) = self.cells(x)
        return y, last


class Nested(nn.Module):
    def forward(self, levels: list[torch.Tensor], scale: float = 2.0) -> list[torch.Tensor]:
        return [level * scale for level in levels]


def outputs(model: Any, feed: dict[str, torch.Tensor]) -> list[Any]:
    session = open_session(serialize(model), threads=1)
    return session.run({name: value.numpy() for name, value in feed.items()})


def shapes(values: Any) -> dict[str, list[Any]]:
    return {str(v.name): [dim if isinstance(dim, int) else dim.value for dim in v.shape] for v in values}


def test_a_module_in_training_mode_is_taken_in_evaluation_mode_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    module = Convolutional().train()
    module.norm.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    imported = import_model(module, torch.randn(1, 3, 8, 8))
    assert (module.training, module.norm.training, module.drop.training) == (True, False, True)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert any("training mode" in note for note in imported.notes)
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(outputs(imported.model, {"x": x})[0], module.eval()(x).numpy(), atol=1e-5)


def test_a_hidden_module_is_put_into_evaluation_mode() -> None:
    """A wrapper that keeps its network in a list does not reach it with `eval()`."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = [Convolutional().train()]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.kept[0](x)

    wrapper = Wrapper().eval()
    imported = import_model(wrapper, torch.randn(2, 3, 8, 8))
    assert wrapper.kept[0].drop.training
    assert any("no submodules" in note and "Convolutional" in note for note in imported.notes)


def test_a_state_dict_fits_the_initializers() -> None:
    module = Convolutional().eval()
    imported = import_model(module, torch.randn(1, 3, 8, 8))
    found = {
        name: value.const_value.numpy()
        for name, value in imported.model.graph.initializers.items()
        if name in module.state_dict()
    }
    assert set(module.state_dict()) - set(found) == {"norm.num_batches_tracked"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, module.state_dict()[name].numpy())
    with torch.no_grad():
        module.head.weight.zero_()
    assert found["head.weight"].any(), "the graph must not share memory with the module"


def test_names_are_the_modules_own() -> None:
    imported = import_model(Convolutional(), torch.randn(1, 3, 8, 8))
    names = {node.name for node in imported.model.graph}
    assert {"stem/Conv", "norm/BatchNormalization", "head/Gemm"} <= names
    text = serialize(imported.model)
    assert b"test_torch_modules" not in text
    assert serialize(import_model(Convolutional(), torch.randn(1, 3, 8, 8)).model) != text  # other weights


def test_the_same_module_gives_the_same_bytes() -> None:
    module = Convolutional()
    first, second = (serialize(import_model(module, torch.randn(1, 3, 8, 8)).model) for _ in range(2))
    assert first == second


def test_dimensions_are_found_and_named() -> None:
    imported = import_model(Convolutional(), torch.randn(1, 3, 8, 8))
    assert shapes(imported.model.graph.inputs) == {"x": ["batch", 3, 8, 8]}
    assert shapes(imported.model.graph.outputs) == {"output": ["batch", CLASSES]}
    ids = torch.randint(0, 50, (1, 7))
    imported = import_model(Encoder(), {"ids": ids, "mask": torch.ones_like(ids)})
    assert shapes(imported.model.graph.inputs) == {"ids": ["batch", "sequence"], "mask": ["batch", "sequence"]}
    assert list(shapes(imported.model.graph.outputs)) == ["hidden", "pooled"]


def test_there_is_one_batch_also_where_inputs_never_meet() -> None:
    class Apart(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return left + 1, right.sum(1)

    imported = import_model(Apart(), (torch.randn(1, 3), torch.randn(1, 4)))
    assert shapes(imported.model.graph.inputs) == {"left": ["batch", 3], "right": ["batch", 4]}
    assert shapes(imported.model.graph.outputs) == {"output_0": ["batch", 3], "output_1": ["batch"]}


def test_an_axis_can_be_opened_and_closed() -> None:
    module = Convolutional()
    opened = import_model(module, torch.randn(2, 3, 8, 8), dynamic={"x": {0: "batch", 2: "height", 3: "width"}})
    assert shapes(opened.model.graph.inputs) == {"x": ["batch", 3, "height", "width"]}
    x = torch.randn(3, 3, 12, 10)
    with torch.no_grad():
        np.testing.assert_allclose(outputs(opened.model, {"x": x})[0], module.eval()(x).numpy(), atol=1e-5)
    closed = import_model(module, torch.randn(2, 3, 8, 8), dynamic={})
    assert shapes(closed.model.graph.inputs) == {"x": [2, 3, 8, 8]}
    with pytest.raises(ModelError, match="forward takes x"):
        import_model(module, torch.randn(2, 3, 8, 8), dynamic={"y": {0: "batch"}})


def test_an_axis_that_the_module_fixes_stays_closed_and_the_note_says_so() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1).cumsum(0)

    imported = import_model(Fixed(), torch.randn(4, 3))
    assert shapes(imported.model.graph.inputs) == {"x": [4, 3]}
    assert any(note.startswith("batch stays") for note in imported.notes)


@pytest.mark.parametrize(
    ("module", "inputs", "names"),
    [
        (Encoder(), {"ids": torch.randint(0, 50, (2, 5))}, ["hidden", "pooled"]),
        (Recurrent(), torch.randn(2, 5, 4), ["output_0", "output_1"]),
        (Nested(), ([torch.randn(1, 2), torch.randn(1, 3)],), ["output_0", "output_1"]),
        (
            nn.Sequential(nn.Conv1d(2, 4, 3), nn.GELU(), nn.Flatten(), nn.LazyLinear(3)),
            torch.randn(1, 2, 9),
            ["output"],
        ),
        (nn.MultiheadAttention(8, 2, batch_first=True), (torch.randn(1, 4, 8),) * 3, ["output_0", "output_1"]),
        (nn.ConvTranspose2d(2, 3, 2, stride=2), torch.randn(1, 2, 4, 4), ["output"]),
        (nn.GRU(4, 6, num_layers=2, bidirectional=True), torch.randn(5, 2, 4), ["output_0", "output_1"]),
        (nn.Sequential(nn.PixelShuffle(2), nn.Upsample(scale_factor=2)), torch.randn(1, 4, 3, 3), ["output"]),
        (
            nn.Sequential(nn.GroupNorm(2, 4), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)),
            torch.randn(1, 4, 6, 6),
            ["output"],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_families(module: nn.Module, inputs: Any, names: list[str]) -> None:
    """`import_model` runs the graph beside the module, also with other batches; here the interface is looked at."""
    if any(isinstance(part, nn.LazyLinear) for part in module.modules()):
        module(inputs)
    imported = import_model(module, inputs)
    assert [value.name for value in imported.model.graph.outputs] == names
    assert clean(imported.model)


def test_the_batch_of_a_flattened_network_needs_no_shape_operators() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    cleaned = clean(import_model(module, torch.randn(1, 3, 8, 8)).model).model
    assert sorted(node.op_type for node in cleaned.graph) in (
        ["Conv", "Flatten", "Gemm", "Relu"],
        ["Conv", "Gemm", "Relu", "Reshape"],
    )


def test_bad_input() -> None:
    with torch.device("meta"):
        empty = Convolutional()
    with pytest.raises(ModelError, match="meta device"):
        import_model(empty, torch.randn(1, 3, 8, 8))
    with pytest.raises(ModelError, match="no example inputs"):
        import_model(Convolutional())
    with pytest.raises(ModelError, match=r"not what Convolutional.forward takes"):
        import_model(Convolutional(), (torch.randn(1), torch.randn(1)))
    with pytest.raises(ModelError, match="does not run on the example inputs"):
        import_model(Convolutional(), torch.randn(1, 4, 8, 8))
    with pytest.raises(ModelError, match="hold no tensor"):
        import_model(Convolutional(), (3,))
    with pytest.raises(ModelError, match="dict is no model"):
        import_model(Convolutional().state_dict())


def test_random_numbers_in_forward_are_refused() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x, 0.5, training=True)

    with pytest.raises(LowbitError, match="does not compute what the module does"):
        import_model(Noisy(), torch.randn(4, 64))


def test_the_callers_random_numbers_are_left_alone() -> None:
    module = Convolutional()
    x = torch.randn(1, 3, 8, 8)
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    import_model(module, x)
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize("kind", ["list", "loader", "array", "dict", "dataset"])
def test_quantize_takes_a_module_and_finds_its_inputs_in_the_data(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 3, 8, 8)
    pairs = torch.utils.data.TensorDataset(x, torch.zeros(24, dtype=torch.int64))
    data: Any = {
        "list": [x[i : i + 1] for i in range(24)],
        "loader": torch.utils.data.DataLoader(pairs, batch_size=4),
        "array": x.numpy(),
        "dict": {"x": x.numpy()},
        "dataset": pairs,
    }[kind]
    module = Convolutional().train()
    result = lowbit.quantize(module, data, method="static", measure_seconds=0)
    assert module.training
    assert result.source == "Convolutional"
    assert {site.op_type for site in result.plan.sites if site.execution == "static"} >= {"Conv", "Gemm"}
    session = open_session(serialize(result.model), threads=1)
    with torch.no_grad():
        wanted = module.eval()(x).numpy()
    noise = session.run({"x": x.numpy()})[0] - wanted
    assert 10 * np.log10((wanted**2).sum() / (noise**2).sum()) > 20


def test_quantize_says_what_is_missing() -> None:
    x = torch.randn(24, 3, 8, 8)
    with pytest.raises(DataError, match="only once"):
        lowbit.quantize(Convolutional(), iter([x]), measure_seconds=0)
    with pytest.raises(ModelError, match="no example inputs"):
        lowbit.quantize(Convolutional(), "random", measure_seconds=0)


def test_an_exported_program_keeps_its_open_axes() -> None:
    module = Convolutional().eval()
    batch = torch.export.Dim("n", min=1, max=64)
    program = torch.export.export(module, (torch.randn(2, 3, 8, 8),), dynamic_shapes={"x": {0: batch}})
    assert is_foreign(program)
    imported = import_model(program)
    (shape,) = shapes(imported.model.graph.inputs).values()
    assert not isinstance(shape[0], int)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(outputs(imported.model, {"x": x})[0], module(x).numpy(), atol=1e-5)
