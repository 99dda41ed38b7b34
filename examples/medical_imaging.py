"""Pneumonia in chest X-rays: what int8 does, and pruning to a tenth, 4 bits and coding after that.

    python examples/medical_imaging.py --data FOLDER

A small residual network learns PneumoniaMNIST (MedMNIST v2; Yang et al., 2023), then is made small in two ways. What is
small must still see who is ill: the table has the area under the curve, sensitivity and specificity, with intervals of
95 % from a bootstrap, and for how many X-rays the answer is another than float's. All answer at the threshold that is
best for float on the validation split (Youden, 1950). For research, not for diagnosis.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lowbit


class Block(nn.Module):
    """Two convolutions around a shortcut (He et al., 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        second = [nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.body = nn.Sequential(*first, *second)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, `[N, outputs, H / stride, W / stride]`."""
        return torch.relu(self.body(x) + self.shortcut(x))


def train(loader: DataLoader, path: Path, epochs: int) -> None:
    """Train the float network and write it as ONNX."""
    stem = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)]
    network = nn.Sequential(*stem, Block(16, 32, 1), Block(32, 64, 2), *head)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(loader))
    for epoch in range(epochs):
        for x, y in loader:
            loss = nn.functional.cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"float, epoch {epoch + 1}: loss {loss.item():.3f}")
    names = {"input_names": ["x"], "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    example = (torch.zeros(2, 1, 28, 28),)
    torch.onnx.export(network.eval(), example, path, **names, external_data=False, verbose=False)


def scores(path: Path, x: np.ndarray) -> np.ndarray:
    """Return how far each X-ray looks more like pneumonia than normal, a difference of logits, `[N]`."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = np.concatenate([session.run(None, {"x": one[None]})[0] for one in x])
    return logits[:, 1] - logits[:, 0]


def measures(score: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return area under the curve, sensitivity (of pneumonia) and specificity (of normal), as fractions."""
    ill, well = score[y == 1], score[y == 0]
    pairs = ill[:, None] - well[None]
    return np.array([(pairs > 0).mean() + (pairs == 0).mean() / 2, (ill > 0).mean(), (well <= 0).mean()])


def main() -> None:
    """Train, quantize, prune, quantize the rest, pack, and measure each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LOWBIT_DATA", "data")))
    parser.add_argument("--out", type=Path, default=Path("medical_imaging"), help="folder for the models")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with np.load(options.data / "pneumoniamnist.npz") as file:
        x, y = ({part: file[f"{part}_{kind}"] for part in ("train", "val", "test")} for kind in ("images", "labels"))
    x = {part: ((codes[:, None] / 255 - 0.57) / 0.17).astype(np.float32) for part, codes in x.items()}
    y = {part: labels.reshape(-1).astype(np.int64) for part, labels in y.items()}
    learned = TensorDataset(torch.from_numpy(x["train"]), torch.from_numpy(y["train"]))
    loader = DataLoader(learned, batch_size=64, shuffle=True, drop_last=True)
    train(loader, out / "float.onnx", options.epochs)
    calibration = [{"x": one[None]} for one in x["train"][:200]]
    lowbit.quantize(out / "float.onnx", calibration, measure_seconds=0).save(out / "int8.onnx")

    teacher = {"distillation": lowbit.Distillation(teacher=out / "float.onnx", weight=0.7), "measure_seconds": 0}
    prune = {"quantized": False, "masks": lowbit.GradualPruning(amount=0.9)}
    pruned = lowbit.qat(out / "float.onnx", loader, epochs=options.epochs, lr=2e-2, **prune, **teacher)
    pruned.result.save(out / "pruned.onnx")
    bits = {"weights": "int4:per-tensor", "activations": "uint8", "edges": False, "keep_zeros": True}
    small = lowbit.qat(out / "pruned.onnx", loader, epochs=max(options.epochs // 2, 1), **bits, **teacher)
    small.result.save(out / "pruned.int4.onnx")

    print("| model | AUC | sensitivity | specificity | other answers | .onnx | .lbz |\n|" + " --- |" * 7)
    val, test = scores(out / "float.onnx", x["val"]), y["test"]
    threshold = max(val, key=lambda least: measures(val - least, y["val"])[1:].sum())
    reference = scores(out / "float.onnx", x["test"]) - threshold
    draws = np.random.default_rng(0).integers(0, len(test), (1000, len(test)))
    for name in ("float", "int8", "pruned", "pruned.int4"):
        score = scores(out / f"{name}.onnx", x["test"]) - threshold
        low, high = np.percentile([measures(score[draw], test[draw]) for draw in draws], [2.5, 97.5], axis=0)
        parts = zip(measures(score, test), low, high, strict=True)
        columns = " | ".join(f"{value:.3f} ({least:.3f} – {most:.3f})" for value, least, most in parts)
        others = int(np.sum((score > 0) != (reference > 0)))
        packed = lowbit.pack(out / f"{name}.onnx", out / f"{name}.lbz", smallest=True).packed
        print(f"| {name} | {columns} | {others} | {(out / f'{name}.onnx').stat().st_size:,} | {packed:,} |")


if __name__ == "__main__":
    main()
