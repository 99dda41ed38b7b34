"""Targets that are no part of this machine: what is written for them keeps their rules, and what does not is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import lowbit
from lowbit.cli.application import application
from lowbit.graph import load_model
from lowbit.methods.conformance import summary, violations
from lowbit.targets import TARGETS, find_target, host_target

if TYPE_CHECKING:
    from pathlib import Path

ELSEWHERE = [name for name, target in TARGETS.items() if target.source]


def network(batch: str = "1") -> onnx.ModelProto:
    """Return a residual network with a classifier, all shapes fixed unless `batch` is a name."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[{batch}, 8, 12, 12] x) => (float[{batch}, 10] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, stem_weight, stem_bias)
            b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1]> (b, body_weight, body_bias)
            d = Add (b, c)
            e = Relu (d)
            f = GlobalAveragePool (e)
            g = Flatten (f)
            y = Gemm <transB = 1> (g, head_weight, head_bias)
        }}
    """)
    generator = np.random.default_rng(0)
    shapes = {
        "stem_weight": (32, 8, 3, 3),
        "stem_bias": (32,),
        "body_weight": (32, 32, 3, 3),
        "body_bias": (32,),
        "head_weight": (10, 32),
        "head_bias": (10,),
    }
    for name, shape in shapes.items():
        array = (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def samples(count: int = 16) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    return [{"x": generator.standard_normal((1, 8, 12, 12)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_artifact_keeps_the_rules_of_the_target_it_was_made_for(name: str, tmp_path: Path) -> None:
    result = lowbit.quantize(
        network(), data=samples(), target=name, method="static" if "coreml" not in name else "auto"
    )
    result.save(tmp_path / "artifact.onnx")
    target = find_target(name)
    assert violations(load_model(tmp_path / "artifact.onnx"), target) == ()
    compressed = [site for site in result.plan.sites if site.execution != "float"]
    assert {site.op_type for site in compressed} >= {"Conv"}
    assert {site.execution for site in compressed} == ({"weight-only"} if "coreml" in name else {"static"})
    assert result.verification.outputs[0].sqnr_simulated_db > 20
    if target.name != host_target().name:
        assert result.verification.latency is None
        assert result.verification.float_peak_mb is None
        assert any(f"this machine is no {name}" in warning for warning in result.verification.warnings)


def test_tensorrt_gets_symmetric_activations_and_float_biases(tmp_path: Path) -> None:
    result = lowbit.quantize(network(), data=samples(), target="tensorrt", method="static")
    assert all(tensor.zero_point == 0 and tensor.format.startswith("int8") for tensor in result.plan.activations)
    convolutions = [node for node in result.model.graph if node.op_type == "Conv"]
    assert len(convolutions) == 2
    for node in convolutions:
        bias = node.inputs[2]
        assert bias is not None
        assert bias.const_value is not None
        assert bias.const_value.dtype == ir.DataType.FLOAT


BROKEN = {
    "tensorrt": ["it writes uint8", "it decodes an int32 bias", "its zero point is not 0"],
    "onnxruntime-xnnpack": ["it writes uint8"],
    "onnxruntime-coreml": ["it writes uint8"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_artifact_for_another_target_breaks_rules(name: str) -> None:
    result = lowbit.quantize(network(), data=samples(), target="onnxruntime-arm64", method="static")
    found = " | ".join(summary(violations(result.model, find_target(name))))
    for what in BROKEN[name]:
        assert what in found
    assert violations(result.model, find_target("onnxruntime-arm64-i8mm")) == ()


@pytest.mark.parametrize("name", ["onnxruntime-nnapi", "qnn-htp"])
def test_open_shapes_are_told_where_shapes_have_to_be_fixed(name: str) -> None:
    found = violations(ir.from_proto(network("N")), find_target(name))
    assert [violation.node for violation in found] == ["x"]
    assert "[N, 8, 12, 12]" in found[0].what
    assert violations(ir.from_proto(network("N")), find_target("tensorrt")) == ()


def test_ranges_at_run_time_are_refused_where_there_is_no_kernel() -> None:
    result = lowbit.quantize(network(), data=samples(), target="onnxruntime-arm64", method="dynamic")
    assert any("run time" in violation.what for violation in violations(result.model, find_target("tensorrt")))
    assert violations(result.model, find_target("onnxruntime-arm64")) == ()


def test_check_exits_with_1_for_an_artifact_that_breaks_rules(tmp_path: Path) -> None:
    path = tmp_path / "artifact.onnx"
    lowbit.quantize(network(), data=samples(), target="onnxruntime-arm64", method="static").save(path)
    kept = CliRunner().invoke(application, ["check", str(path), "--target", "onnxruntime-arm64"])
    assert kept.exit_code == 0
    assert "keeps the rules of onnxruntime-arm64" in kept.output
    broken = CliRunner().invoke(application, ["check", str(path), "--target", "tensorrt"])
    assert broken.exit_code == 1
    assert "breaks the rules of tensorrt" in broken.output
