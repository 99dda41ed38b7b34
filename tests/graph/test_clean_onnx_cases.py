"""`clean` on ONNX's own node tests: every operator there is, with the numbers of ONNX Runtime before and after."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest

from lowbit.graph import clean, digest, load_model, serialize

# The function body of AffineGrid gives Range a tensor of one element where the specification wants a scalar. ONNX
# Runtime notices that only once the constant is folded.
INVALID = {"test_affine_grid_2d_expanded", "test_affine_grid_2d_align_corners_expanded"}


def run(model: bytes, feeds: dict[str, object]) -> list[object]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.slow
def test_clean_keeps_every_operator() -> None:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases overflow on purpose while they are made
        cases = [case for case in collect_testcases(None) if case.model is not None and case.data_sets]
    compared, different = 0, []
    for case in cases:
        model = load_model(case.model)
        before = digest(model)
        result = serialize(clean(model).model)
        assert digest(model) == before, case.name
        assert load_model(onnx.ModelProto.FromString(result)), case.name
        feeds = {value.name: array for value, array in zip(case.model.graph.input, case.data_sets[0][0], strict=False)}
        try:
            expected = run(case.model.SerializeToString(), feeds)
        except Exception:  # noqa: BLE001  (ONNX Runtime lacks the operator: nothing to compare with)
            continue
        if case.name in INVALID:
            continue
        compared += 1
        for a, b in zip(expected, run(result, feeds), strict=True):
            if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
                np.testing.assert_equal(b, a, err_msg=case.name)
                continue
            # A folded constant may differ in the last place of its own type, and the result in a few.
            unit = 8 * float(np.finfo(a.dtype).eps)
            if not np.allclose(b, a, rtol=unit, atol=unit, equal_nan=True):
                different.append(case.name)
    assert not different
    assert compared > 1400
