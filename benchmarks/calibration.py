"""Time and memory of calibration with histograms, on EfficientNet-Lite0 at 224 × 224, by number of images.

Every measurement is a fresh process with all processors. lowbit's seconds leave out the verification, which no peer
does; the whole is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.peers.feeds import save_feeds
from benchmarks.peers.launch import LaunchError, Peer, launch
from benchmarks.zoo import DEFAULT_CACHE, load_case

ORT_MB_PER_IMAGE = 70
"""Upper bound of what ONNX Runtime's histogram calibration keeps of each image of this model, in MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What quantizing took with so many images.

    Attributes:
        tool: Name of the tool and of its calibration.
        images: Number of images.
        seconds: Wall time without verification.
        whole_seconds: Wall time of everything the tool does.
        peak_mb: Peak resident memory in MB (10^6 bytes).
        extrapolated: Whether the figures were scaled from smaller counts.
        error: Why there are no figures.
    """

    tool: str
    images: int
    seconds: float = 0.0
    whole_seconds: float = 0.0
    peak_mb: float = 0.0
    extrapolated: bool = False
    error: str = ""


def _ort(method: str) -> Peer:
    options = ("--activations", "uint8", "--per-channel", "--reduce-range", "--calibrate", method)
    return Peer(script="onnxruntime_static", options=options)


def _lowbit(method: str) -> Peer:
    return Peer(script="lowbit_ptq", options=("--calibrate", method), own_interpreter=False)


TOOLS: dict[str, Peer] = {
    "lowbit percentile": _lowbit("percentile"),
    "lowbit mse": _lowbit("mse"),
    "lowbit entropy": _lowbit("entropy"),
    "onnxruntime percentile": _ort("percentile"),
    "onnxruntime entropy": _ort("entropy"),
    "nncf": Peer(script="nncf_ptq"),
}


def measure(tool: str, images: int, model: Path, folder: Path, python: Path, repeats: int) -> Cost:
    """Quantize in fresh processes; return the median times and the largest peak."""
    peer = TOOLS[tool]
    options = ["--samples", str(images)]
    if not peer.own_interpreter:
        options += ["--test", str(folder / "test")]
    runs = []
    for _ in range(repeats):
        try:
            runs.append(
                launch(
                    peer,
                    python=python,
                    model=model,
                    calibration=folder / "calibration",
                    output=folder / "artifact.onnx",
                    options=options,
                )
            )
        except LaunchError as error:
            return Cost(tool=tool, images=images, error=str(error))
    verifying = [run.get("stages", {}).get("Verify in the engine", 0.0) for run in runs]
    return Cost(
        tool=tool,
        images=images,
        seconds=statistics.median(run["seconds"] - skipped for run, skipped in zip(runs, verifying, strict=True)),
        whole_seconds=statistics.median(run["seconds"] for run in runs),
        peak_mb=max(run["peak_mb"] for run in runs),
    )


def extrapolate(known: list[Cost], images: int) -> Cost:
    """Continue the line through the two largest measured counts, or through one and the origin.

    A line that falls is noise of the machine; it is continued level.
    """
    last = known[-1]

    def scaled(name: str) -> float:
        value: float = getattr(last, name)
        if len(known) == 1:
            return value * images / last.images
        before = known[-2]
        slope: float = (value - getattr(before, name)) / (last.images - before.images)
        return value + max(0.0, slope) * (images - last.images)

    return Cost(
        tool=last.tool,
        images=images,
        seconds=scaled("seconds"),
        whole_seconds=scaled("whole_seconds"),
        peak_mb=scaled("peak_mb"),
        extrapolated=True,
    )


def bench(tool: str, counts: list[int], model: Path, folder: Path, python: Path, repeats: int) -> list[Cost]:
    """Measure a tool at each count; ONNX Runtime at 50 and 100 images where memory allows, and then extrapolate."""
    if not tool.startswith("onnxruntime"):
        return [measure(tool, images, model, folder, python, repeats) for images in counts]
    room = psutil.virtual_memory().available / 1e6
    measured = [
        measure(tool, images, model, folder, python, repeats)
        for images in (50, 100)
        if images == 50 or images * ORT_MB_PER_IMAGE * 1.3 < room
    ]
    known = [cost for cost in measured if not cost.error]
    if not known:
        return measured
    return measured + [extrapolate(known, images) for images in counts if images > known[-1].images]


def show(costs: list[Cost], reference: str, console: Console) -> None:
    """Print the costs, each beside the reference at the same count."""
    base = {cost.images: cost for cost in costs if cost.tool == reference and not cost.error}
    table = Table("tool", "images", "seconds", "with verification", "peak MB", f"time / {reference}", "memory /")
    for cost in costs:
        if cost.error:
            table.add_row(cost.tool, str(cost.images), f"[red]{cost.error}[/]")
            continue
        mark = " (extrapolated)" if cost.extrapolated else ""
        beside = base.get(cost.images)
        table.add_row(
            cost.tool,
            f"{cost.images}{mark}",
            f"{cost.seconds:.1f}",
            f"{cost.whole_seconds:.1f}",
            f"{cost.peak_mb:.0f}",
            f"{cost.seconds / beside.seconds:.2f}" if beside else "",
            f"{cost.peak_mb / beside.peak_mb:.2f}" if beside else "",
        )
    console.print(table)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS, metavar="NAME", help="default: all")
    parser.add_argument("--images", nargs="+", type=int, default=[50, 150, 300])
    parser.add_argument("--repeats", type=int, default=1, help="runs of each; the median time is shown")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for models built on first use")
    parser.add_argument("--peer-python", type=Path, help="interpreter with the peers; default: in the cache")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    python = arguments.peer_python or arguments.cache / "peers" / "bin" / "python"

    console = Console()
    case = load_case("efficientnet_lite0", cache=arguments.cache)
    feeds = [*case.calibration, *case.test]
    costs: list[Cost] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_feeds(feeds[: max(arguments.images)], folder / "calibration")
        save_feeds(feeds[-20:], folder / "test")
        for tool in arguments.tools:
            with console.status(tool):
                costs += bench(tool, arguments.images, case.model, folder, python, arguments.repeats)
    show(costs, arguments.tools[0], console)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps([asdict(cost) for cost in costs], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
