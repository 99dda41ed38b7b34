"""Float networks, trained once by seed and kept: what every comparison starts from."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.progress import track
from torch import nn

from benchmarks.training.datasets import Pictures, load_pictures
from benchmarks.training.networks import NETWORKS
from benchmarks.zoo import DEFAULT_CACHE
from benchmarks.zoo.torch_export import export_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["PACES", "Pace", "accuracy", "augmented", "batches", "float_network", "float_path"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a network is trained.

    Attributes:
        dataset: On what.
        epochs: How often over it.
        batch: Pictures a step.
        rate: The highest learning rate.
        decay: Weight decay.
        shift: Pixels that pictures are moved by at most.
        flip: Whether they are mirrored at random.
    """

    dataset: str
    epochs: int
    batch: int
    rate: float
    decay: float = 5e-4
    shift: int = 0
    flip: bool = False


PACES: dict[str, Pace] = {
    "lenet-300-100": Pace(dataset="mnist", epochs=40, batch=64, rate=0.05, shift=2),
    "lenet5": Pace(dataset="mnist", epochs=30, batch=64, rate=0.03, shift=2),
    "resnet20": Pace(dataset="cifar10", epochs=30, batch=128, rate=0.2, shift=4, flip=True),
    "xray": Pace(dataset="pneumoniamnist", epochs=25, batch=64, rate=0.05, shift=2),
}


def augmented(x: torch.Tensor, pace: Pace, generator: torch.Generator) -> torch.Tensor:
    """Return pictures moved and mirrored at random, `[N, C, H, W]`; what comes in from outside is their least value."""
    if pace.flip:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    if pace.shift == 0:
        return x
    height, width = x.shape[2:]
    padded = nn.functional.pad(x, (pace.shift,) * 4, value=float(x.min()))
    rows, columns = torch.randint(0, 2 * pace.shift + 1, (2, len(x), 1), generator=generator)
    rows, columns = rows + torch.arange(height), columns + torch.arange(width)
    picture = torch.arange(len(x))[:, None, None]
    return padded.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batches(
    x: NDArray[np.float32], y: NDArray[np.int64], pace: Pace, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield one epoch in random order, augmented; what does not fill a batch is left out."""
    order = torch.randperm(len(x), generator=generator).numpy()
    for start in range(0, len(order) - pace.batch + 1, pace.batch):
        chosen = order[start : start + pace.batch]
        yield augmented(torch.from_numpy(x[chosen]), pace, generator), torch.from_numpy(y[chosen])


def float_path(name: str, seed: int, cache: Path) -> Path:
    """Where the trained network is kept."""
    return cache / "float" / f"{name}-{seed}.onnx"


def float_network(name: str, *, seed: int, cache: Path = DEFAULT_CACHE) -> Path:
    """Train a network unless it is there already, and return its ONNX file, of free batch size.

    Args:
        name: One of `NETWORKS`.
        seed: Of its weights and of the order of pictures.
        cache: Where trained networks are kept.
    """
    path = float_path(name, seed, cache)
    if path.exists():
        return path
    pace = PACES[name]
    pictures = load_pictures(pace.dataset, cache=cache)
    torch.manual_seed(seed)
    network = NETWORKS[name]().to(memory_format=torch.channels_last)
    _train(network, pictures, pace, seed, title=f"{name}, seed {seed}")
    example = torch.from_numpy(pictures.normalized(pictures.test[:2]))
    export_onnx(
        network.eval(),
        (example,),
        path,
        inputs=["x"],
        outputs=["logits"],
        dynamic=({0: torch.export.Dim("batch")},),
    )
    return path


def _train(network: nn.Module, pictures: Pictures, pace: Pace, seed: int, title: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = pictures.normalized(pictures.train), pictures.train_labels
    steps = len(x) // pace.batch * pace.epochs
    optimizer = torch.optim.SGD(
        network.parameters(), lr=pace.rate, momentum=0.9, weight_decay=pace.decay, nesterov=True
    )
    warm = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    network.train()
    for _ in track(range(pace.epochs), description=title):
        for batch, labels in batches(x, y, pace, generator):
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(batch.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    """Train and keep float networks."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("networks", nargs="+", choices=sorted(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    arguments = parser.parse_args()
    for name in arguments.networks:
        for seed in arguments.seeds:
            path = float_network(name, seed=seed, cache=arguments.cache)
            print(f"{name}, seed {seed}: {accuracy(path, PACES[name].dataset, cache=arguments.cache):.4f}  {path}")


def accuracy(path: Path, dataset: str, *, cache: Path = DEFAULT_CACHE) -> float:
    """Return the share of test pictures that a file classifies rightly in ONNX Runtime."""
    import onnxruntime

    pictures = load_pictures(dataset, cache=cache)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    found = [
        np.argmax(session.run(None, {name: pictures.normalized(pictures.test[start : start + 100])})[0], axis=1)
        for start in range(0, len(pictures.test), 100)
    ]
    return float(np.mean(np.concatenate(found) == pictures.test_labels))


if __name__ == "__main__":
    main()
