"""Two processes train one model with DistributedDataParallel: they stay the same, and the artifact is theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import lowbit
from lowbit.runtime.session import open_session

WORKER = Path(__file__).parent / "ddp_worker.py"


@pytest.mark.slow
def test_two_processes(net: onnx.ModelProto, data: dict[str, Any], tmp_path: Path) -> None:
    onnx.save(net, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", **data)
    arguments = [str(tmp_path / name) for name in ("net.onnx", "data.npz", "rendezvous")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), *arguments, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [worker.wait(timeout=180) for worker in workers] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["losses"][-1] < first["losses"][0]
    assert first["losses"] != second["losses"]
    for name, one in first["state"].items():
        assert torch.equal(one, second["state"][name]), name
    module = lowbit.trainable(net, data={"x": data["x"]}, weights="int4", activations="uint4").eval()
    module.load_state_dict(first["state"])
    mine = module(torch.from_numpy(data["x"])).detach().numpy()
    theirs = open_session(tmp_path / "artifact.onnx", threads=1).run({"x": data["x"]})[0]
    assert (mine.argmax(1) == theirs.argmax(1)).mean() > 0.95
