"""Quantize with onnxsim: `quantize_static`, or 4-bit weights in blocks, rounded by GPTQ or AdaRound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.quantizer import limit_onnxruntime_threads, parser, run

if TYPE_CHECKING:
    import argparse

    from benchmarks.peers.feeds import FeedFolder

# 4-bit tensors came with this opset.
_OPSET = 21


def quantize(arguments: argparse.Namespace, feeds: FeedFolder) -> dict[str, Any]:
    """Simplify, then quantize."""
    limit_onnxruntime_threads(arguments.threads)
    import onnx
    import onnxsim  # type: ignore[import-not-found]  # lives in an interpreter of its own
    from onnx import version_converter

    model, _ = onnxsim.simplify(onnx.load(arguments.model))
    samples = list(feeds)
    if arguments.method == "static":
        onnx.save(onnxsim.quantize_static(model, samples, method=arguments.calibrate), arguments.output)
        return {}
    model = version_converter.convert_version(model, _OPSET)
    quantized = onnxsim.quantize_weight_only_int4(model)
    match arguments.method:
        case "gptq":
            quantized = onnxsim.apply_gptq(model, quantized, samples)
        case "adaround":
            # Its default is 8 samples; time grows with them.
            quantized = onnxsim.apply_adaround(model, quantized, samples[:32])
    onnx.save(quantized, arguments.output)
    return {}


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--method", choices=("static", "nearest", "gptq", "adaround"), default="static")
    arguments.add_argument("--calibrate", choices=("minmax", "mse"), default="minmax")
    run(quantize, arguments.parse_args())


if __name__ == "__main__":
    main()
