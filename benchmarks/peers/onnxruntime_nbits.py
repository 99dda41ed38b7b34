"""Store the weights of matrix products in 4 bits with ONNX Runtime's `MatMulNBitsQuantizer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.quantizer import limit_onnxruntime_threads, parser, run

if TYPE_CHECKING:
    import argparse

    from benchmarks.peers.feeds import FeedFolder

_BLOCK = 32


def quantize(arguments: argparse.Namespace, feeds: FeedFolder) -> None:  # noqa: ARG001 - these need no data
    """Quantize in blocks of 32."""
    limit_onnxruntime_threads(arguments.threads)
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    if arguments.algorithm == "hqq":
        config: Any = nbits.HQQWeightOnlyQuantConfig(block_size=_BLOCK, bits=4)
    else:
        config = nbits.DefaultWeightOnlyQuantConfig(
            block_size=_BLOCK, is_symmetric=True, op_types_to_quantize=("MatMul", "Gather")
        )
    model = onnx.load(arguments.model)
    quantizer = nbits.MatMulNBitsQuantizer(model, block_size=_BLOCK, algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(arguments.output), use_external_data_format=False)


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--algorithm", choices=("nearest", "hqq"), default="nearest")
    run(quantize, arguments.parse_args())


if __name__ == "__main__":
    main()
