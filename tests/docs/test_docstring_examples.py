"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import lowbit


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = ["lowbit", *(info.name for info in pkgutil.walk_packages(lowbit.__path__, "lowbit."))]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return [test for module in modules for test in finder.find(module) if test.examples]


EXAMPLES = examples()


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_example(test: doctest.DocTest) -> None:
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert result.failed == 0, "".join(said)
