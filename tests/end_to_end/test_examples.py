"""The examples run from end to end on real data, and give what their tables say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lowbit.importing.tensorflow_models import PYTHON_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    Table = Callable[..., dict[str, list[str]]]

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("LOWBIT_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Run an example and return the table that it prints, a row of texts by model."""

    def run(name: str, *needed: str) -> dict[str, list[str]]:
        for file in needed:
            if not (DATA / file).exists():
                pytest.skip(f"{DATA / file} is not there: set LOWBIT_DATA")
        command = [sys.executable, ROOT / "examples" / f"{name}.py", "--data", DATA, "--out", tmp_path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rows = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
        return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}

    return run


def number(text: str) -> float:
    return float(text.split(maxsplit=1)[0].replace(",", ""))


@pytest.mark.slow
def test_voice_command(table: Table) -> None:
    rows = table("voice_command", "models/kws_dscnn_float.onnx", "kws-mlperf-dev.npz")
    top1 = {name: number(row[0]) for name, row in rows.items() if name not in ("model", "---")}
    assert top1["W4A4, distilled"] > top1["float"] - 4.0
    assert top1["W4A4, distilled"] > top1["W4A4, not learned"] + 5.0
    assert number(rows["W4A4, distilled"][2]) < 0.75 * number(rows["float"][2])


@pytest.mark.slow
def test_medical_imaging(table: Table) -> None:
    rows = table("medical_imaging", "pneumoniamnist.npz")
    area = {name: number(row[0]) for name, row in rows.items() if name not in ("model", "---")}
    assert area["float"] > 0.9
    assert area["int8"] == pytest.approx(area["float"], abs=0.01)
    assert area["pruned.int4"] > area["float"] - 0.03
    assert number(rows["float"][4]) > 20 * number(rows["pruned.int4"][5])


@pytest.mark.slow
def test_from_keras_to_litert(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    python = Path(os.environ.get(PYTHON_VARIABLE, Path("~/.cache/lowbit-bench/tensorflow/bin/python").expanduser()))
    if not python.exists():
        pytest.skip(f"no interpreter with TensorFlow: `make tensorflow`, or name one in {PYTHON_VARIABLE}")
    monkeypatch.setenv(PYTHON_VARIABLE, str(python))
    rows = table("keras_to_litert", "models/resnet8_cifar10.h5", "cifar10-jpeg.zip")
    top1 = {name: number(row[0]) for name, row in rows.items() if name not in ("model", "---")}
    assert rows["ONNX, float"][:2] == [rows["Keras"][0], "100.00 %"]
    assert top1["LiteRT, int8"] > top1["Keras"] - 1.5
    assert number(rows["LiteRT, int8"][1]) > 96
    assert number(rows["LiteRT, int8"][2]) < 0.3 * number(rows["ONNX, float"][2])


@pytest.mark.slow
def test_from_pytorch_to_two_engines(table: Table) -> None:
    pytest.importorskip("openvino", reason="the extra lowbit[openvino] is not installed")
    rows = table("pytorch_to_two_engines", "mnist10k.npz")
    assert rows["ONNX, float"][:2] == [rows["PyTorch, float"][0], "100.00 %"]
    for engine in ("ONNX Runtime", "OpenVINO"):
        assert number(rows[f"{engine}, int8"][1]) > 99.5
        assert number(rows[f"{engine}, int8"][2]) > 30
        assert number(rows[f"{engine}, int8"][3]) < 0.3 * number(rows["ONNX, float"][3])
