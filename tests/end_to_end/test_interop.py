"""The table of frameworks, operators and engines in the README: every cell is what really happens here."""

from __future__ import annotations

import importlib.util

import pytest
from benchmarks.interop.families import FAMILIES
from benchmarks.interop.routes import ENGINES, SOURCES, from_keras, from_tflite, source_python
from benchmarks.interop.table import BEGIN, END, README, markdown, read

from lowbit.importing.tensorflow_models import PYTHON_VARIABLE

WRITTEN = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
CELLS = read(WRITTEN)
PACKAGES = {"OpenVINO": "openvino", "LiteRT": "ai_edge_litert", "LiteRT for Microcontrollers": "tflite_micro"}
OF_TENSORFLOW = {name: route for name, route in SOURCES.items() if route in (from_keras, from_tflite)}
COLUMNS = {name: route for name, route in (SOURCES | ENGINES).items() if name not in OF_TENSORFLOW}
QUICK = {"Convolution, BatchNorm, Relu", "Linear layers", "Attention, Softmax", "LSTM"}


def test_the_readme_has_the_table_that_the_script_writes() -> None:
    """With the versions that the project pins, and every family and column there is."""
    assert list(CELLS) == list(FAMILIES)
    assert markdown(CELLS) == WRITTEN


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
@pytest.mark.parametrize("column", COLUMNS)
def test_every_cell_is_what_happens(family: str, column: str) -> None:
    needed = PACKAGES.get(column.partition(" {")[0])
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    assert COLUMNS[column](family) == CELLS[family][column]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_keras_and_tflite_arrive(family: str) -> None:
    if not source_python().exists():
        pytest.skip(f"no interpreter with TensorFlow: `make tensorflow`, or name one in {PYTHON_VARIABLE}")
    found = {name: route(family) for name, route in OF_TENSORFLOW.items()}
    assert found == {name: CELLS[family][name] for name in found}
