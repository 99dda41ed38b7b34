"""How every tool quantizes to 8 and to 4 bits, and what no tool can do, in the words of its makers or of its error."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.peers.launch import PEERS, Peer

__all__ = ["ADAROUND_ITERATIONS", "FEW_BIT_PEERS", "UNSUPPORTED", "with_iterations"]

ADAROUND_ITERATIONS = 300
"""Iterations of AIMET's AdaRound for every layer; its makers recommend 10,000, and 15,000 below 8 bits."""

_AIMET = Peer(script="aimet_ptq", environment="aimet")
_ONNXSIM = Peer(script="onnxsim_ptq", environment="onnxsim")
_ORT_STATIC = PEERS["ort-u8s8"]
_NBITS = Peer(script="onnxruntime_nbits")
_ADAROUND = ("--adaround", str(ADAROUND_ITERATIONS))


def _aimet(*options: str) -> dict[str, Peer]:
    formats = {
        "W8A8": (),
        "W4A8": ("--weights", "int4"),
        "W4A16": ("--weights", "int4", "--activations", "none"),
    }
    return {bits: replace(_AIMET, options=(*first, *options)) for bits, first in formats.items()}


FEW_BIT_PEERS: dict[str, dict[str, Peer]] = {
    "ort-static": {
        "W8A8": _ORT_STATIC,
        "W4A8": replace(_ORT_STATIC, options=(*_ORT_STATIC.options, "--weights", "int4")),
    },
    "ort-static 7-bit": {"W8A8": PEERS["ort-u8s8-reduced"]},
    "ort-nbits": {"W4A16": _NBITS},
    "ort-nbits hqq": {"W4A16": replace(_NBITS, options=("--algorithm", "hqq"))},
    "nncf": {
        "W8A8": Peer(script="nncf_ptq"),
        "W4A8": Peer(script="nncf_ptq", options=("--weight-bits", "4")),
        "W4A16": Peer(script="nncf_weights"),
    },
    "nncf openvino": {
        "W8A8": Peer(script="nncf_ptq", suffix=".xml"),
        "W4A8": Peer(script="nncf_ptq", suffix=".xml", options=("--weight-bits", "4")),
        "W4A16": Peer(script="nncf_weights", suffix=".xml"),
    },
    "nncf openvino gptq": {"W4A16": Peer(script="nncf_weights", suffix=".xml", options=("--gptq",))},
    "aimet": _aimet(),
    "aimet tf-enhanced": _aimet("--scheme", "tf_enhanced"),
    "aimet seqmse": _aimet("--sequential-mse"),
    "aimet adaround": _aimet(*_ADAROUND),
    "onnxsim": {"W8A8": _ONNXSIM, "W4A16": replace(_ONNXSIM, options=("--method", "nearest"))},
    "onnxsim mse": {"W8A8": replace(_ONNXSIM, options=("--calibrate", "mse"))},
    "onnxsim gptq": {"W4A16": replace(_ONNXSIM, options=("--method", "gptq"))},
    "onnxsim adaround": {"W4A16": replace(_ONNXSIM, options=("--method", "adaround"))},
    "quark": {"W8A8": Peer(script="quark_ptq", environment="quark")},
    "quark adaround": {
        "W8A8": Peer(script="quark_ptq", environment="quark", options=("--config", "U8S8_AAWS_ADAROUND"))
    },
}
"""Name of the tool and its method, then the formats, then how."""

UNSUPPORTED: dict[str, dict[str, str]] = {
    "onnxsim": {"W4A8": "its 4-bit weights have float activations, its static quantization has 8-bit weights"},
    "quark": {
        "W4A8": "its ONNX quantizer has integer weights of 8 bits and more",
        "W4A16": "its 4-bit weights are ONNX Runtime's MatMulNBits",
    },
}
"""What a tool offers no call for, and why."""


def with_iterations(peer: Peer, iterations: int) -> Peer:
    """Return the peer with another number of AdaRound iterations, if it uses AIMET's AdaRound."""
    if "--adaround" not in peer.options:
        return peer
    place = peer.options.index("--adaround") + 1
    return replace(peer, options=(*peer.options[:place], str(iterations), *peer.options[place + 1 :]))
