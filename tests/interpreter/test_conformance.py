"""ONNX's backend node tests: every operator that occurs in neural networks; each exclusion has its reason.

The judges are ONNX's own: models, inputs, outputs and tolerances come with the package.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.case.node import collect_testcases

from lowbit.interpreter import supported_operators, to_torch
from lowbit.interpreter.dtypes import from_array

if TYPE_CHECKING:
    from onnx.backend.test.case.test_case import TestCase

_STRINGS = "PyTorch has no tensors of strings"
_OPTIMIZER = "an optimizer's step, not a part of a network; PyTorch's optimizers train the module"
_DRAWN = "compared with what numpy's generator draws; test_generation.py holds it to its distribution"

EXCLUDED_OPERATORS = {
    "LabelEncoder": f"maps strings to numbers and back: {_STRINGS}",
    "RegexFullMatch": _STRINGS,
    "StringConcat": _STRINGS,
    "StringNormalizer": _STRINGS,
    "StringSplit": _STRINGS,
    "ImageDecoder": "decodes files (JPEG, PNG): preprocessing, which ONNX Runtime does not have either",
    "Adagrad": _OPTIMIZER,
    "Adam": _OPTIMIZER,
    "Momentum": _OPTIMIZER,
}
EXCLUDED_CASES = {
    "test_equal_string": _STRINGS,
    "test_equal_string_broadcast": _STRINGS,
    "test_bernoulli": _DRAWN,
    "test_bernoulli_expanded": _DRAWN,
    "test_bernoulli_double": _DRAWN,
    "test_bernoulli_double_expanded": _DRAWN,
    "test_bernoulli_seed": _DRAWN,
    "test_bernoulli_seed_expanded": _DRAWN,
    "test_training_dropout": _DRAWN,
    "test_training_dropout_default": _DRAWN,
    "test_training_dropout_default_mask": _DRAWN,
    "test_training_dropout_mask": _DRAWN,
}
ISLANDS = {
    "ArrayFeatureExtractor": "classical machine learning",
    "Binarizer": "classical machine learning",
    "TreeEnsemble": "classical machine learning: no gradient",
    "TfIdfVectorizer": "counts n-grams ahead of a network: no gradient",
}


@cache
def cases() -> dict[str, TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns while ONNX computes what happens at the borders
        return {case.name: case for case in collect_testcases(None)}


def operators(case: TestCase) -> set[str]:
    return {node.op_type for node in case.model.graph.node}


def reason(case: TestCase) -> str | None:
    found = (EXCLUDED_OPERATORS[name] for name in operators(case) if name in EXCLUDED_OPERATORS)
    return EXCLUDED_CASES.get(case.name) or next(found, None)


def given(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return from_array(onnx.numpy_helper.to_array(value))
    if isinstance(value, onnx.SequenceProto):
        return [given(item) for item in onnx.numpy_helper.to_list(value)]
    if isinstance(value, onnx.OptionalProto):
        return given(onnx.numpy_helper.to_optional(value))
    if isinstance(value, list):
        return [given(item) for item in value]
    return None if value is None else from_array(np.asarray(value))


def assert_same(found: Any, expected: Any, case: TestCase) -> None:
    if isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, case)
        return
    if expected is None:
        assert found is None
        return
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if not expected.is_floating_point():
        assert torch.equal(found, expected)
        return
    one, other = (value.to(torch.float64).numpy() for value in (found, expected))
    # The order of a sum decides on the last bits of its largest terms: two steps of the type, where it is largest.
    largest = np.abs(other, where=np.isfinite(other), out=np.zeros_like(other)).max(initial=0)
    step = torch.finfo(expected.dtype).eps * float(largest) if expected.element_size() > 1 else 0.0
    np.testing.assert_allclose(one, other, rtol=case.rtol, atol=max(case.atol, 2 * step))


@pytest.mark.parametrize("name", [name for name, case in cases().items() if reason(case) is None])
def test_case(name: str) -> None:
    case = cases()[name]
    module = to_torch(case.model).eval()
    for island in module.islands:
        assert any(f"({operator})" in island for operator in ISLANDS), f"{island} has no mapping"
    for inputs, outputs in case.data_sets:
        found = module(*(given(value) for value in inputs))
        assert len(found) == len(outputs)
        for one, other in zip(found, outputs, strict=True):
            assert_same(one, given(other), case)


def test_most_cases_are_held_to() -> None:
    excluded = Counter(reason(case) for case in cases().values())
    assert excluded.pop(None) >= 1_800
    assert sum(excluded.values()) <= 60


def test_every_exclusion_is_needed() -> None:
    present = {name for case in cases().values() for name in operators(case)}
    mapped = {name.rpartition("::")[2] for name in supported_operators()}
    assert not (EXCLUDED_OPERATORS.keys() | ISLANDS.keys()) & mapped
    assert (EXCLUDED_OPERATORS.keys() | ISLANDS.keys()) <= present
    assert EXCLUDED_CASES.keys() <= cases().keys()


def test_every_operator_of_the_standard_has_a_mapping_a_definition_or_a_reason() -> None:
    mapped = set(supported_operators())
    defined = EXCLUDED_OPERATORS.keys() | ISLANDS.keys()
    unknown = [
        schema.name
        for schema in onnx.defs.get_all_schemas()
        if schema.domain == ""
        and not schema.deprecated
        and not (schema.name in mapped or schema.name in defined)
        and not (schema.has_function or schema.has_context_dependent_function)
    ]
    assert unknown == []
