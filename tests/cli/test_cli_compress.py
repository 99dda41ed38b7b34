"""`lowbit compress`: a packed file from which the same model comes back, and no half of a recipe."""

from __future__ import annotations

import onnx
import pytest


def test_a_model_becomes_small_and_comes_back(folder, lowbit):
    learning = ("--epochs", "1", "--batch", "8")
    done = lowbit("compress", "net.onnx", "--data", "data.npz", "--prune", "0.7", *learning, "--onnx", "s.onnx")
    assert (done.status, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines() if "×" in line] == ["float", "prune", "quantize", "code"]
    assert 10 * (folder / "net.lbz").stat().st_size < (folder / "net.onnx").stat().st_size
    assert lowbit("unpack", "net.lbz", "-o", "back.onnx").status == 0
    assert (folder / "back.onnx").read_bytes() == (folder / "s.onnx").read_bytes()
    onnx.checker.check_model("back.onnx")


def test_a_recipe_says_all(folder, lowbit):
    (folder / "chain.yaml").write_text("steps:\n  - prune: {amount: 0.5, epochs: 0}\n  - code\n", encoding="utf-8")
    done = lowbit("compress", "net.onnx", "--data", "data.npz", "--recipe", "chain.yaml")
    assert (done.status, done.err) == (0, "")
    assert "quantize" not in done.out
    assert (folder / "net.lbz").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "chain.yaml", "--share", "8"], "--share does not go with --recipe"),
        (["--prune", "1.5"], "amount of prune is 1.5"),
        (["--weights", "int99"], "int99"),
        (["--recipe", "missing.yaml"], "missing.yaml"),
    ],
)
def test_wrong_wishes_leave_nothing(folder, lowbit, arguments, said):
    (folder / "chain.yaml").write_text("steps: [code]\n", encoding="utf-8")
    learning = () if "--recipe" in arguments else ("--epochs", "1")
    done = lowbit("compress", "net.onnx", "--data", "data.npz", *learning, *arguments)
    assert done.status == 2
    assert said in done.err
    assert not (folder / "net.lbz").exists()
