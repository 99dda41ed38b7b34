"""Trains in one of two processes and writes what it ended with; started by `test_ddp.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import lowbit


def main(model: str, data: str, rendezvous: str, rank: int, out: str) -> None:
    """Train in process `rank` of two."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    arrays = np.load(data)
    module = lowbit.trainable(model, data={"x": arrays["x"]}, weights="int4", activations="uint4")
    wrapped = torch.nn.parallel.DistributedDataParallel(module)
    optimizer = torch.optim.AdamW(module.parameter_groups(1e-2))
    x, y = torch.from_numpy(arrays["x"])[rank::2], torch.from_numpy(arrays["y"])[rank::2]
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.nn.functional.nll_loss(torch.log(wrapped(x) + 1e-3), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    torch.save({"state": module.state_dict(), "losses": losses}, Path(out) / f"{rank}.pt")
    if rank == 0:
        lowbit.finalize(wrapped, measure_seconds=0).save(Path(out) / "artifact.onnx")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
