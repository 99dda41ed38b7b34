"""Compress weights to 4 bits with NNCF, of ONNX models or, for `--output model.xml`, of OpenVINO's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers.nncf_ptq import load, save
from benchmarks.peers.quantizer import limit_onnxruntime_threads, parser, run

if TYPE_CHECKING:
    import argparse

    from benchmarks.peers.feeds import FeedFolder

# 4-bit tensors and scales for blocks of them came with this opset.
_OPSET = 21


def quantize(arguments: argparse.Namespace, feeds: FeedFolder) -> None:
    """Compress with a scale per channel and what restores accuracy: estimated scales, and GPTQ where asked for."""
    limit_onnxruntime_threads(arguments.threads)
    import nncf  # type: ignore[import-not-found]  # lives in the interpreter of the peers

    openvino = arguments.output.suffix == ".xml"
    model = load(arguments.model, openvino=openvino)
    if not openvino:
        from onnx import version_converter

        model = version_converter.convert_version(model, _OPSET)
    model = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        all_layers=True,
        group_size=-1,
        dataset=nncf.Dataset(feeds),
        subset_size=len(feeds),
        scale_estimation=True,
        gptq=arguments.gptq or None,
    )
    save(model, arguments.output)


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--gptq", action="store_true", help="OpenVINO's models only")
    run(quantize, arguments.parse_args())


if __name__ == "__main__":
    main()
