"""Copy the float model: what the measurements of the harness itself say when nothing is quantized."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks.peers.quantizer import parser, run

if TYPE_CHECKING:
    import argparse

    from benchmarks.peers.feeds import FeedFolder


def quantize(arguments: argparse.Namespace, feeds: FeedFolder) -> None:  # noqa: ARG001 - needs no data
    """Copy the model."""
    shutil.copyfile(arguments.model, arguments.output)


if __name__ == "__main__":
    run(quantize, parser(__doc__).parse_args())
