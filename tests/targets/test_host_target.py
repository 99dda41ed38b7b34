"""Which target a machine is, from what it says of its processor."""

from __future__ import annotations

import platform

import pytest

from lowbit.exceptions import TargetError
from lowbit.targets import TARGETS, find_target, host_target

FLAGS = "processor : 0\nvendor_id : AuthenticAMD\nflags : fpu sse2 ssse3 avx avx2 fma {}\n"


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "expected"),
    [
        (FLAGS.format(""), "x86_64", "onnxruntime-x86-avx2"),
        (FLAGS.format("avx512f avx512bw"), "x86_64", "onnxruntime-x86-avx2"),
        (FLAGS.format("avx512f avx512_vnni"), "x86_64", "onnxruntime-x86-vnni"),
        (FLAGS.format("avx_vnni"), "x86_64", "onnxruntime-x86-vnni"),
        (FLAGS.format("avx_vnni"), "AMD64", "onnxruntime-x86-vnni"),
        # Not Linux: no flags to read. The saturating target's files are exact everywhere.
        ("", "x86_64", "onnxruntime-x86-avx2"),
        # A flag is a word: neither part of another word nor of another line.
        (FLAGS.format("avx_vnni_int8"), "x86_64", "onnxruntime-x86-avx2"),
        ("model name : made-up avx_vnni\n" + FLAGS.format(""), "x86_64", "onnxruntime-x86-avx2"),
        ("Features : fp asimd asimddp i8mm\n", "aarch64", "onnxruntime-arm64-i8mm"),
        ("Features : fp asimd asimddp\n", "aarch64", "onnxruntime-arm64-dotprod"),
        ("Features : fp asimd\n", "aarch64", "onnxruntime-arm64"),
        ("", "arm64", "onnxruntime-arm64"),
    ],
)
def test_machines(cpuinfo: str, machine: str, expected: str) -> None:
    assert host_target(cpuinfo, machine).name == expected


@pytest.mark.parametrize("machine", ["riscv64", "ppc64le", "s390x"])
def test_other_machines_are_refused_with_the_targets_to_name(machine: str) -> None:
    with pytest.raises(TargetError, match=machine) as caught:
        host_target("", machine)
    assert all(name in str(caught.value) for name in TARGETS)


def test_host_is_one_of_the_targets() -> None:
    if platform.machine().lower() not in {"x86_64", "amd64", "arm64", "aarch64"}:
        pytest.skip(f"{platform.machine()} has no target")
    assert find_target("host") is host_target()
    assert find_target("host").name in TARGETS


def test_targets_are_found_by_name_and_by_themselves() -> None:
    for name, target in TARGETS.items():
        assert find_target(name) is target
        assert find_target(target) is target
        assert target.name == name
    with pytest.raises(TargetError, match="onnxruntime-x86-avx2"):
        find_target("onnxruntime-x86")


def test_the_saturating_target_is_the_one_without_vnni() -> None:
    saturating = {name for name, target in TARGETS.items() if target.saturates}
    assert saturating == {"onnxruntime-x86-avx2", "openvino-x86-avx2"}
