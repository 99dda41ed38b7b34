"""Files of PyTorch: exported programs, TorchScript, weights with their class, and files that would run code."""

from __future__ import annotations

import json
import struct
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from lowbit.cli import main
from lowbit.exceptions import ModelError
from lowbit.graph import load_model, serialize
from lowbit.importing import import_model
from lowbit.runtime import open_session

if TYPE_CHECKING:
    from pathlib import Path

X = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, width, 3)
        self.last = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)).amax((2, 3)))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(1)
    return Network().eval()


def agrees(model: Any, network: Network) -> None:
    session = open_session(serialize(model), threads=1)
    with torch.no_grad():
        np.testing.assert_allclose(session.run({session.inputs[0]: X.numpy()})[0], network(X).numpy(), atol=1e-5)


def safetensors(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """Write the format as its specification has it."""
    header, data = {}, b""
    for name, value in state.items():
        raw = value.contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_exported_program(network: Network, tmp_path: Path) -> None:
    program = torch.export.export(network, (X,), dynamic_shapes={"x": {0: torch.export.Dim.AUTO}})
    torch.export.save(program, tmp_path / "network.pt2")
    agrees(import_model(tmp_path / "network.pt2").model, network)


def test_torchscript_keeps_control_flow(tmp_path: Path) -> None:
    class Deciding(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if float(x.sum()) > 0:
                return x + 1
            return -x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Deciding()).save(str(tmp_path / "script.pt"))
    imported = import_model(tmp_path / "script.pt", torch.ones(2, 3))
    session = open_session(serialize(imported.model), threads=1)
    for x in (np.ones((4, 3), np.float32), -np.ones((4, 3), np.float32)):
        np.testing.assert_array_equal(session.run({session.inputs[0]: x})[0], x + 1 if x.sum() > 0 else -x)


def test_weights_need_their_class(network: Network, tmp_path: Path) -> None:
    state = network.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "parallel.pth")
    paths = [safetensors(tmp_path / "w.safetensors", state), tmp_path / "plain.pt", tmp_path / "parallel.pth"]
    for path in paths:
        agrees(import_model(path, X, architecture=Network).model, network)
        with pytest.raises(ModelError, match="without the network"):
            import_model(path, X)
        with pytest.raises(ModelError, match="do not fit Network"):
            import_model(path, X, architecture=lambda: Network(5))
    with pytest.raises(ModelError, match=r"missing: .*; unknown: first"):
        import_model(paths[0], X, architecture=lambda: nn.Sequential(nn.Linear(2, 2)))


def test_our_reading_of_safetensors_is_the_reference(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.torch", reason="the reference implementation is not installed")
    from lowbit.importing.safetensors import read_safetensors

    state = {
        "a": torch.randn(3, 4),
        "b": torch.randn(2).to(torch.bfloat16),
        "c": torch.arange(5),
        "d": torch.zeros(0, 3),
        "e": torch.tensor(True),
    }
    reference.save_file(state, tmp_path / "x.safetensors")
    found = read_safetensors(tmp_path / "x.safetensors")
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_a_broken_safetensors_file_is_refused(network: Network, tmp_path: Path) -> None:
    whole = safetensors(tmp_path / "w.safetensors", network.state_dict()).read_bytes()
    for broken in (b"", whole[:4], whole[:40], whole[:-4], b"\xff" * 64, whole[:8] + b"[" + whole[9:]):
        (tmp_path / "broken.safetensors").write_bytes(broken)
        with pytest.raises(ModelError):
            import_model(tmp_path / "broken.safetensors", X, architecture=Network)


def test_code_in_a_file_does_not_run(network: Network, tmp_path: Path) -> None:
    torch.save(network, tmp_path / "module.pt")
    with pytest.raises(ModelError, match=r"would run code.*state_dict"):
        import_model(tmp_path / "module.pt", X, architecture=Network)
    for name in ("cut.pt", "cut.pt2"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 cut off")
        with pytest.raises(ModelError):
            import_model(tmp_path / name, X, architecture=Network)
    with pytest.raises(ModelError, match="does not exist"):
        import_model(tmp_path / "none.pt", X)


def test_the_command_imports_weights(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_network.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_network", raising=False)
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    safetensors(tmp_path / "w.safetensors", layers.state_dict())
    arguments = [
        "import",
        "w.safetensors",
        "--architecture",
        "my_network:build",
        "--inputs",
        "1x2x6x6",
        "-o",
        "out.onnx",
    ]
    assert main(arguments) == 0
    assert "[batch, 2, 6, 6]" in capsys.readouterr().out
    assert [node.op_type for node in load_model(tmp_path / "out.onnx").graph] == ["Conv", "Relu"]
    assert main([*arguments[:3], "my_network:nothing", *arguments[4:]]) == 2
    assert "is not there" in capsys.readouterr().err
    assert main([*arguments[:5], "axb", *arguments[6:]]) == 2
    assert "1x3x224x224" in capsys.readouterr().err
