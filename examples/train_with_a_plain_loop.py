"""Quantization-aware training with a loop of your own, in one process or in several.

    python examples/train_with_a_plain_loop.py model.onnx train.npz -o model.int4.onnx
    torchrun --nproc-per-node 2 examples/train_with_a_plain_loop.py model.onnx train.npz -o model.int4.onnx

`train.npz` holds one array per input of the model and one called `labels`, with whole numbers.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import lowbit


def main() -> None:
    """Train, and write the artifact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--activations", default="uint4")
    options = parser.parse_args()
    several = "WORLD_SIZE" in os.environ
    if several:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)

    arrays = dict(np.load(options.data))
    labels = torch.from_numpy(arrays.pop("labels")).long()
    inputs = [torch.from_numpy(array) for array in arrays.values()]
    dataset = TensorDataset(*inputs, labels)
    sampler = DistributedSampler(dataset) if several else None
    loader = DataLoader(dataset, batch_size=options.batch, shuffle=sampler is None, sampler=sampler)

    # Every process calibrates on the same samples, so that all of them start from the same ranges.
    calibration = {name: array[:200] for name, array in arrays.items()}
    model = lowbit.trainable(options.model, data=calibration, weights=options.weights, activations=options.activations)
    wrapped = DistributedDataParallel(model) if several else model
    optimizer = torch.optim.AdamW(model.parameter_groups(5e-3, weight_decay=1e-4, relative=True))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(loader))

    for epoch in range(options.epochs):
        if sampler is not None:
            sampler.set_epoch(epoch)
        total = 0.0
        for *batch, target in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(wrapped(*batch), target)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}: loss {total / len(loader):.4f}")

    if not several or torch.distributed.get_rank() == 0:
        result = lowbit.finalize(wrapped)
        result.save(options.output)
        print(result)
    if several:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
