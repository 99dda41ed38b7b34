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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.training.augmented import AugmentedLoader
from benchmarks.training.datasets import load_pictures
from benchmarks.training.float_training import PACES, accuracy, float_network
from benchmarks.zoo import DEFAULT_CACHE

if TYPE_CHECKING:
    from benchmarks.training.datasets import Pictures
    from lowbit.plan.recipe import Rule

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
        edges: Whether first and last layers keep 8 bits.
        bfloat16: Whether pruning and the teacher multiply in bfloat16.
    """

    amount: float
    pruning_epochs: int
    entries: int = 0
    weights: str = "int4:per-tensor"
    activations: str = "uint8"
    rules: tuple[Rule, ...] = ()
    epochs: int = 10
    rate: float = 3e-2
    labels: float = 0.3
    edges: bool = False
    bfloat16: bool = False


CHAINS: dict[str, Chain] = {
    "lenet-300-100": Chain(amount=0.94, pruning_epochs=80, epochs=20),
    "lenet5": Chain(amount=0.97, pruning_epochs=40, epochs=10),
    "resnet20": Chain(amount=0.73, pruning_epochs=14, epochs=4, rate=2e-2, edges=True, bfloat16=True),
    "xray": Chain(amount=0.9, pruning_epochs=20, epochs=10),
}


def run_chain(name: str, chain: Chain, out: Path, *, seed: int, cache: Path) -> dict[str, Any]:
    """Run a chain and return its account; files are left in `out`."""
    import lowbit
    from lowbit.plan.compression import Code, CompressionRecipe, Prune, Quantize, Share

    pace = PACES[name]
    pictures = load_pictures(pace.dataset, cache=cache)
    out.mkdir(parents=True, exist_ok=True)
    source = out / "float.onnx"
    shutil.copyfile(float_network(name, seed=seed, cache=cache), source)
    data = AugmentedLoader(pictures.normalized(pictures.train), pictures.train_labels, pace)
    steps: list[Any] = [Prune(amount=chain.amount, epochs=chain.pruning_epochs)]
    if chain.entries:
        steps.append(Share(entries=chain.entries, grid="int8"))
    formats: dict[str, Any] = {"weights": chain.weights, "activations": chain.activations, "rules": chain.rules}
    steps.append(Quantize(**formats, edges=chain.edges, epochs=chain.epochs))
    recipe = CompressionRecipe(
        steps=(*steps, Code(smallest=True)),
        labels=chain.labels,
        rate=chain.rate,
        temperature=4.0,
        seed=seed,
        bfloat16=chain.bfloat16,
    )
    started = time.perf_counter()
    result = lowbit.compress(
        source,
        data,
        recipe=recipe,
        samples=list(_samples(pictures)),
        measure=lambda path: accuracy(path, pace.dataset, cache=cache),
    )
    result.save(out / "model.onnx")
    packed = result.save(out / "model.lbz").stat().st_size
    float_bytes = source.stat().st_size
    found = {
        "network": name,
        "seed": seed,
        "chain": asdict(chain),
        "float_accuracy": result.steps[0].score,
        "accuracy": result.steps[-1].score,
        "float_bytes": float_bytes,
        "bytes": packed,
        "ratio": float_bytes / packed,
        "steps": [asdict(step) for step in result.steps],
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
