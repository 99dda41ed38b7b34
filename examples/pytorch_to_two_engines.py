"""A PyTorch module quantized for ONNX Runtime and for OpenVINO, and its answers in both.

    python examples/pytorch_to_two_engines.py --data FOLDER

Module -> quantized ONNX, one file for each engine. A small residual network is trained on handwritten digits first, as
any other; lowbit sees the module and a loader. OpenVINO comes with `pip install "lowbit[openvino]"`; it runs on x86.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lowbit


class Block(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
        self.past = nn.Conv2d(inside, outside, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a map of half the size."""
        return torch.relu(self.second(self.first(x)) + self.past(x))


class Digits(nn.Module):
    """A residual network for digits of 28x28."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 32), Block(32, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return ten scores."""
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


def train(module: nn.Module, loader: DataLoader, epochs: int) -> None:
    """Train with nothing special."""
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs * len(loader))
    for _ in range(epochs):
        for image, label in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(image), label).backward()
            optimizer.step()
            schedule.step()


def in_onnxruntime(path: Path, x: np.ndarray) -> np.ndarray:
    """Return the scores of an ONNX file, one picture after the other."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in x])


def in_openvino(path: Path, x: np.ndarray) -> np.ndarray:
    """Return the scores of an ONNX file in OpenVINO's CPU plugin."""
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([np.array(compiled({"image": image[None]})[0]) for image in x])


def main() -> None:
    """Train, quantize twice, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LOWBIT_DATA", "data")))
    parser.add_argument("--out", type=Path, default=Path("pytorch_to_two_engines"), help="folder for the models")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with np.load(options.data / "mnist10k.npz") as digits:
        order = np.random.default_rng(0).permutation(len(digits["y"]))
        x = torch.from_numpy(digits["x"][order].astype(np.float32))[:, None] / 127.5 - 1
        y = torch.from_numpy(digits["y"][order]).long()
    loader = DataLoader(TensorDataset(x[:8000], y[:8000]), batch_size=64, shuffle=True)
    module = Digits()
    train(module, loader, options.epochs)

    lowbit.import_model(module, x[:1]).save(out / "float.onnx")
    few = DataLoader(TensorDataset(x[:300]), batch_size=1)
    files: dict[str, Path] = {}
    target = "host"
    for engine in ("ONNX Runtime", "OpenVINO"):
        result = lowbit.quantize(module, few, target=target, method="static", measure_seconds=0)
        files[engine] = out / f"{result.plan.target}.onnx"
        result.save(files[engine])
        target = result.plan.target.replace("onnxruntime", "openvino")  # the other engine on the same processor
        integer = sum(site.execution == "static" for site in result.plan.sites)
        print(f"{engine}: {integer} of {len(result.plan.sites)} operators in integers")

    test, labels = x[8000:], y[8000:].numpy()
    with torch.no_grad():
        eager = module.eval()(test).numpy()
    rows = {
        "PyTorch, float": (None, eager),
        "ONNX, float": (out / "float.onnx", in_onnxruntime(out / "float.onnx", test.numpy())),
        "ONNX Runtime, int8": (files["ONNX Runtime"], in_onnxruntime(files["ONNX Runtime"], test.numpy())),
        "OpenVINO, int8": (files["OpenVINO"], in_openvino(files["OpenVINO"], test.numpy())),
    }
    print("| model | top-1 | same class as PyTorch | SQNR | bytes |\n| --- | --- | --- | --- | --- |")
    for name, (file, scores) in rows.items():
        top1 = 100 * np.mean(scores.argmax(1) == labels)
        same = 100 * np.mean(scores.argmax(1) == eager.argmax(1))
        noise = np.square(scores - eager).sum()
        ratio = f"{10 * np.log10(np.square(eager).sum() / noise):.1f} dB" if noise else "–"
        size = f"{file.stat().st_size:,}" if file else "–"
        print(f"| {name} | {top1:.2f} % | {same:.2f} % | {ratio} | {size} |")


if __name__ == "__main__":
    main()
