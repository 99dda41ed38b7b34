"""Quantize with NNCF's post-training quantization, of ONNX models or, for `--output model.xml`, of OpenVINO's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.opset import raise_opset
from benchmarks.peers.quantizer import limit_onnxruntime_threads, parser, run

if TYPE_CHECKING:
    import argparse

    from benchmarks.peers.feeds import FeedFolder


def quantize(arguments: argparse.Namespace, feeds: FeedFolder) -> dict[str, Any]:
    """Quantize the model with `nncf.quantize` and its defaults."""
    limit_onnxruntime_threads(arguments.threads)
    import nncf  # type: ignore[import-not-found]  # lives in the interpreter of the peers
    from nncf.quantization.advanced_parameters import (  # type: ignore[import-not-found]
        AdvancedQuantizationParameters,
        QuantizationParameters,
    )

    with tempfile.TemporaryDirectory() as folder:
        path, preparation = raise_opset(arguments.model, Path(folder) / "raised.onnx")
        loaded = load(path, openvino=arguments.output.suffix == ".xml")
    bits = arguments.weight_bits
    model = nncf.quantize(
        loaded,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER if arguments.transformer else None,
        advanced_parameters=AdvancedQuantizationParameters(
            weights_quantization_params=QuantizationParameters(num_bits=bits if bits != 8 else None)
        ),
    )
    save(model, arguments.output)
    return {"preparation": preparation}


def load(path: Path, *, openvino: bool) -> Any:
    """Load an ONNX file as it is, or converted to OpenVINO's model."""
    if openvino:
        import openvino as ov

        return ov.convert_model(str(path))
    import onnx

    return onnx.load(path)


def save(model: Any, path: Path) -> None:
    """Write what `load` returned."""
    if path.suffix == ".xml":
        import openvino as ov

        ov.save_model(model, str(path), compress_to_fp16=False)
        return
    import onnx

    onnx.save(model, path)


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--weight-bits", type=int, choices=(8, 4), default=8)
    arguments.add_argument("--transformer", action="store_true", help="tell NNCF that the model is a transformer")
    run(quantize, arguments.parse_args())


if __name__ == "__main__":
    main()
