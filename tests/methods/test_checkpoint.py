"""Calibration continues where it was interrupted, and refuses a state that is not its own."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from lowbit.exceptions import OutputError, RecipeError
from lowbit.methods.calibrate import Watch, calibrate
from lowbit.methods.checkpoint import Checkpoint

MODEL = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3, 4, 4] x) => (float[1, 3, 4, 4] y) {
    h = Relu(x)
    y = Sigmoid(h)
}"""
WATCH = Watch(tensors=("x", "h", "y"), means={"h": 1}, moving_average=True)


def _model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(MODEL))


def _feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": (rng.standard_normal((1, 3, 4, 4)) * (i + 1)).astype(np.float32)} for i in range(12)]


def _interrupted(after: int):
    for index, feed in enumerate(_feeds()):
        if index == after:
            raise KeyboardInterrupt
        yield feed


@pytest.mark.parametrize("after", [0, 1, 7, 11])
def test_continuing_gives_what_one_pass_gives(tmp_path, after):
    whole = calibrate(_model(), _feeds(), WATCH)
    checkpoint = Checkpoint(tmp_path / "state.npz", "same")
    with pytest.raises(KeyboardInterrupt):
        calibrate(_model(), _interrupted(after), WATCH, checkpoint=checkpoint)
    stored = checkpoint.load()
    assert stored is not None
    assert stored.samples == after
    continued = calibrate(_model(), _feeds(), WATCH, checkpoint=Checkpoint(tmp_path / "state.npz", "same"))
    assert continued.samples == whole.samples == 12
    for name, histogram in whole.histograms.items():
        assert np.array_equal(histogram.counts, continued.histograms[name].counts)
        assert (histogram.low, histogram.high) == (continued.histograms[name].low, continued.histograms[name].high)
    assert whole.averages == continued.averages
    assert np.array_equal(whole.means["h"], continued.means["h"])


def test_samples_of_the_checkpoint_are_not_run_again(tmp_path):
    path = tmp_path / "state.npz"
    calibrate(_model(), _feeds()[:5], WATCH, checkpoint=Checkpoint(path, "same"))
    poisoned = [{"x": np.full((1, 3, 4, 4), np.nan, dtype=np.float32)}] * 5 + _feeds()[5:]
    continued = calibrate(_model(), poisoned, WATCH, checkpoint=Checkpoint(path, "same"))
    assert continued.samples == 12
    assert np.isfinite(continued.histograms["h"].high)


def test_another_calibrations_state_is_refused(tmp_path):
    path = tmp_path / "state.npz"
    calibrate(_model(), _feeds(), WATCH, checkpoint=Checkpoint(path, "one"))
    with pytest.raises(RecipeError, match="another calibration"):
        calibrate(_model(), _feeds(), WATCH, checkpoint=Checkpoint(path, "two"))


def test_a_damaged_state_is_refused(tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(RecipeError, match="cannot be read"):
        Checkpoint(path, "one").load()


def test_an_unwritable_state_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        calibrate(_model(), _feeds(), WATCH, checkpoint=Checkpoint(tmp_path / "no" / "state.npz", "one"))
