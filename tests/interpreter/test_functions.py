"""A model's own functions: attributes bound at every call, defaults, nesting."""

from __future__ import annotations

import onnx.parser
import torch

from lowbit.interpreter import Interpreter, to_torch


def module(text: str) -> Interpreter:
    return to_torch(onnx.parser.parse_model(text))


def test_every_call_binds_its_own_attributes() -> None:
    leaky = module("""
        <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        calls (float[2] x) => (float[2] y, float[2] z) {
            y = own.leaky <slope = 0.5> (x)
            z = own.leaky <slope = 0.25> (x)
        }
        <domain: "own", opset_import: ["" : 21]>
        leaky <slope> (a) => (b) { b = LeakyRelu <alpha : float = @slope> (a) }
    """)
    y, z = leaky(torch.tensor([-4.0, 4.0]))
    assert y.tolist() == [-2, 4]
    assert z.tolist() == [-1, 4]
    assert leaky.islands == ()


def test_attributes_have_defaults() -> None:
    shifted = module("""
        <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        calls (float[2] x) => (float[2] y, float[2] z) {
            y = own.shifted (x)
            z = own.shifted <by = 10.0> (x)
        }
        <domain: "own", opset_import: ["" : 21]>
        shifted <by : float = 1.0> (a) => (b) {
            c = Constant <value_float : float = @by> ()
            b = Add (a, c)
        }
    """)
    y, z = shifted(torch.zeros(2))
    assert y.tolist() == [1, 1]
    assert z.tolist() == [10, 10]


def test_functions_call_functions_and_hand_their_attributes_on() -> None:
    nested = module("""
        <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        calls (float[2] x) => (float[2] y) { y = own.outer <slope = 0.5> (x) }
        <domain: "own", opset_import: ["" : 21, "own" : 1]>
        outer <slope> (a) => (b) { c = own.inner <alpha : float = @slope> (a) b = Neg (c) }
        <domain: "own", opset_import: ["" : 21]>
        inner <alpha> (a) => (b) { b = LeakyRelu <alpha : float = @alpha> (a) }
    """)
    assert nested(torch.tensor([-4.0, 4.0]))[0].tolist() == [2, -4]


def test_references_reach_into_subgraphs() -> None:
    branching = module("""
        <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        calls (bool c, float[2] x) => (float[2] y) { y = own.choose <slope = 0.5> (c, x) }
        <domain: "own", opset_import: ["" : 21]>
        choose <slope> (c, a) => (b) {
            b = If (c) <
                then_branch = one () => (float[2] p) { p = LeakyRelu <alpha : float = @slope> (a) },
                else_branch = two () => (float[2] q) { q = Identity (a) }
            >
        }
    """)
    x = torch.tensor([-4.0, 4.0])
    assert branching(torch.tensor([True]), x)[0].tolist() == [-2, 4]
    assert branching(torch.tensor([False]), x)[0].tolist() == [-4, 4]


def test_inputs_may_be_left_out() -> None:
    clipped = module("""
        <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        calls (float[2] x, float high) => (float[2] y) { y = own.clipped (x, , high) }
        <domain: "own", opset_import: ["" : 21]>
        clipped (a, low, high) => (b) { b = Clip (a, low, high) }
    """)
    assert clipped(torch.tensor([-4.0, 4.0]), torch.tensor(1.0))[0].tolist() == [-4, 1]


def test_a_function_of_the_model_stands_before_the_mapping_of_the_same_name() -> None:
    own = module("""
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        calls (float[2] x) => (float[2] y) { y = com.microsoft.Gelu (x) }
        <domain: "com.microsoft", opset_import: ["" : 21]>
        Gelu (a) => (b) { b = Neg (a) }
    """)
    assert own(torch.ones(2))[0].tolist() == [-1, -1]
