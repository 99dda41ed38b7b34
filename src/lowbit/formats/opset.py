"""Which opset can say a format, read from the schemas of the installed onnx."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from lowbit.exceptions import FormatError
from lowbit.formats.granularity import PerBlock, PerChannel

if TYPE_CHECKING:
    from lowbit.formats.format import Format

__all__ = ["minimum_opset"]


def minimum_opset(fmt: Format) -> int:
    """Return the lowest `ai.onnx` opset in which the graph can express a format.

    Integers, `float8` and `float4` need QuantizeLinear and DequantizeLinear; `float16` and `bfloat16` need Cast.
    Codebooks need GatherElements; codes of 4 bits their type, and codes of 2 or 3 bits BitwiseAnd, with which graphs
    take them out of words.

    Args:
        fmt: The format.

    Raises:
        FormatError: No opset of the installed onnx can express it.
    """
    if fmt.element.kind == "codebook":
        storage = fmt.element.storage.name
        unpacking = ("BitwiseAnd", "UINT64") if fmt.element.bits in _IN_WORDS else ("Cast", storage)
        return max(_first_version("GatherElements", "FLOAT", ""), _first_version(*unpacking, ""))
    attribute = ""
    match fmt.granularity:
        case PerChannel():
            attribute = "axis"
        case PerBlock():
            attribute = "block_size"
    plain_cast = fmt.element.kind == "float" and fmt.element.bits == 16
    if plain_cast:
        return _first_version("Cast", fmt.element.storage.name, "")
    operators = ("QuantizeLinear", "DequantizeLinear")
    return max(_first_version(operator, fmt.element.storage.name, attribute) for operator in operators)


# Bits of the codes that graphs keep in words: ONNX types hold them only loosely, or from opset 25 on.
_IN_WORDS = (2, 3)


@functools.cache
def _first_version(operator: str, storage: str, attribute: str) -> int:
    import onnx.defs

    wanted = f"tensor({storage.lower()})"
    history = [each for each in onnx.defs.get_all_schemas_with_history() if (each.domain, each.name) == ("", operator)]
    versions = []
    for schema in history:
        # The codes are what DequantizeLinear reads and what the others write.
        codes = (schema.inputs if operator == "DequantizeLinear" else schema.outputs)[0]
        constraints = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
        if wanted in constraints[codes.type_str] and (not attribute or attribute in schema.attributes):
            versions.append(int(schema.since_version))
    if not versions:
        raise FormatError(
            f"No opset of the installed onnx has {operator} for {storage}",
            remedy="Install a newer onnx, or choose another format",
        )
    return min(versions)
