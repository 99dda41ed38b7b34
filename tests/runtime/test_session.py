"""Loading and running: typed errors, chosen outputs, and graphs handed over whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

from lowbit.exceptions import EngineError
from lowbit.graph import load_model, serialize
from lowbit.runtime import staging
from lowbit.runtime.kernels import Kernel, KernelGraph, read_kernels
from lowbit.runtime.session import available_threads, engine_version, first_line, open_session
from lowbit.runtime.staging import staged, with_outputs

if TYPE_CHECKING:
    from pathlib import Path

TEXT = '<ir_version: 10, opset_import: ["" : 21]> g (float[2,3] x) => (float[2,3] y) { t = Neg(x)\n y = Abs(t) }'
X = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)


def test_a_model_from_bytes_and_from_a_path(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(TEXT)
    onnx.save(proto, tmp_path / "model.onnx")
    for source in (proto.SerializeToString(), tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        session = open_session(source, threads=1)
        assert (session.inputs, session.outputs) == (("x",), ("y",))
        assert np.array_equal(session.run({"x": X})[0], np.abs(X))


def test_a_refused_model_is_a_typed_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = TEXT.replace("Neg(x)", "Nonsense(x)")
    with pytest.raises(EngineError, match="does not load"):
        open_session(onnx.parser.parse_model(broken).SerializeToString())
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(EngineError, match=r"text\.onnx"):
        open_session(tmp_path / "text.onnx")
    with pytest.raises(EngineError, match=r"nothing\.onnx"):
        open_session(tmp_path / "nothing.onnx")
    assert capfd.readouterr().err == "", "the engine's own messages are noise beside the exception"


def test_a_wrong_feed_is_a_typed_error() -> None:
    session = open_session(onnx.parser.parse_model(TEXT).SerializeToString(), threads=1)
    for feed in ({}, {"x": X.astype(np.float64)}, {"x": X[:1]}, {"z": X}):
        with pytest.raises(EngineError, match="failed while running") as caught:
            session.run(feed)
        assert "\n" not in str(caught.value)


def test_errors_are_their_first_line() -> None:
    assert first_line(ValueError("\n  what happened\nwhere")) == "what happened"
    assert first_line(ValueError()) == "ValueError"


def test_the_environment() -> None:
    import onnxruntime

    assert engine_version() == f"onnxruntime {onnxruntime.__version__}"
    assert available_threads() >= 1


def test_further_outputs_come_after_the_models_own() -> None:
    model = load_model(onnx.parser.parse_model(TEXT))
    before = serialize(model)
    seen = with_outputs(model, ("t", "x", "y", "t"))
    assert serialize(model) == before
    session = open_session(serialize(seen), threads=1)
    assert session.outputs == ("y", "t", "x__seen")
    y, t, x = session.run({"x": X})
    assert np.array_equal(y, np.abs(X))
    assert np.array_equal(t, -X)
    assert np.array_equal(x, X)
    assert np.array_equal(session.run({"x": X}, ["t"])[0], -X)
    with pytest.raises(KeyError):
        with_outputs(model, ("ghost",))


def test_large_models_are_handed_over_as_files(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[2,3] x) => (float[2,3] y) <float[3] k = {1,2,3}> { y = Mul(x, k) }"
    model = load_model(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}'))
    with staged(model) as source:
        assert isinstance(source, bytes)
    monkeypatch.setattr(staging, "_EMBEDDED_LIMIT", 4)
    with staged(model) as source:
        assert not isinstance(source, bytes)
        kept = source
        session = open_session(source, threads=1)
    assert not kept.exists()
    assert np.array_equal(session.run({"x": X})[0], X * np.array([1, 2, 3], np.float32))


def test_kernels_are_what_the_engine_runs() -> None:
    """Constant folding and dead code removal are the engine's: what it reports is not what the file says."""
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2,3] x) => (float[2,3] y) <float[3] k = {1,2,3}> '
        "{ a = Add(k, k)\n i = Identity(x)\n m = Mul(i, a)\n y = Identity(m) }"
    )
    graph = read_kernels(onnx.parser.parse_model(text).SerializeToString())
    assert graph.counts() == {"Mul": 1}
    assert graph.integer_count() == 0


def test_kernels_of_subgraphs_are_counted() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[2,3] x, bool c) => (float[2,3] y) {
        y = If (c) < then_branch = t () => (float[2,3] a) { a = Neg(x) },
            else_branch = e () => (float[2,3] b) { b = Abs(x) } >
    }"""
    assert read_kernels(onnx.parser.parse_model(text).SerializeToString()).counts() == {"If": 1, "Neg": 1, "Abs": 1}


def test_integer_kernels_are_told_apart() -> None:
    kernels = tuple(
        Kernel(op_type=op_type, name="", inputs=(), outputs=())
        for op_type in ("QLinearConv", "QLinearConv", "Conv", "MatMulNBits", "DequantizeLinear", "MatMulIntegerToFloat")
    )
    graph = KernelGraph(kernels=kernels)
    assert graph.integer_count() == 3
    assert next(iter(graph.counts().items())) == ("QLinearConv", 2)
