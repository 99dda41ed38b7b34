"""Number formats: frozen values that own bits, range, storage type, encoding and packing.

This is the ground floor of lowbit: it imports numpy, ml_dtypes and onnx_ir, and nothing else of lowbit but the errors.

Four verbs, kept apart: calibrate (in `lowbit.statistics`), `choose_parameters`, `quantize`, `dequantize`.

    >>> import numpy as np
    >>> from lowbit.formats import choose_parameters, parse_format, quantize
    >>> fmt = parse_format("uint8")
    >>> parameters = choose_parameters(np.float32(-1.0), np.float32(1.55), fmt)
    >>> quantize(np.array([-1.0, 0.0, 9.0], dtype=np.float32), parameters, fmt)
    array([  0, 100, 255], dtype=uint8)
"""

from __future__ import annotations

from lowbit.formats.codebook import levels_of
from lowbit.formats.codec import dequantize, fake_quantize, quantize
from lowbit.formats.element import ELEMENTS, Element, element, element_of_storage
from lowbit.formats.format import Format, parse_format
from lowbit.formats.granularity import Granularity, PerBlock, PerChannel, PerTensor
from lowbit.formats.initializer import from_ir_tensor, to_ir_tensor
from lowbit.formats.opset import minimum_opset
from lowbit.formats.packing import pack, packed_bytes, unpack
from lowbit.formats.parameters import Parameters, choose_parameters

__all__ = [
    "ELEMENTS",
    "Element",
    "Format",
    "Granularity",
    "Parameters",
    "PerBlock",
    "PerChannel",
    "PerTensor",
    "choose_parameters",
    "dequantize",
    "element",
    "element_of_storage",
    "fake_quantize",
    "from_ir_tensor",
    "levels_of",
    "minimum_opset",
    "pack",
    "packed_bytes",
    "parse_format",
    "quantize",
    "to_ir_tensor",
    "unpack",
]
