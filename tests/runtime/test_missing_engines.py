"""Engines that are extras: without them the message is the command that installs them."""

from __future__ import annotations

import sys

import pytest

from lowbit.exceptions import EngineError
from lowbit.runtime import litert_micro
from lowbit.runtime.engines import open_in, version_of
from lowbit.runtime.litert_session import litert_session


def test_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for call in (lambda: open_in("openvino", b""), lambda: version_of("openvino")):
        with pytest.raises(EngineError, match=r'OpenVINO is not installed.*pip install "lowbit\[openvino\]"'):
            call()


def test_litert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(EngineError, match=r'LiteRT is not installed.*pip install "lowbit\[litert\]"'):
        litert_session(b"")
    monkeypatch.setattr(litert_micro, "micro_is_installed", lambda: False)
    with pytest.raises(EngineError, match=r'tflite-micro is not installed.*pip install "lowbit\[litert\]"'):
        litert_micro.run_micro(b"", [])
