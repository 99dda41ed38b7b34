"""Quantize with ONNX Runtime's `quantize_static`, QDQ format; without options: with its defaults."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.onnxruntime_preparation import prepare
from benchmarks.peers.quantizer import limit_onnxruntime_threads, parser, run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from benchmarks.peers.feeds import FeedFolder


def quantize(arguments: argparse.Namespace, feeds: FeedFolder) -> dict[str, Any]:
    """Preprocess and quantize the model."""
    limit_onnxruntime_threads(arguments.threads)
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, Any]] = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    with tempfile.TemporaryDirectory() as folder:
        model, preparation = prepare(arguments.model, Path(folder))
        quantize_static(
            str(model),
            str(arguments.output),
            Reader(),
            per_channel=arguments.per_channel,
            reduce_range=arguments.reduce_range,
            activation_type=QuantType.QUInt8 if arguments.activations == "uint8" else QuantType.QInt8,
            weight_type=QuantType.QInt4 if arguments.weights == "int4" else QuantType.QInt8,
            calibrate_method=methods[arguments.calibrate],
        )
    return {"preparation": preparation}


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--activations", choices=("int8", "uint8"), default="int8")
    arguments.add_argument("--weights", choices=("int8", "int4"), default="int8")
    arguments.add_argument("--per-channel", action="store_true")
    arguments.add_argument("--reduce-range", action="store_true", help="7-bit weights, safe on x86 without VNNI")
    arguments.add_argument("--calibrate", choices=("minmax", "percentile", "entropy"), default="minmax")
    run(quantize, arguments.parse_args())


if __name__ == "__main__":
    main()
