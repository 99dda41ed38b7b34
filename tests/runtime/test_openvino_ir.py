"""OpenVINO's saved IR, loaded from its files again, beside the ONNX artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

from lowbit.runtime.openvino_session import openvino_ir, openvino_session

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("openvino", reason="OpenVINO is not installed")


def artifact() -> bytes:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 16] x) => (float[1, 8] y) {
            q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
            w = DequantizeLinear <axis = 1> (codes, scales, zeros) y = MatMul (d, w)
        }"""
    )
    generator = np.random.default_rng(0)
    for name, value in {
        "s": np.float32(0.03),
        "z": np.uint8(120),
        "codes": generator.integers(-60, 61, size=(16, 8)).astype(np.int8),
        "scales": np.linspace(0.01, 0.02, 8, dtype=np.float32),
        "zeros": np.zeros(8, dtype=np.int8),
    }.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return proto.SerializeToString()


def test_saved_ir_gives_the_outputs_of_the_artifact_and_keeps_its_codes(tmp_path: Path) -> None:
    model = artifact()
    xml, weights = openvino_ir(model)
    (tmp_path / "net.xml").write_bytes(xml)
    (tmp_path / "net.bin").write_bytes(weights)
    feed = {"x": np.random.default_rng(1).standard_normal((1, 16)).astype(np.float32)}
    (mine,) = openvino_session(tmp_path / "net.xml", threads=1).run(feed)
    (wanted,) = openvino_session(model, threads=1).run(feed)
    assert np.any(wanted)
    np.testing.assert_array_equal(mine, wanted)
    assert len(weights) < 16 * 8 * 4


def test_the_same_model_gives_the_same_bytes_twice_in_a_process() -> None:
    assert openvino_ir(artifact()) == openvino_ir(artifact())
