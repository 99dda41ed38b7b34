"""Prune, share, quantize and code: how small a trained network becomes, as whole files on disk.

    python -m benchmarks.chain lenet5 --out results/lenet5

leaves `float.onnx`, `model.onnx`, `model.lbz` and `results.json` in the folder. The settings of every network are in
`CHAINS`; test pictures are looked at once, after everything is decided.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.training.augmented import AugmentedLoader
from benchmarks.training.datasets import load_pictures
from benchmarks.training.float_training import PACES, accuracy, float_network
from benchmarks.zoo import DEFAULT_CACHE

if TYPE_CHECKING:
    from benchmarks.training.datasets import Pictures

__all__ = ["CHAINS", "Chain", "run_chain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What a network goes through.

    Attributes:
        amount: Fraction of the weights that is pruned, gradually, while the network learns from its float self.
        pruning_epochs: Epochs of that.
        entries: Values that a weight's codebook has; 0 shares nothing.
        weights: Format of the weights, by `lowbit.qat`.
        activations: Format of the activations.
        rules: Other formats for some operators.
        epochs: Epochs of learning with codes, with zeros and shared values kept.
        rate: Learning rate of pruning, in units of every tensor's own size; a fifth of it with codes.
        labels: Weight of the labels beside the teacher in the loss.
    """

    amount: float
    pruning_epochs: int
    entries: int = 0
    weights: str = "int4:per-tensor"
    activations: str = "uint8"
    rules: tuple[dict[str, str], ...] = field(default_factory=tuple)
    epochs: int = 10
    rate: float = 3e-2
    labels: float = 0.3


CHAINS: dict[str, Chain] = {
    "lenet-300-100": Chain(amount=0.94, pruning_epochs=80, epochs=20),
    "lenet5": Chain(amount=0.97, pruning_epochs=40, epochs=10),
    "resnet20": Chain(amount=0.7, pruning_epochs=12, epochs=6, rate=2e-2),
    "xray": Chain(amount=0.9, pruning_epochs=20, epochs=10),
}


def run_chain(name: str, chain: Chain, out: Path, *, seed: int, cache: Path) -> dict[str, Any]:
    """Run a chain and return its account; files are left in `out`."""
    import lowbit
    from lowbit.methods.qat import Distillation

    pace = PACES[name]
    pictures = load_pictures(pace.dataset, cache=cache)
    out.mkdir(parents=True, exist_ok=True)
    source = out / "float.onnx"
    shutil.copyfile(float_network(name, seed=seed, cache=cache), source)
    data = AugmentedLoader(pictures.normalized(pictures.train), pictures.train_labels, pace)
    teacher = Distillation(teacher=source, weight=1.0 - chain.labels, temperature=4.0)
    common: dict[str, Any] = {"distillation": teacher, "seed": seed, "measure_seconds": 0.0}
    started = time.perf_counter()
    steps: dict[str, Any] = {}
    pruned = lowbit.qat(
        source,
        data,
        quantized=False,
        masks=lowbit.GradualPruning(amount=chain.amount),
        epochs=chain.pruning_epochs,
        lr=chain.rate,
        **common,
    )
    current = out / "pruned.onnx"
    pruned.result.save(current)
    steps["pruned"] = _step(current, pace.dataset, cache)
    options: dict[str, Any] = {}
    if chain.entries:
        shared = lowbit.share(current, chain.entries, data=list(_samples(pictures)), grid="int8", seed=seed)
        current = out / "shared.onnx"
        shared.save(current)
        steps["shared"] = _step(current, pace.dataset, cache)
        options["keep_clusters"] = True
    trained = lowbit.qat(
        current,
        data,
        keep_zeros=True,
        weights=chain.weights,
        activations=chain.activations,
        rules=[dict(rule) for rule in chain.rules],
        edges=False,
        epochs=chain.epochs,
        lr=chain.rate / 5,
        **options,
        **common,
    )
    model = out / "model.onnx"
    trained.result.save(model)
    packing = lowbit.pack(model, out / "model.lbz", smallest=True)
    back = out / "unpacked.onnx"
    lowbit.unpack(out / "model.lbz", back)
    if back.read_bytes() != model.read_bytes():
        raise RuntimeError(f"{out / 'model.lbz'} does not unpack to {model}")
    back.unlink()
    steps["quantized"] = _step(model, pace.dataset, cache)
    float_bytes, packed = source.stat().st_size, packing.packed
    found = {
        "network": name,
        "seed": seed,
        "chain": asdict(chain),
        "float_accuracy": accuracy(source, pace.dataset, cache=cache),
        "accuracy": steps["quantized"]["accuracy"],
        "float_bytes": float_bytes,
        "bytes": packed,
        "structure_bytes": packing.structure,
        "ratio": float_bytes / packed,
        "steps": steps,
        "seconds": time.perf_counter() - started,
        "dataset": pictures.name,
        "normalization": {"scale": 1 / 255, "mean": pictures.mean, "std": pictures.std},
        "input": "x, float32 [N, C, H, W]",
        "test_indices": pictures.test_indices,
    }
    temporary = out / "results.json.part"
    temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    temporary.replace(out / "results.json")
    return found


def _samples(pictures: Pictures) -> Any:
    return ({"x": sample[None]} for sample in pictures.normalized(pictures.train[:128]))


def _step(path: Path, dataset: str, cache: Path) -> dict[str, Any]:
    import onnx
    from onnx import numpy_helper

    arrays = [numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    weights = [array for array in arrays if array.ndim > 1 and array.size > 1]
    total = sum(array.size for array in weights)
    return {
        "accuracy": accuracy(path, dataset, cache=cache),
        "bytes": path.stat().st_size,
        "zeros": sum(int(np.count_nonzero(array == 0)) for array in weights) / max(total, 1),
        "distinct": max((len(np.unique(array)) for array in weights), default=0),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(CHAINS))
    parser.add_argument("--out", type=Path, required=True, help="folder; one below it for every seed but the first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of data and float networks")
    arguments = parser.parse_args()
    rows = []
    for index, seed in enumerate(arguments.seeds):
        out = arguments.out if index == 0 else arguments.out / f"seed-{seed}"
        row = run_chain(arguments.network, CHAINS[arguments.network], out, seed=seed, cache=arguments.cache)
        rows.append(row)
        print(
            f"{row['network']} seed {seed}: float {row['float_accuracy']:.4f} in {row['float_bytes']:,} bytes, "
            f"{row['accuracy']:.4f} in {row['bytes']:,}: {row['ratio']:.1f} times smaller, {row['seconds']:.0f} s",
            flush=True,
        )
    if len(rows) > 1:
        for title, values in (
            ("ratio", [row["ratio"] for row in rows]),
            ("points lost", [100 * (row["float_accuracy"] - row["accuracy"]) for row in rows]),
        ):
            print(f"{title}: mean {statistics.mean(values):.2f}, {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
