"""Batches of what a block reads: joined, and half of them mixed, with targets that float gives for the mixtures."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import torch

from lowbit.methods.block_samples import Batches, Stream, open_stream, samples_join
from lowbit.methods.learned_graph import block_module
from lowbit.reconstruction.partition import Block
from lowbit.reconstruction.store import TensorStore

MODEL = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 6] x) => (float[1, 6] y) { y = Relu(x) }"""


def _drawn(*, mixed: bool, seed: int = 0) -> tuple[Stream, Batches, torch.Tensor, torch.Tensor]:
    model = ir.from_proto(onnx.parser.parse_model(MODEL))
    module = block_module(model, ("x",), ("y",))
    rng = np.random.default_rng(3)
    feeds = [{"x": rng.standard_normal((1, 6)).astype(np.float32)} for _ in range(20)]
    stream = open_stream(TensorStore(), TensorStore(), feeds)
    block = Block(nodes=tuple(model.graph), inputs=("x",), outputs=("y",))
    wanted = {sample: module(x=stream.exact.get("x", sample)) for sample in range(20)}
    assert samples_join(module, block, stream, wanted)
    batches = Batches(module, block, stream, wanted, 8, together=True, mixing=module if mixed else None)
    (inputs,), (targets,) = batches(torch.Generator().manual_seed(seed))
    return stream, batches, inputs["x"], targets[0]


def test_a_fifth_is_held_out_and_never_drawn() -> None:
    stream, _, x, _ = _drawn(mixed=False)
    assert list(stream.testing) == [0, 1, 2, 3]
    held = [stream.exact.get("x", sample) for sample in stream.testing]
    assert not any(torch.equal(row[None], one) for row in x for one in held)


def test_half_of_a_batch_is_mixed_and_targets_are_those_of_the_mixtures() -> None:
    stream, _, plain, _ = _drawn(mixed=False)
    _, _, x, y = _drawn(mixed=True)
    assert torch.equal(y, torch.relu(x))
    assert torch.equal(x[::2], plain[::2])
    samples = torch.cat([stream.exact.get("x", sample) for sample in stream.training])
    changed = 0
    for row, own in zip(x[1::2], plain[1::2], strict=True):
        # A mixture lies between its own sample and one other of the batch.
        residues = [_off_the_line(row, own, other) for other in samples if not torch.equal(other, own)]
        assert min(residues) < 1e-5
        changed += not torch.equal(row, own)
    assert changed >= 2


def test_the_same_seed_draws_the_same() -> None:
    assert torch.equal(_drawn(mixed=True)[2], _drawn(mixed=True)[2])
    assert not torch.equal(_drawn(mixed=True)[2], _drawn(mixed=True, seed=1)[2])


def _off_the_line(row: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> float:
    direction = end - start
    share = float(((row - start) @ direction / (direction @ direction)).clamp(0, 1))
    return float((row - start - share * direction).abs().max())
