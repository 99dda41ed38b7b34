"""Sentence embeddings of MiniLM with weights of 4 bits in blocks of 32: lowbit's roundings and ONNX Runtime's.

The mean cosine between the embeddings of the float and of the compressed model, over the test sentences of the case,
with the size of the file and the seconds that quantizing took. All weights are stored in 4 bits, the embedding tables
too, so that the files are of one size. "dynamic int8" is 8-bit weights under 8-bit activations with ranges of run time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import lowbit
from benchmarks.engine import open_session, run_all
from benchmarks.zoo import Case, load_case

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.zoo.case import Array

_BLOCK = 32
LOWBIT: dict[str, dict[str, str]] = {
    "lowbit nearest": {"rounding": "nearest"},
    "lowbit compensated": {"rounding": "compensated"},
    "lowbit gptq": {"rounding": "gptq"},
    "lowbit awq": {"rounding": "nearest", "smooth": "awq"},
    "lowbit awq + gptq": {"rounding": "gptq", "smooth": "awq"},
    "lowbit gptq, mse ranges": {"rounding": "gptq", "weight_range": "mse"},
    "lowbit awq + gptq, mse ranges": {"rounding": "gptq", "weight_range": "mse", "smooth": "awq"},
}
DYNAMIC: dict[str, dict[str, str]] = {
    "lowbit dynamic int8": {"weights": "int8:per-channel"},
    "lowbit dynamic int8, smoothquant": {"weights": "int8:per-channel", "smooth": "smoothquant"},
    "lowbit dynamic int8, smoothquant + gptq": {
        "weights": "int8:per-channel",
        "smooth": "smoothquant",
        "rounding": "gptq",
    },
}
PEERS = ("onnxruntime nearest", "onnxruntime hqq", "onnxruntime k-quant", "onnxruntime gptq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one way to quantize gave.

    Attributes:
        name: Its name.
        cosine: Mean cosine of the embeddings with the float model's.
        worst: The lowest of all sentences.
        score: The case's metric.
        megabytes: Size of the model, in MB (10^6 bytes).
        seconds: How long quantizing took, without verification on test data.
        error: Why there are no figures.
    """

    name: str
    cosine: float = 0.0
    worst: float = 0.0
    score: float = 0.0
    megabytes: float = 0.0
    seconds: float = 0.0
    error: str = ""


def with_lowbit(case: Case, path: Path, options: dict[str, str]) -> None:
    """Quantize with lowbit."""
    result = lowbit.quantize(
        case.model,
        data=case.calibration,
        test_data=case.selection[:2],
        method="weight-only",
        weights=f"int4:block={_BLOCK}",
        measure_seconds=0,
        **options,
    )
    result.save(path)


def with_dynamic(case: Case, path: Path, options: dict[str, str]) -> None:
    """Quantize with lowbit: 8-bit weights, ranges of 8-bit activations found at run time."""
    result = lowbit.quantize(
        case.model, data=case.calibration, test_data=case.selection[:2], method="dynamic", measure_seconds=0, **options
    )
    result.save(path)


def with_onnxruntime(case: Case, path: Path, algorithm: str) -> None:
    """Quantize with ONNX Runtime's quantizer of weights, symmetric where the algorithm allows it."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(case.calibration)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    operators = ("MatMul", "Gather")
    match algorithm:
        case "hqq":
            config: Any = nbits.HQQWeightOnlyQuantConfig(block_size=_BLOCK, bits=4)
        case "k-quant":
            config = nbits.KQuantWeightOnlyQuantConfig()
        case "gptq":
            config = nbits.GPTQWeightOnlyQuantConfig(calibration_data_reader=Reader(), block_size=_BLOCK)
        case _:
            config = nbits.DefaultWeightOnlyQuantConfig(
                block_size=_BLOCK, is_symmetric=True, op_types_to_quantize=operators
            )
    quantizer = nbits.MatMulNBitsQuantizer(onnx.load(case.model), block_size=_BLOCK, algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=False)


def measure(case: Case, reference: Array, name: str, quantize: Callable[[Path], None], *, select: bool) -> Row:
    """Quantize and compare the embeddings of the test sentences or, to select, of those for choosing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        start = time.perf_counter()
        try:
            quantize(path)
            seconds = time.perf_counter() - start
            outputs = run_all(open_session(path), case.selection if select else case.test)
        except Exception as error:  # noqa: BLE001 - what a peer cannot do is a row of the table
            return Row(name=name, error=f"{type(error).__name__}: {error}")
        found = np.concatenate([sample[0] for sample in outputs])
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
        cosines = (found * reference).sum(axis=1) / norms
        return Row(
            name=name,
            cosine=float(cosines.mean()),
            worst=float(cosines.min()),
            score=float("nan") if select else case.metric(outputs),
            megabytes=path.stat().st_size / 1e6,
            seconds=seconds,
        )


def main() -> None:
    """Quantize in all ways and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    everything = [*LOWBIT, *DYNAMIC, *PEERS]
    parser.add_argument("--only", nargs="+", choices=everything, default=everything, metavar="NAME")
    parser.add_argument(
        "--select", action="store_true", help="compare on sentences for choosing a method, which no test uses"
    )
    arguments = parser.parse_args()
    case = load_case("minilm")
    sentences = case.selection if arguments.select else case.test
    reference = np.concatenate([sample[0] for sample in run_all(open_session(case.model), sentences)])
    table = Table("", "mean cosine", "lowest", case.metric_name, "MB", "seconds")
    for name in arguments.only:
        if name in LOWBIT:
            run = partial(with_lowbit, case, options=LOWBIT[name])
        elif name in DYNAMIC:
            run = partial(with_dynamic, case, options=DYNAMIC[name])
        else:
            run = partial(with_onnxruntime, case, algorithm=name.split(" ", 1)[1])
        row = measure(case, reference, name, run, select=arguments.select)
        figures = [f"{row.cosine:.4f}", f"{row.worst:.4f}", f"{row.score:.4f}", f"{row.megabytes:.1f}"]
        shown = ["fails", escape(row.error[:80])] if row.error else [*figures, f"{row.seconds:.0f}"]
        table.add_row(name, *shown)
        Console(stderr=True).print(name, *shown)
    Console().print(table)


if __name__ == "__main__":
    main()
