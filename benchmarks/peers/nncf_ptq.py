"""Quantize with NNCF's post-training quantization of ONNX models."""

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
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path, preparation = raise_opset(arguments.model, Path(folder) / "raised.onnx")
        loaded = onnx.load(path)
    model = nncf.quantize(
        loaded,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER if arguments.transformer else None,
    )
    onnx.save(model, arguments.output)
    return {"preparation": preparation}


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--transformer", action="store_true", help="tell NNCF that the model is a transformer")
    run(quantize, arguments.parse_args())


if __name__ == "__main__":
    main()
