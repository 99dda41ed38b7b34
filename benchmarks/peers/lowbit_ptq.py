"""Quantize with lowbit; without options: with its defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.quantizer import parser, run

if TYPE_CHECKING:
    import argparse

    from benchmarks.peers.feeds import FeedFolder


def quantize(arguments: argparse.Namespace, feeds: FeedFolder) -> dict[str, Any]:
    """Quantize the model for this machine."""
    import lowbit

    options: dict[str, Any] = {}
    if arguments.calibrate is not None:
        options["calibration"] = arguments.calibrate
    result = lowbit.quantize(
        arguments.model, data=feeds, target=arguments.target, seed=0, threads=arguments.threads, **options
    )
    result.save(arguments.output)
    return {"summary": str(result)} if arguments.summary else {}


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--target", default="host")
    arguments.add_argument("--calibrate", choices=("minmax", "percentile", "mse", "entropy"))
    arguments.add_argument("--summary", action="store_true", help="print lowbit's own account too")
    run(quantize, arguments.parse_args())


if __name__ == "__main__":
    main()
