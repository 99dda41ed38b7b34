"""The module: its inputs, its parameters' names and values, copies, precision and devices."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from lowbit.exceptions import ModelError
from lowbit.graph import serialize
from lowbit.interpreter import Interpreter, to_torch, with_parameters
from lowbit.runtime.session import open_session

LINEAR = """
<ir_version: 8, opset_import: ["" : 17]>
linear (float[n, 3] x) => (float[n, 2] y, float[n, 3] twice)
<float[3, 2] layer__0__weight = {1, 2, 3, 4, 5, 6}, float[2] layer__0__bias = {1, -1}, int64[1] axes = {0}>
{
    twice = Add (x, x)
    product = MatMul (twice, layer__0__weight)
    y = Add (product, layer__0__bias)
}
"""
BRANCH = """
<ir_version: 8, opset_import: ["" : 17]>
branch (bool c, float[2] x) => (float[2] y)
<float[2] w = {1, 1}>
{
    y = If (c) <
        then_branch = one () => (float[2] a) <float[2] inner = {2, 3}> { scaled = Mul (x, inner)  a = Add (scaled, w) },
        else_branch = two () => (float[2] b) <float[2] inner = {5, 7}> { b = Mul (x, inner) }
    >
}
"""


def parsed(text: str) -> onnx.ModelProto:
    """Return a model; ONNX's text has no dots in names, so two underscores stand for one."""
    proto = onnx.parser.parse_model(text)
    for names in (node.input for node in proto.graph.node):
        names[:] = [name.replace("__", ".") for name in names]
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.replace("__", ".")
    return proto


def module(text: str) -> Interpreter:
    return to_torch(parsed(text))


def test_outputs_come_in_the_graphs_order() -> None:
    y, twice = module(LINEAR)(torch.tensor([[1.0, 0, 0]]))
    assert y.tolist() == [[3, 3]]
    assert twice.tolist() == [[2, 0, 0]]


def test_parameters_keep_the_initializers_names() -> None:
    linear = module(LINEAR)
    assert dict(linear.named_parameters()).keys() == {"layer.0.weight", "layer.0.bias"}
    assert linear.state_dict().keys() == {"layer.0.weight", "layer.0.bias", "axes"}


def test_state_dictionaries_round_trip() -> None:
    one, other = module(LINEAR), module(LINEAR)
    state = {name: value + 1 for name, value in one.state_dict().items()}
    assert not any(other.load_state_dict(state))
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name])


def test_functional_calls_replace_parameters() -> None:
    linear = module(LINEAR)
    weight = torch.zeros(3, 2, requires_grad=True)
    y, _ = torch.func.functional_call(linear, {"layer.0.weight": weight}, (torch.ones(1, 3),))
    y.sum().backward()
    assert y.tolist() == [[1, -1]]
    assert weight.grad is not None


def test_learned_values_go_back_into_the_file() -> None:
    proto = parsed(LINEAR)
    linear = to_torch(proto)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    linear(x)[0].square().sum().backward()
    optimizer.step()
    written = with_parameters(proto, linear)
    expected = linear(x)[0].detach().numpy()
    found = open_session(serialize(written), threads=1).run({"x": x.numpy()})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not np.allclose(open_session(proto.SerializeToString(), threads=1).run({"x": x.numpy()})[0], expected)


def test_values_of_another_precision_go_back_in_the_files_own() -> None:
    proto = parsed(LINEAR)
    written = with_parameters(proto, to_torch(proto).double())
    assert serialize(written) == serialize(with_parameters(proto, to_torch(proto)))


def test_parameters_of_another_model_are_refused() -> None:
    with pytest.raises(ModelError, match="another model"):
        with_parameters(parsed(BRANCH), module(LINEAR))


def test_initializers_of_subgraphs_are_parameters() -> None:
    branch = module(BRANCH)
    state = branch.state_dict()
    assert len(state) == 3
    x = torch.tensor([1.0, 2.0])
    assert branch(torch.tensor([True]), x)[0].tolist() == [3, 7]
    assert branch(torch.tensor([False]), x)[0].tolist() == [5, 14]
    branch(torch.tensor([True]), x)[0].sum().backward()
    assert {name for name, value in branch.named_parameters() if value.grad is not None} == {"w", "inner"}
    written = with_parameters(parsed(BRANCH), branch)
    assert to_torch(written).state_dict().keys() == state.keys()


def test_one_initializer_that_two_nodes_read_is_one_parameter() -> None:
    tied = module("""
        <ir_version: 8, opset_import: ["" : 17]>
        tied (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
        { hidden = MatMul (x, w)  y = MatMul (hidden, w) }
    """)
    (weight,) = tied.parameters()
    tied(torch.eye(2))[0].sum().backward()
    expected = torch.tensor([[1.0, 2], [3, 4]], requires_grad=True)
    (expected @ expected).sum().backward()
    assert torch.equal(weight.grad, expected.grad)


def test_initializers_are_the_defaults_of_inputs() -> None:
    defaulted = module("""
        <ir_version: 8, opset_import: ["" : 17]>
        defaulted (float[2] x, float[2] w) => (float[2] y) <float[2] w = {10, 20}> { y = Add (x, w) }
    """)
    assert defaulted.input_names == ("x",)
    assert defaulted(torch.ones(2))[0].tolist() == [11, 21]
    assert defaulted(torch.ones(2), w=torch.zeros(2))[0].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("inputs", "named", "message"),
    [
        ((), {}, "'x' is missing"),
        ((torch.ones(1, 3), torch.ones(1)), {}, "2 were given"),
        ((torch.ones(1, 3),), {"x": torch.ones(1, 3)}, "given twice"),
        ((), {"z": torch.ones(1)}, "no input 'z'"),
    ],
)
def test_wrong_inputs_are_named(inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        module(LINEAR)(*inputs, **named)


def test_errors_say_in_which_node() -> None:
    with pytest.raises(RuntimeError) as raised:
        module(LINEAR)(torch.ones(1, 4))
    assert any("MatMul" in note and "float32[1, 4]" in note for note in raised.value.__notes__)


def test_copies_learn_on_their_own() -> None:
    linear = module(LINEAR)
    copied = copy.deepcopy(linear)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    x = torch.ones(1, 3)
    assert copied(x)[0].tolist() == [[0, 0]]
    assert linear(x)[0].tolist() == [[19, 23]]


def test_precision_is_the_modules() -> None:
    y, _ = module(LINEAR).double()(torch.ones(1, 3, dtype=torch.float64))
    assert y.dtype == torch.float64


@pytest.mark.parametrize("gradients", [True, False])
def test_no_tensor_stays_on_another_device(gradients: bool) -> None:
    # PyTorch refuses to mix the device `meta` with any other, except for scalars.
    weights = {
        "w": np.ones((4, 3, 3, 3), np.float32),
        "b": np.ones(4, np.float32),
        "mean": np.zeros(4, np.float32),
        "variance": np.ones(4, np.float32),
        "v": np.ones((5, 36), np.float32),
    }
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        network (float[n, 3, 8, 8] x) => (float[n, 5] y)
        {
            scale = Constant <value = float[4, 1, 1] {1, 2, 3, 4}> ()
            low = Constant <value_float = 0.0> ()
            h = Conv <strides = [2, 2]> (x, w, b)
            normal = BatchNormalization (h, b, b, mean, variance)
            scaled = Mul (normal, scale)
            clipped = Clip (scaled, low)
            padded = HardSigmoid (clipped)
            flat = Flatten (padded)
            scores = Gemm <transB = 1> (flat, v)
            y = Softmax (scores)
        }
    """)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    with torch.set_grad_enabled(gradients):
        (y,) = to_torch(proto).eval().to("meta")(torch.empty(2, 3, 8, 8, device="meta"))
    assert y.device.type == "meta"
    assert y.shape == (2, 5)


def test_islands_are_named_and_have_no_gradient() -> None:
    found = module("""
        <ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
        island (float[2] x) => (float[2] y) { [cut] y = ai.onnx.ml.Binarizer <threshold = 0.5> (x) }
    """)
    assert found.islands == ("cut (Binarizer)",)
    assert "without gradients: cut (Binarizer)" in str(found)
    (y,) = found(torch.tensor([0.25, 0.75], requires_grad=True))
    assert y.tolist() == [0, 1]
    assert not y.requires_grad


def test_a_module_comes_in_evaluation() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[64] x) => (float[64] y)'
        " { r = Constant<value_float=0.5>() t = Constant<value = bool {1}>() y = Dropout(x, r) }"
    )
    module = to_torch(proto)
    x = torch.ones(64)
    assert not module.training
    torch.testing.assert_close(module(x)[0], x)
    assert (module.train()(x)[0] == 0).any()
