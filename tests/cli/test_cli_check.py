"""`lowbit check`, and the verb behind it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from lowbit.methods.check import check
from lowbit.targets import TARGETS

AVX2 = "onnxruntime-x86-avx2"


def test_every_operator_is_counted_once(folder, lowbit):
    found = check("net.onnx", target=AVX2)
    assert sum(row.count for row in found.operators) == len(found.plan.sites)
    assert {site.execution for site in found.plan.sites if site.op_type == "Conv"} <= {"static", "float"}
    assert all(site.reason for site in found.plan.sites)
    done = lowbit("check", "net.onnx", "--target", AVX2)
    assert done.status == 0, done.err
    assert "net.onnx on onnxruntime-x86-avx2" in done.out
    assert "predicted" in done.out


def test_the_prediction_adds_up(folder):
    found = check("net.onnx", target=AVX2)
    assert found.unknown == ()
    assert found.float_us == pytest.approx(sum(row.float_us or 0 for row in found.operators))
    planned = sum(row.planned_us or 0 for row in found.operators)
    assert found.planned_us == pytest.approx(planned + found.conversions_us)
    assert found.conversions_us > 0
    assert found.speedup == pytest.approx(found.float_us / found.planned_us)
    # The plan is the cheapest one, and all in float is one of them.
    assert found.speedup >= 1


def test_conversions_are_priced_where_codes_begin_and_end(folder):
    found = check("net.onnx", target=AVX2, method="static")
    costs = TARGETS[AVX2].costs
    # x [1, 8, 16, 16] is the only tensor that is quantized from float, and Gemm writes float itself.
    elements = 8 * 16 * 16
    assert found.conversions_us == pytest.approx(
        (costs.node + elements * (costs.quantize + costs.layout)) / 1e3, rel=1e-6
    )


def test_open_dimensions_are_said_and_data_close_them(folder, lowbit):
    model = onnx.load("net.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, "open.onnx")
    found = check("open.onnx", target=AVX2)
    assert found.unknown == ("x [1, 8, height, 16]",)
    assert found.speedup is None
    assert sum(row.integer for row in found.operators) >= 4
    text = lowbit("check", "open.onnx", "--target", AVX2).out
    assert "open dimensions: x [1, 8, height, 16]" in text.lower()
    closed = check("open.onnx", target=AVX2, data="data.npz")
    assert closed.unknown == ()
    assert closed.float_us == pytest.approx(check("net.onnx", target=AVX2).float_us)


def test_minus_one_is_an_open_dimension(folder):
    model = onnx.load("net.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = -1
    onnx.save(model, "open.onnx")
    assert check("open.onnx", target=AVX2).unknown == ("x [1, 8, 16, ?]",)


def test_a_target_without_costs_says_so(folder, lowbit):
    done = lowbit("check", "net.onnx", "--target", "onnxruntime-arm64")
    assert done.status == 0
    assert "speed unknown" in done.out
    assert "costs" in done.out


def test_what_stays_in_float_has_a_reason(folder, lowbit):
    text = """
    <ir_version: 8, opset_import: ["" : 13]>
    g (float[1, 8, 4, 4] x, float[8, 8, 1, 1] k) => (float[1, 8, 4, 4] y) {
        a = Conv <kernel_shape = [1, 1]> (x, k)
        y = Erf (a)
    }
    """
    onnx.save(onnx.parser.parse_model(text), "odd.onnx")
    done = lowbit("check", "odd.onnx", "--details")
    flat = " ".join(done.out.split())
    assert "its weight is computed while the model runs" in flat
    assert "no integer kernel for Erf" in flat
    assert "Nothing in this model would be quantized" in flat


def test_columns_fit_the_terminal(folder, lowbit, monkeypatch):
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        for arguments in (
            ["check", "net.onnx"],
            ["check", "net.onnx", "--details"],
            ["inspect", "net.onnx"],
            ["targets"],
        ):
            lines = lowbit(*arguments).out.splitlines()
            assert max(map(len, lines)) <= columns
            assert not any("…" in line for line in lines)
            assert not any(line != line.rstrip() for line in lines)


def test_float_weights_count_as_stored_small(folder, lowbit):
    assert np.load("data.npz")["x"].dtype == np.float32
    found = check("net.onnx", target=AVX2, weights="int4:block=32")
    assert sum(row.integer for row in found.operators) == 0
    assert sum(row.weights for row in found.operators) >= 1
    assert "weights only" in lowbit("check", "net.onnx", "--weights", "int4:block=32").out
