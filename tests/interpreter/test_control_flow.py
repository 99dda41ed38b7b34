"""Control flow at its edges: no iterations, early ends, values from outside, gradients through time."""

from __future__ import annotations

import onnx.parser
import torch

from lowbit.interpreter import Interpreter, to_torch


def module(text: str) -> Interpreter:
    return to_torch(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}'))


LOOP = """
looped (int64 n, bool go, float[2] x) => (float[2] last, float[k, 2] all) <float[2] w = {2, 3}> {
    last, all = Loop (n, go, x) <
        body = step (int64 i, bool c, float[2] h) => (bool d, float[2] g, float[2] scanned) {
            ten = Constant <value_float = 20.0> ()
            g = Mul (h, w)
            total = ReduceSum <keepdims = 0> (g)
            d = Less (total, ten)
            scanned = Identity (g)
        }
    >
}
"""


def test_loops_end_by_count_or_condition() -> None:
    looped, x, go = module(LOOP), torch.ones(2), torch.tensor(True)
    assert looped(torch.tensor(2), go, x)[0].tolist() == [4, 9]
    # 8 + 27 is more than 20.
    last, everything = looped(torch.tensor(99), go, x)
    assert last.tolist() == [8, 27]
    assert everything.tolist() == [[2, 3], [4, 9], [8, 27]]


def test_loops_of_no_iterations_return_what_they_were_given() -> None:
    last, everything = module(LOOP)(torch.tensor(5), torch.tensor(False), torch.ones(2))
    assert last.tolist() == [1, 1]
    assert everything.shape == (0, 2)
    assert everything.dtype == torch.float32


def test_gradients_pass_through_all_iterations() -> None:
    looped = module(LOOP)
    (weight,) = looped.parameters()
    looped(torch.tensor(3), torch.tensor(True), torch.ones(2))[0].sum().backward()
    assert weight.grad.tolist() == [3 * 2**2, 3 * 3**2]


def test_loops_without_count_and_condition_end_by_their_body() -> None:
    endless = module("""
        endless (float x) => (float y) {
            y = Loop (, , x) <body = step (int64 i, bool c, float h) => (bool d, float g) {
                two = Constant <value_float = 2.0> ()
                limit = Constant <value_float = 100.0> ()
                g = Mul (h, two)
                d = Less (g, limit)
            }>
        }
    """)
    assert endless(torch.tensor(1.0))[0].item() == 128


def test_scans_run_backwards_and_stack_along_any_axis() -> None:
    scanned = module("""
        scanned (float[2] s, float[2, 3] x) => (float[2] last, float[2, 3] y) {
            last, y = Scan (s, x) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
                scan_input_directions = [1], scan_output_directions = [1],
                body = step (float[2] h, float[2] e) => (float[2] g, float[2] out) {
                    g = Add (h, e)
                    out = Identity (g)
                }>
        }
    """)
    x = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    last, y = scanned(torch.zeros(2), x)
    assert last.tolist() == [6, 15]
    assert torch.equal(y, x.flip(1).cumsum(1).flip(1))


def test_subgraphs_see_all_graphs_around_them() -> None:
    nested = module("""
        nested (bool c, float x) => (float y) {
            far = Neg (x)
            y = If (c) <
                then_branch = outer () => (float a) {
                    a = If (c) <
                        then_branch = inner () => (float p) { p = Identity (far) },
                        else_branch = never () => (float q) { q = Identity (x) }
                    >
                },
                else_branch = straight () => (float b) { b = Identity (x) }
            >
        }
    """)
    assert nested(torch.tensor(True), torch.tensor(3.0))[0].item() == -3
    assert nested(torch.tensor(False), torch.tensor(3.0))[0].item() == 3
