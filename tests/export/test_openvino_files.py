"""OpenVINO IR: what is written, what runs in integers, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

import lowbit
from lowbit.cli.application import application
from lowbit.exceptions import OutputError, RecipeError
from lowbit.runtime.openvino_session import openvino_session
from lowbit.runtime.session import open_session

from .conftest import quantized, samples

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

pytest.importorskip("openvino", reason="OpenVINO is not installed")


@pytest.fixture(scope="module")
def artifact(small: onnx.ModelProto) -> lowbit.Result:
    return quantized(small, "openvino-x86-avx2", method="static")


def test_the_files_run_in_openvino_as_the_artifact_does(
    artifact: lowbit.Result, small: onnx.ModelProto, tmp_path: Path
) -> None:
    found = lowbit.export(artifact.model, tmp_path / "net.xml", data=samples(small, 8, seed=5))
    assert {path.name for path in tmp_path.iterdir()} == {"net.xml", "net.bin"}
    assert (tmp_path / "net.xml").read_bytes() == found.contents
    assert (tmp_path / "net.bin").read_bytes() == found.beside
    assert found.kernels["Convolution"] == 3
    (agreement,) = found.agreements
    assert agreement.sqnr_db > 30
    assert agreement.same_top1 == 1

    artifact.save(tmp_path / "net.onnx")
    feed = samples(small, 1, seed=9)[0]
    (mine,) = openvino_session(tmp_path / "net.xml", threads=1).run(feed)
    (wanted,) = open_session(tmp_path / "net.onnx", optimized=False).run(feed)
    assert np.abs(mine - wanted).max() < 2 * np.ptp(wanted) / 255


def test_integer_kernels_are_told_from_float_ones(artifact: lowbit.Result, small: onnx.ModelProto) -> None:
    coded = lowbit.export(artifact.model, format="openvino", samples=1)
    plain = lowbit.export(small, format="openvino", samples=1)
    assert coded.float_kernels is not None
    assert plain.float_kernels is not None
    assert coded.float_kernels < plain.float_kernels
    assert coded.notes == ()
    assert "--target openvino" in plain.notes[0]
    assert plain.agreements[0].sqnr_db > 100


def test_both_files_or_none(artifact: lowbit.Result, tmp_path: Path) -> None:
    (tmp_path / "net.bin").mkdir()
    with pytest.raises(OutputError, match=r"net\.bin"):
        lowbit.export(artifact.model, tmp_path / "net.xml", samples=1)
    assert [path.name for path in tmp_path.iterdir()] == ["net.bin"]


def test_options_of_other_formats_are_refused(artifact: lowbit.Result, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"layout is 'keep'.*openvino"):
        lowbit.export(artifact.model, tmp_path / "net.xml", layout="keep")
    with pytest.raises(RecipeError, match="also the name of the file with the weights"):
        lowbit.export(artifact.model, tmp_path / "net.bin", format="openvino")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_both_and_says_what_it_checked(artifact: lowbit.Result, tmp_path: Path) -> None:
    artifact.save(tmp_path / "net.onnx")
    result = CliRunner().invoke(application, ["export", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "net.xml")])
    assert result.exit_code == 0, result.output
    assert "openvino, " in result.output
    assert "of the ONNX artifact" in " ".join(result.output.split())
    assert (tmp_path / "net.bin").stat().st_size > 0
