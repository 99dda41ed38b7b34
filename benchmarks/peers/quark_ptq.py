"""Quantize with AMD Quark's ONNX quantizer, by the name of one of its configurations, per channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.quantizer import parser, run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from benchmarks.peers.feeds import FeedFolder


def quantize(arguments: argparse.Namespace, feeds: FeedFolder) -> None:
    """Quantize the model."""
    from onnxruntime.quantization import CalibrationDataReader
    from quark.onnx import ModelQuantizer, QConfig  # type: ignore[import-not-found]  # in an interpreter of its own

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self.reset_iter()

        def reset_iter(self) -> None:
            self._feeds: Iterator[dict[str, Any]] = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    config = QConfig.get_default_config(arguments.config)
    config.global_quant_config.per_channel = True
    ModelQuantizer(config).quantize_model(str(arguments.model), str(arguments.output), Reader())


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--config", default="U8S8_AAWS")
    run(quantize, arguments.parse_args())


if __name__ == "__main__":
    main()
