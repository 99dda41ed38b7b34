"""The `.lbz` file: any ONNX model, bit for bit, in as few bytes as its numbers allow; `docs/lbz.md` specifies it.

This room knows bytes, arrays and as much of protobuf as it takes to find the numbers in a model. It imports only
`exceptions`; `numba` compiles its loops.
"""

from lowbit.container.archive import Part, Unpacked, pack, unpack

__all__ = ["Part", "Unpacked", "pack", "unpack"]
