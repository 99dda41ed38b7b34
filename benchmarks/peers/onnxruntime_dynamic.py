"""Quantize with ONNX Runtime's `quantize_dynamic`: int8 weights, activations at run time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.onnxruntime_preparation import prepare
from benchmarks.peers.quantizer import limit_onnxruntime_threads, parser, run

if TYPE_CHECKING:
    import argparse

    from benchmarks.peers.feeds import FeedFolder


def quantize(arguments: argparse.Namespace, feeds: FeedFolder) -> dict[str, Any]:  # noqa: ARG001 - needs no data
    """Preprocess and quantize the model."""
    limit_onnxruntime_threads(arguments.threads)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        model, preparation = prepare(arguments.model, Path(folder))
        quantize_dynamic(
            str(model),
            str(arguments.output),
            per_channel=arguments.per_channel,
            reduce_range=arguments.reduce_range,
            weight_type=QuantType.QInt8,
        )
    return {"preparation": preparation}


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--per-channel", action="store_true")
    arguments.add_argument("--reduce-range", action="store_true", help="7-bit weights, safe on x86 without VNNI")
    run(quantize, arguments.parse_args())


if __name__ == "__main__":
    main()
