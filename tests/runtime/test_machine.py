"""What a processor says of itself, and whether costs from one machine hold on another."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path

import pytest

from lowbit.exceptions import EngineError
from lowbit.runtime.machine import Machine, instruction_sets, this_machine
from lowbit.runtime.session import engine_version

# As the systems write it, shortened; tabs and all.
X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu vme sse sse2 ssse3 fma cx16 sse4_1 sse4_2 avx f16c avx2 avx512f avx512dq avx512bw avx_vnni \
avx512_bf16 avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8
bugs\t\t: spectre_v1 spectre_v2

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu
"""
AVX2_ONLY = "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t\t: fpu sse4_1 avx avx2 fma f16c\n"
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""
RASPBERRY = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU part\t: 0xd08

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (X86, "sse4_1 avx avx2 fma f16c avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 amx_int8"),
        (AVX2_ONLY, "sse4_1 avx avx2 fma f16c"),
        (ARM, "asimd asimddp i8mm bf16 sve"),
        (RASPBERRY, "asimd"),
        ("", ""),
        ("processor : 0\nflags\nmodel name without a colon\n", ""),
        ("flags : avx2x xavx2 AVX2", ""),
    ],
    ids=["vnni and amx", "avx2", "arm64", "raspberry pi", "empty", "no values", "similar words"],
)
def test_instruction_sets_are_read_from_what_the_kernel_says(cpuinfo: str, expected: str) -> None:
    assert instruction_sets(cpuinfo) == tuple(expected.split())


def test_the_order_of_flags_does_not_matter() -> None:
    reversed_flags = "flags : " + " ".join(reversed(["sse4_1", "avx", "avx2", "fma", "f16c"]))
    assert instruction_sets(reversed_flags) == instruction_sets(AVX2_ONLY)


@pytest.mark.parametrize(
    ("cpuinfo", "processor"),
    [(X86, "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"), (RASPBERRY, "Raspberry Pi 4 Model B Rev 1.4")],
    ids=["x86", "raspberry pi"],
)
def test_a_processor_goes_by_the_name_that_the_kernel_gives(
    cpuinfo: str, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    machine = this_machine(threads=3)
    assert machine.processor == processor
    assert machine.instruction_sets == instruction_sets(cpuinfo)
    assert machine.threads == 3


def test_without_cpuinfo_the_platform_names_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    machine = this_machine()
    assert (machine.processor, machine.instruction_sets) == ("arm64", ())


def test_this_machine_is_the_same_every_time() -> None:
    assert this_machine() == this_machine()
    assert this_machine().engine == engine_version()
    assert this_machine(threads=2) != this_machine(threads=1)
    with pytest.raises(EngineError, match="tensorrt"):
        this_machine(engine="tensorrt")


HERE = Machine(engine="onnxruntime 1.30.0", processor="Xeon", instruction_sets=("avx2", "avx512_vnni"), threads=1)


def test_the_same_machine_has_no_differences() -> None:
    assert HERE.differences(dataclasses.replace(HERE)) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": "onnxruntime 1.31.0"}, "engine: onnxruntime 1.31.0 there, onnxruntime 1.30.0 here"),
        ({"processor": "EPYC"}, "processor: EPYC there, Xeon here"),
        ({"instruction_sets": ("avx2",)}, "instruction sets: avx2 there, avx2 avx512_vnni here"),
        ({"threads": 4}, "threads: 4 there, 1 here"),
    ],
    ids=["engine", "processor", "instruction sets", "threads"],
)
def test_each_difference_is_told_in_words(change: dict[str, object], said: str) -> None:
    there = dataclasses.replace(HERE, **change)
    assert there.differences(HERE) == (said,)
    assert len(HERE.differences(there)) == 1


def test_all_differences_are_told() -> None:
    other = Machine(engine="openvino 2025.0", processor="EPYC", instruction_sets=(), threads=2)
    assert [said.split(":")[0] for said in other.differences(HERE)] == [
        "engine",
        "processor",
        "instruction sets",
        "threads",
    ]


def test_a_machine_survives_json() -> None:
    data = json.loads(json.dumps(HERE.to_dict()))
    assert Machine(**{**data, "instruction_sets": tuple(data["instruction_sets"])}) == HERE
