"""Transformer encoders with LayerNorm, trained on digits row by row: LiteRT beside the ONNX artifact and ONNX Runtime.

`python -m benchmarks.litert_encoder` prints, for normalization before and behind the layers: the score on digits that
nothing was learned or calibrated from, the SQNR of the logits against the float model, how often LiteRT gives the same
class as the ONNX artifact and how many of its outputs are within one step, kernels and float kernels, size and arena.
Digits come from `mnist10k.npz` in `$LOWBIT_DATA`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

import lowbit
from benchmarks.zoo.assets import data_folder, data_path
from lowbit.importing import import_model
from lowbit.runtime.litert_micro import run_micro
from lowbit.runtime.litert_session import litert_session
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

_TRAINING, _CALIBRATION, _TEST = 8000, 200, 1000


class Encoder(nn.Module):
    """Rows of a digit as tokens; the class from the mean of what the encoder makes of them."""

    def __init__(self, *, before: bool, layers: int, width: int, activation: str) -> None:
        super().__init__()
        self.embed = nn.Linear(28, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, 28, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation=activation, batch_first=True, norm_first=before
        )
        last = nn.LayerNorm(width) if before else None
        self.encoder = nn.TransformerEncoder(layer, layers, norm=last, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `[N, 10]` for digits `[N, 28, 28]`."""
        return self.head(self.encoder(self.embed(x) + self.position).mean(dim=1))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--micro", type=int, default=50, help="Samples that run in tflite-micro")
    arguments = parser.parse_args()
    with np.load(data_path(data_folder(), "mnist10k.npz")) as file:
        x, labels = file["x"].astype(np.float32) / np.float32(255), file["y"]
    order = np.random.default_rng(0).permutation(len(x))
    x, labels = x[order], labels[order]
    titles = ["encoder", "in", "score", "dB", "same top-1", "within one step", "kernels", "float", "bytes", "arena"]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for before, layers, width, activation in ((True, 2, 64, "gelu"), (False, 4, 64, "gelu"), (True, 4, 128, "relu")):
        torch.manual_seed(0)
        module = Encoder(before=before, layers=layers, width=width, activation=activation)
        _train(module, torch.from_numpy(x[:_TRAINING]), torch.from_numpy(labels[:_TRAINING]), arguments.epochs)
        model = import_model(module.eval(), (torch.from_numpy(x[:1]),)).model
        label = f"{layers} layers of {width}, {activation}, LayerNorm {'before' if before else 'behind'}"
        for row in _rows(model, x, labels, arguments.micro):
            print(f"| {label} | {' | '.join(row)} |", flush=True)


def _train(module: nn.Module, x: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3, weight_decay=0.01)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for batch in order[: len(x) // 64 * 64].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()


def _rows(model: ir.Model, x: np.ndarray, labels: np.ndarray, micro: int) -> list[list[str]]:
    name = model.graph.inputs[0].name
    feeds = [{name: digit[None]} for digit in x[_TRAINING:]]
    calibration, tests = feeds[:_CALIBRATION], feeds[-_TEST:]
    truth = labels[-_TEST:]
    wanted = _outputs(model, tests)
    rows = [["float, ONNX Runtime", f"{_score(wanted, truth):.3f}", *[""] * 7]]
    host = lowbit.quantize(
        model, data=calibration, target="onnxruntime-arm64", method="static", weights="int8", measure_seconds=0
    )
    found = _outputs(host.model, tests)
    rows.append(["W8A8, ONNX Runtime, LayerNorm in float", *_quality(found, wanted, truth), *[""] * 6])
    result = lowbit.quantize(model, data=calibration, target="litert", measure_seconds=0)
    artifact = _outputs(result.model, tests)
    rows.append(["lowbit, ONNX artifact", *_quality(artifact, wanted, truth), *[""] * 6])
    exported = lowbit.export(result.model, data=calibration[:1], samples=1)
    session = litert_session(exported.model)
    given, taken = session.interpreter.get_input_details()[0], session.interpreter.get_output_details()[0]
    codes = [[_encoded(next(iter(feed.values())), *given["quantization"])] for feed in tests]
    step = float(taken["quantization"][0])
    for kernels in ("xnnpack", "reference", "tflite-micro"):
        if kernels == "tflite-micro":
            raw = [outputs[0] for outputs in run_micro(exported.model, codes[:micro]).outputs]
        else:
            session = litert_session(exported.model, kernels=kernels)  # type: ignore[arg-type]
            raw = [session.run(sample)[0] for sample in codes]
        count = len(raw)
        found = np.concatenate([_decoded(each, *taken["quantization"]) for each in raw])
        same = np.mean([_same(mine, theirs) for mine, theirs in zip(found, artifact[:count], strict=True)])
        near = np.mean(np.abs(found - artifact[:count]) < 1.5 * step)
        rows.append(
            [
                f"lowbit, LiteRT, {kernels}" + (f", {count} digits" if count < _TEST else ""),
                *_quality(found, wanted[:count], truth[:count]),
                f"{same:.4f}",
                f"{near:.4f}",
                str(sum(exported.kernels.values())),
                str(exported.float_kernels),
                f"{len(exported.model):,}",
                f"{exported.arena:,}",
            ]
        )
    return rows


def _outputs(model: Any, feeds: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    import onnx_ir as ir

    session = open_session(ir.to_proto(model).SerializeToString(), optimized=False)
    return np.concatenate([session.run(feed)[0] for feed in feeds])


def _score(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(logits.argmax(axis=1) == labels))


def _quality(found: np.ndarray, wanted: np.ndarray, labels: np.ndarray) -> list[str]:
    noise = float(((found - wanted) ** 2).sum())
    return [f"{_score(found, labels):.3f}", f"{10 * np.log10(float((wanted**2).sum()) / noise):.1f}"]


def _same(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether a class wins in both: codes tie."""
    return bool(np.any((mine == mine.max()) & (theirs == theirs.max())))


def _encoded(real: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    return np.clip(np.rint(real / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)


def _decoded(codes: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    return (codes.astype(np.float32) - zero_point) * np.float32(scale)


if __name__ == "__main__":
    main()
