"""What quantization-aware training costs in accuracy, format by format, on a float network trained before.

    python -m benchmarks.training_bits resnet20 --formats W8A8 W4A4 W2A2 --out results/bits.json

Every artifact starts from the ranges of post-training quantization, learns from labels and from its float self, and
is scored on the test pictures in ONNX Runtime, once. First and last layers have 8 bits where others have fewer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.training.augmented import AugmentedLoader
from benchmarks.training.datasets import load_pictures
from benchmarks.training.float_training import PACES, accuracy, float_network
from benchmarks.zoo import DEFAULT_CACHE

__all__ = ["FORMATS", "Trained", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a format is trained.

    Attributes:
        weights: Format of the weights.
        activations: Format of the activations.
        epochs: Passes over the training pictures.
        rate: Learning rate, in units of every tensor's own size.
    """

    weights: str
    activations: str
    epochs: int
    rate: float


FORMATS: dict[str, Format] = {
    "W8A8": Format(weights="int8:per-channel", activations="uint8", epochs=1, rate=2e-3),
    "W4A8": Format(weights="int4:per-channel", activations="uint8", epochs=2, rate=5e-3),
    "W4A4": Format(weights="int4:per-channel", activations="uint4", epochs=3, rate=1e-2),
    "W2A2": Format(weights="int2:per-channel", activations="uint2", epochs=8, rate=3e-2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One artifact: top-1 of the float network and its own, epochs, bytes, and the seconds that training took."""

    network: str
    bits: str
    seed: int
    float_accuracy: float
    accuracy: float
    epochs: int
    float_bytes: int
    bytes: int
    seconds: float


def train(name: str, bits: str, *, seed: int, cache: Path, epochs: int | None = None) -> Trained:
    """Train one artifact and score it.

    Args:
        name: A network of `benchmarks.training`.
        bits: One of `FORMATS`.
        seed: Of the float network and of training.
        cache: Where data and float networks are kept.
        epochs: Other than those of the format.
    """
    import lowbit
    from lowbit.methods.qat import Distillation

    pace, how = PACES[name], FORMATS[bits]
    pictures = load_pictures(pace.dataset, cache=cache)
    source = float_network(name, seed=seed, cache=cache)
    data = AugmentedLoader(pictures.normalized(pictures.train), pictures.train_labels, pace)
    passes = how.epochs if epochs is None else epochs
    started = time.perf_counter()
    trained = lowbit.qat(
        source,
        data,
        weights=how.weights,
        activations=how.activations,
        epochs=passes,
        lr=how.rate,
        distillation=Distillation(teacher=source, weight=0.7, temperature=4.0),
        seed=seed,
        bfloat16=True,
        measure_seconds=0.0,
    )
    seconds = time.perf_counter() - started
    assert trained.result is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        trained.result.save(path)
        return Trained(
            network=name,
            bits=bits,
            seed=seed,
            float_accuracy=accuracy(source, pace.dataset, cache=cache),
            accuracy=accuracy(path, pace.dataset, cache=cache),
            epochs=passes,
            float_bytes=source.stat().st_size,
            bytes=path.stat().st_size,
            seconds=seconds,
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(PACES))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["W8A8", "W4A4", "W2A2"], metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="other than each format's own")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of data and float networks")
    parser.add_argument("--out", type=Path, help="write the rows into this JSON file, after every one")
    arguments = parser.parse_args()
    rows: list[Trained] = []
    for bits in arguments.formats:
        for seed in arguments.seeds:
            row = train(arguments.network, bits, seed=seed, cache=arguments.cache, epochs=arguments.epochs)
            rows.append(row)
            Console(stderr=True).print(row)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps([asdict(each) for each in rows], indent=1), encoding="utf-8")
    table = Table("network", "bits", "seeds", "float", "trained", "points lost", "spread", "size", "seconds")
    for bits in arguments.formats:
        here = [row for row in rows if row.bits == bits]
        lost = [100 * (row.float_accuracy - row.accuracy) for row in here]
        table.add_row(
            arguments.network,
            bits,
            str(len(here)),
            f"{statistics.mean(row.float_accuracy for row in here):.4f}",
            f"{statistics.mean(row.accuracy for row in here):.4f}",
            f"{statistics.mean(lost):+.2f}",
            f"{min(lost):+.2f} to {max(lost):+.2f}",
            f"{statistics.mean(row.bytes / row.float_bytes for row in here):.3f}",
            f"{statistics.mean(row.seconds for row in here):.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
