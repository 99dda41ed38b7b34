"""Programs of `torch.export`: loaded from the file, they compute what the artifact does."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
import torch.ao.quantization.fx._decomposed

import lowbit
from lowbit.exceptions import ModelError
from lowbit.runtime.session import open_session

from .conftest import quantized, samples

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def artifact(small: onnx.ModelProto) -> lowbit.Result:
    return quantized(small, "litert")


@pytest.fixture(scope="module")
def exported(
    artifact: lowbit.Result, small: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> lowbit.Exported:
    return lowbit.export(artifact.model, tmp_path_factory.mktemp("torch") / "net.pt2", data=samples(small, 8, seed=5))


def test_a_loaded_program_agrees_at_every_batch(
    exported: lowbit.Exported, artifact: lowbit.Result, small: onnx.ModelProto, tmp_path: Path
) -> None:
    (agreement,) = exported.agreements
    assert agreement.within_one == 1
    assert agreement.same_top1 == 1
    artifact.save(tmp_path / "net.onnx")
    session = open_session(tmp_path / "net.onnx", optimized=False)
    program = torch.export.load(exported.path).module()
    for batch in (1, 3, 5):
        x = np.concatenate([feed["x"] for feed in samples(small, batch, seed=9)])
        (wanted,) = session.run({"x": x})
        (mine,) = program(torch.from_numpy(x))
        assert mine.shape == wanted.shape
        # A reciprocal in place of a division: at most one code of an output, which has 256.
        assert np.abs(mine.numpy() - wanted).max() <= 1.01 * np.ptp(wanted) / 128


def test_weights_are_codes_and_pairs_are_pytorchs_own(exported: lowbit.Exported) -> None:
    program = torch.export.load(exported.path)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("aten.conv2d.default") == 3
    assert targets.count("quantized_decomposed.dequantize_per_channel.default") >= 3
    assert not [target for target in targets if target.startswith(("aten.round", "aten._assert", "aten.to"))]
    tensors = {**program.state_dict, **program.constants}
    floats = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
    codes = sum(tensor.numel() for tensor in tensors.values() if tensor.dtype == torch.int8)
    assert codes == 16 * 3 * 9 + 16 * 9 + 16 * 16 + 5 * 16
    assert floats <= 4 * 3 * 16


def test_the_same_bytes_in_another_process(exported: lowbit.Exported, artifact: lowbit.Result, tmp_path: Path) -> None:
    artifact.save(tmp_path / "net.onnx")
    code = f"import lowbit; lowbit.export({str(tmp_path / 'net.onnx')!r}, {str(tmp_path / 'net.pt2')!r}, samples=1)"
    # The first sample is what is traced, and is in the file: both take random codes.
    lowbit.export(artifact.model, tmp_path / "mine.pt2", samples=1)
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "net.pt2").read_bytes() == (tmp_path / "mine.pt2").read_bytes()
    assert b"lowbit/interpreter" not in exported.contents


def test_what_has_no_pytorch_form_is_named(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[1, 1, 8] x) => (string[1] y) '
        "{ f = ReduceSum <keepdims = 0> (x) r = Reshape (f, one) y = Cast <to = 8> (r) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([1]), "one"))
    with pytest.raises(ModelError):
        lowbit.export(proto, tmp_path / "net.pt2", samples=1)
    assert list(tmp_path.iterdir()) == []


def test_two_inputs_of_which_one_is_open() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x, float[1, 4] m) => (float[N, 4] y, float[N, 4] z) '
        "{ y = Add (x, m) z = Relu (x) }"
    )
    found = lowbit.export(proto, format="torch", samples=3)
    assert found.agreements[0].largest == 0
    assert found.kernels == {"aten.add.Tensor": 1, "aten.relu": 1}
    assert [line.split(":")[0] for line in found.interface] == ["input x", "input m", "output 0", "output 1"]
