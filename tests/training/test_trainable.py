"""A model that learns: what it computes is what the engine computes of its artifact, in every format."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

import lowbit
from lowbit.exceptions import DataError, ModelError, RecipeError
from lowbit.formats import parse_format
from lowbit.graph import serialize
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOGITS = "z"


def outputs(module: Any, x: np.ndarray) -> np.ndarray:
    module.eval()
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def artifact_outputs(module: Any, x: np.ndarray) -> tuple[np.ndarray, Any]:
    result = lowbit.finalize(module, measure_seconds=0)
    return open_session(serialize(result.model), threads=1).run({"x": x})[0], result


def train_a_little(module: Any, data: dict[str, Any], steps: int = 12) -> list[float]:
    module.train()
    optimizer = torch.optim.AdamW(module.parameter_groups(3e-3))
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    losses = []
    for step in range(steps):
        part = slice(32 * (step % 3), 32 * (step % 3) + 32)
        optimizer.zero_grad()
        loss = torch.nn.functional.nll_loss(torch.log(module(x[part]) + 1e-3), y[part])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    ("options", "integer"),
    [
        ({}, True),
        ({"weights": "int4"}, True),
        ({"weights": "int4", "activations": "uint4"}, True),
        ({"weights": "int2", "activations": "uint2"}, True),
        ({"weights": "binary"}, True),
        ({"weights": "ternary", "activations": "uint4"}, True),
        ({"target": "onnxruntime-x86-avx2"}, True),
        ({"weights": "int4", "rules": [{"pattern": "*", "weights": "int8"}]}, True),
        ({"weights": "nf4", "method": "weight-only", "optimize": "size"}, False),
        ({"weights": "int4:block=32", "method": "weight-only", "optimize": "size"}, False),
        ({"weights": "codebook16:per-tensor", "method": "weight-only", "optimize": "size"}, False),
        ({"quantized": False}, False),
    ],
    ids=str,
)
def test_the_artifact_computes_what_the_module_does(
    net: onnx.ModelProto, data: dict[str, Any], options: dict[str, Any], integer: bool
) -> None:
    module = lowbit.trainable(net, data={"x": data["x"]}, **options)
    losses = train_a_little(module, data)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    mine = outputs(module, data["x"])
    theirs, result = artifact_outputs(module, data["x"])
    assert not [text for text in result.warnings if "other ones than were trained" in text]
    difference = np.abs(mine - theirs)
    if integer:
        # A sum between two codes may fall on either side; what follows moves by steps of the output, 1/256.
        assert result.verification.integer_kernels >= 5
        assert np.quantile(difference, 0.9) <= 1.01 / 256
        assert (mine.argmax(1) == theirs.argmax(1)).mean() > 0.95
    else:
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_codes_of_few_bits_are_few(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    module = lowbit.trainable(net, data={"x": data["x"]}, weights="int2", activations="uint2", edges=False)
    train_a_little(module, data, steps=2)
    _, result = artifact_outputs(module, data["x"])
    clips = {node.outputs[0].name: node for node in result.model.graph if node.op_type == "Clip"}
    assert clips
    stored = [value for value in result.model.graph.initializers.values() if value.name.endswith("_codes")]
    assert [value for value in stored if value.const_value.dtype.name == "INT2"]
    for path in module.layers():
        weight = module.weight_of(path)
        scale = weight.quantizer.spread(weight.quantizer.scale())
        codes = (weight.decoded() / scale).round()
        assert codes.min() >= -2
        assert codes.max() <= 1


def test_state_goes_through_a_file(net: onnx.ModelProto, data: dict[str, Any], tmp_path: Path) -> None:
    module = lowbit.trainable(net, data={"x": data["x"]}, weights="int4", activations="uint4")
    train_a_little(module, data)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other = lowbit.trainable(net, data={"x": data["x"]}, weights="int4", activations="uint4")
    assert not np.array_equal(outputs(other, data["x"]), outputs(module, data["x"]))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    np.testing.assert_array_equal(outputs(other, data["x"]), outputs(module, data["x"]))
    copied = copy.deepcopy(module)
    train_a_little(copied, data, steps=1)
    np.testing.assert_array_equal(outputs(other, data["x"]), outputs(module, data["x"]))


def test_every_parameter_gets_a_gradient(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    module = lowbit.trainable(net, data={"x": data["x"]}, weights="int4", activations="uint4")
    module(torch.from_numpy(data["x"][:8])).square().sum().backward()
    learned = [name for name, one in module.named_parameters() if one.requires_grad]
    without = [name for name, one in module.named_parameters() if one.requires_grad and one.grad is None]
    assert len(learned) > 20
    assert without == []


def test_float_training_keeps_zeros_and_clusters(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    for tensor in net.graph.initializer:
        if tensor.name == "w4":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[np.abs(array) < np.median(np.abs(array))] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, "w4"))
        if tensor.name == "w3":
            array = np.round(onnx.numpy_helper.to_array(tensor) * 4) / 4
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, "w3"))
    module = lowbit.trainable(net, data={"x": data["x"]}, quantized=False, keep_zeros=True, keep_clusters=True)
    before = {value.name: onnx.numpy_helper.to_array(value) for value in net.graph.initializer}
    train_a_little(module, data)
    _, result = artifact_outputs(module, data["x"])
    after = {name: value.const_value.numpy() for name, value in result.model.graph.initializers.items()}
    assert ((after["w4"] == 0) == (before["w4"] == 0)).all()
    assert not np.allclose(after["w4"], before["w4"])
    assert len(np.unique(after["w3"])) == len(np.unique(before["w3"])) < 32
    assert not np.allclose(after["w3"], before["w3"])
    for value in np.unique(before["w3"]):
        assert len(np.unique(after["w3"][before["w3"] == value])) == 1
    free = lowbit.trainable(net, data={"x": data["x"]}, quantized=False)
    train_a_little(free, data)
    _, result = artifact_outputs(free, data["x"])
    loose = {name: value.const_value.numpy() for name, value in result.model.graph.initializers.items()}
    assert (loose["w4"] == 0).mean() < 0.1


def test_zeros_and_clusters_stay_under_quantization(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    for tensor in net.graph.initializer:
        if tensor.name == "w4":
            array = np.round(onnx.numpy_helper.to_array(tensor) * 6) / 6
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, "w4"))
            wanted = array == 0
            distinct = len(np.unique(array))
    module = lowbit.trainable(
        net, data={"x": data["x"]}, weights="int8:per-tensor", keep_zeros=True, keep_clusters=True
    )
    train_a_little(module, data)
    _, result = artifact_outputs(module, data["x"])
    codes = next(v for n, v in result.model.graph.initializers.items() if n.startswith("w4") and n.endswith("_codes"))
    found = codes.const_value.numpy()
    assert (found[wanted] == 0).all()
    assert len(np.unique(found)) <= distinct


def test_clip_bounds_do_not_learn(parse: Callable, data: dict[str, Any]) -> None:
    proto = parse(
        "g (float[n,3,12,12] x, float[4,3,3,3] w1, float[4] b1) => (float[n,4,10,10] y) "
        "<float low = {0}, float high = {6}> { c = Conv(x, w1, b1)  y = Clip(c, low, high) }"
    )
    module = lowbit.trainable(proto, quantized=False)
    learned = {name for name, one in module.named_parameters() if one.requires_grad}
    assert not [name for name in learned if "low" in name or "high" in name]
    assert len(learned) == 2


def test_errors(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no data to calibrate"):
        lowbit.trainable(net)
    with pytest.raises(RecipeError, match="ranges at run time"):
        lowbit.trainable(net, data={"x": data["x"]}, method="dynamic")
    with pytest.raises(RecipeError, match="mirror around 0"):
        lowbit.trainable(net, data={"x": data["x"]}, weights="uint4", method="weight-only", optimize="size")
    with pytest.raises(ModelError, match="no tensor 'nowhere'"):
        lowbit.trainable(net, data={"x": data["x"]}, taps=["nowhere"])
    with pytest.raises(ModelError, match="cannot be finalized"):
        lowbit.finalize(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("activations", ["uint4", "uint2"])
def test_activations_of_few_bits_run_in_integer_kernels(
    net: onnx.ModelProto, data: dict[str, Any], activations: str
) -> None:
    result = lowbit.quantize(net, {"x": data["x"]}, method="static", activations=activations, measure_seconds=0)
    assert not [text for text in result.warnings if "no integer kernels" in text]
    verification = result.verification
    assert verification.integer_kernels >= 5
    assert not verification.unfused
    fmt = parse_format(activations)
    names = [tensor.tensor for tensor in result.plan.activations]
    clipped = {f"{name}_clipped" for name in names}
    emitted = [value for node in result.model.graph for value in node.outputs if value.name in clipped]
    assert emitted
    low, high = fmt.code_range()
    for value in emitted[:3]:
        result.model.graph.outputs.append(value)
    found = open_session(serialize(result.model), threads=1).run({"x": data["x"]})[1:]
    for codes in found:
        assert codes.min() >= low
        assert codes.max() <= high
        assert len(np.unique(codes)) <= high - low + 1


def test_a_graph_for_one_sample_takes_batches(parse: Callable, data: dict[str, Any]) -> None:
    """A channel shuffle, whose shapes hold the batch times something, and a shape that no batch fits."""
    shuffle = parse("""g (float[1,3,12,12] x, float[8,3,3,3] w1, float[8] b1) => (float[1,8,12,12] y) {
        c = Conv<pads=[1,1,1,1]>(x, w1, b1)
        halves = Constant<value_ints=[4, 2, 144]>()  h = Reshape(c, halves)
        t = Transpose<perm=[1, 0, 2]>(h)
        back = Constant<value_ints=[2, -1, 4, 12, 12]>()  r = Reshape(t, back)
        zero = Constant<value_int=0>()  one = Constant<value_int=1>()
        a = Gather<axis=0>(r, zero)  b = Gather<axis=0>(r, one)
        y = Concat<axis=1>(a, b)
    }""")
    flat = parse("""g (float[1,3,12,12] x, float[8,3,3,3] w1, float[8] b1) => (float[1,8,12,12] y) {
        c = Conv<pads=[1,1,1,1]>(x, w1, b1)
        wide = Constant<value_ints=[8, -1]>()  f = Reshape(c, wide)
        m = ReduceMean<keepdims=1>(f)  d = Sub(c, m)
        y = Relu(d)
    }""")
    for proto, alone in ((shuffle, False), (flat, True)):
        module = lowbit.trainable(proto, data=[data["x"][i : i + 1] for i in range(12)], weights="int4").eval()
        assert module.sample_by_sample == alone
        together = module(torch.from_numpy(data["x"][:3]))
        for index in range(3):
            single = module(torch.from_numpy(data["x"][index : index + 1]))
            torch.testing.assert_close(together[index : index + 1], single, atol=1e-5, rtol=1e-4)
