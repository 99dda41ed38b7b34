"""Pruning, weight sharing and both, with 8 bits on top or not: lowbit beside TensorFlow's toolkit.

    python -m benchmarks.compression lenet5 --out results/compression

TensorFlow's toolkit trains the Keras network (or goes on with MLPerf Tiny's ResNet-8), prunes and clusters it, as its
guides do, and counts a `.tflite` file after gzip. lowbit starts from the same float weights, as the toolkit wrote them
to ONNX, with as many epochs for every step, and counts a `.lbz` file. Test pictures are looked at once an artifact.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.peers.launch import ROOT
from benchmarks.training.datasets import load_pictures
from benchmarks.zoo import DEFAULT_CACHE
from benchmarks.zoo.assets import data_folder, data_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["NETWORKS", "Artifact", "Network"]

_SAMPLES = 100  # that calibration takes, on both sides


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A Keras network and how both tools train it.

    Attributes:
        dataset: On what.
        source: `lenet5`, which the toolkit's script builds, or the name of a trained file.
        train: Training pictures that are used; 0 for all.
        float_epochs: Epochs of the float network before anything else.
        float_rate: Their learning rate.
        epochs: Epochs of every step.
        sparsity: Fraction of the weights that is pruned.
        raw: Whether it reads codes from 0 to 255.
        rate: lowbit's learning rate, in units of every tensor's own size.
    """

    dataset: str
    source: str
    train: int
    float_epochs: int
    float_rate: float
    epochs: int
    sparsity: float
    raw: bool
    rate: float


NETWORKS: dict[str, Network] = {
    "lenet5": Network(
        dataset="mnist",
        source="lenet5",
        train=0,
        float_epochs=15,
        float_rate=1e-3,
        epochs=10,
        sparsity=0.9,
        raw=False,
        rate=1e-2,
    ),
    "resnet8": Network(
        dataset="cifar10",
        source="models/resnet8_cifar10.h5",
        train=20_000,
        float_epochs=2,
        float_rate=1e-4,
        epochs=3,
        sparsity=0.6,
        raw=True,
        rate=1e-2,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What one tool made: top-1, bytes of the file as it is and as it is sent, and what its weights look like."""

    name: str
    accuracy: float
    bytes: int
    sent_bytes: int
    zeros: float
    distinct: int


class _Batches:
    """Yields `(x, y)` in a new order every epoch, which follows PyTorch's own random state."""

    def __init__(self, x: NDArray[np.float32], y: NDArray[np.int64], size: int = 64) -> None:
        self.x, self.y, self.size = x, y, size

    def __len__(self) -> int:
        return len(self.x) // self.size

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        import torch

        order = torch.randperm(len(self.x)).numpy()
        for start in range(0, len(order) - self.size + 1, self.size):
            chosen = order[start : start + self.size]
            yield torch.from_numpy(self.x[chosen]), torch.from_numpy(self.y[chosen])


def arrays_of(network: Network, cache: Path) -> dict[str, NDArray[Any]]:
    """Return pictures `[N, H, W, C]` as the network reads them, and labels."""
    pictures = load_pictures(network.dataset, cache=cache)
    chosen = np.random.default_rng(0).permutation(len(pictures.train))[: network.train or None]

    def read(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        array = codes.astype(np.float32) if network.raw else pictures.normalized(codes)
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))

    return {
        "train_x": read(pictures.train[chosen]),
        "train_y": pictures.train_labels[chosen],
        "test_x": read(pictures.test),
        "test_y": pictures.test_labels,
    }


def with_toolkit(network: Network, arrays: Path, out: Path, *, python: Path, seed: int) -> list[Artifact]:
    """Let TensorFlow's toolkit train and compress in an interpreter of its own.

    Raises:
        RuntimeError: It failed; with the last line of what it said.
    """
    source = network.source if network.source == "lenet5" else str(data_path(data_folder(), network.source))
    command = [str(python), "-m", "benchmarks.peers.tfmot_compress", "--network", source, "--data", str(arrays)]
    command += ["--out", str(out), "--sparsity", str(network.sparsity), "--epochs", str(network.epochs)]
    command += ["--float-epochs", str(network.float_epochs), "--float-rate", str(network.float_rate)]
    command += ["--seed", str(seed)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"TensorFlow's toolkit ended with {done.returncode}: {done.stderr.splitlines()[-1:]}")
    rows = json.loads((out / "rows.json").read_text(encoding="utf-8"))
    tag = f"pruned-{network.sparsity:g}"
    return [
        Artifact(
            name=row["name"].replace(tag, "pruned"),
            accuracy=row["accuracy"],
            bytes=row["bytes"],
            sent_bytes=row["gzip_bytes"],
            zeros=row["zeros"],
            distinct=row["distinct"],
        )
        for row in rows
    ]


def with_lowbit(network: Network, data: dict[str, NDArray[Any]], out: Path, *, seed: int) -> list[Artifact]:
    """Do the same from the toolkit's float weights."""
    import lowbit
    from lowbit.methods.qat import Distillation

    source = out / "float.onnx"
    loader = _Batches(data["train_x"], data["train_y"])
    name = "x" if network.source == "lenet5" else _input_of(source)
    samples = [{name: sample[None]} for sample in data["train_x"][:_SAMPLES]]
    common: dict[str, Any] = {
        "epochs": network.epochs,
        "lr": network.rate,
        "distillation": Distillation(teacher=source, weight=0.7, temperature=4.0),
        "seed": seed,
        "quantized": False,
        "measure_seconds": 0.0,
    }
    rows = [_scored("float", source, data, len(gzip.compress(source.read_bytes(), 9)))]

    def keep(title: str, result: Any) -> Path:
        path = out / f"lowbit-{title}.onnx"
        result.save(path)
        packing = lowbit.pack(path, path.with_suffix(".lbz"), smallest=True)
        rows.append(_scored(title, path, data, packing.packed))
        return path

    def integer(title: str, path: Path) -> None:
        keep(title, lowbit.quantize(path, samples, weights="int8:per-tensor", measure_seconds=0.0))

    pruned = keep(
        "pruned", lowbit.qat(source, loader, masks=lowbit.GradualPruning(amount=network.sparsity), **common).result
    )
    integer("pruned-int8", pruned)
    for title, start, kept in (("pruned-clustered", pruned, True), ("clustered", source, False)):
        shared = out / f"{title}-start.onnx"
        lowbit.share(start, 16, data=samples, seed=seed).save(shared)
        trained = lowbit.qat(
            shared, loader, keep_clusters=True, keep_zeros=kept, **{**common, "lr": network.rate / 5}
        ).result
        integer(f"{title}-int8", keep(title, trained))
    return rows


def _input_of(path: Path) -> str:
    import onnx

    return str(onnx.load(path).graph.input[0].name)


def _scored(name: str, path: Path, data: dict[str, NDArray[Any]], sent: int) -> Artifact:
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    found = [
        session.run(None, {feed: data["test_x"][start : start + 100]})[0].argmax(axis=1)
        for start in range(0, len(data["test_x"]), 100)
    ]
    weights = [numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    weights = [array for array in weights if array.ndim > 1 and array.size > 1]
    return Artifact(
        name=name,
        accuracy=float(np.mean(np.concatenate(found) == data["test_y"])),
        bytes=path.stat().st_size,
        sent_bytes=sent,
        zeros=sum(int(np.count_nonzero(array == 0)) for array in weights)
        / max(sum(array.size for array in weights), 1),
        distinct=max((len(np.unique(array)) for array in weights), default=0),
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of data and of the interpreters")
    arguments = parser.parse_args()
    network = NETWORKS[arguments.network]
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = arrays_of(network, arguments.cache)
    arrays = arguments.out / "pictures.npz"
    np.savez(arrays, allow_pickle=False, **data)
    python = arguments.cache / "tfmot" / "bin" / "python"
    theirs = with_toolkit(network, arrays, arguments.out, python=python, seed=arguments.seed)
    ours = with_lowbit(network, data, arguments.out, seed=arguments.seed)
    both = {"tfmot": [asdict(row) for row in theirs], "lowbit": [asdict(row) for row in ours]}
    (arguments.out / "results.json").write_text(json.dumps(both, indent=1), encoding="utf-8")
    table = Table("", "tool", "top-1", "file", "sent as", "zeros", "values")
    mine = {row.name: row for row in ours}
    for row in theirs:
        for tool, one in (("tfmot", row), ("lowbit", mine[row.name])):
            sizes = [f"{one.bytes:,}", f"{one.sent_bytes:,}"]
            table.add_row(one.name, tool, f"{one.accuracy:.4f}", *sizes, f"{one.zeros:.1%}", str(one.distinct))
    Console().print(table)


if __name__ == "__main__":
    main()
