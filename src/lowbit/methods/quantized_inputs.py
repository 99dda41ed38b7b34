"""Weights rounded for the inputs that coded layers really give, so that each makes up for errors of those before it.

Layer by layer, from the first to the last: what a layer reads in float and what the layers before it give in codes are
measured together, the weight is rounded towards what gives the float outputs from the latter, and its bias takes up
the mean that is left. Where the error on held-out samples is not less than before, the layer keeps what it had.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lowbit.methods.rerounding import better_codes, fits, grids_of, keeps_values, limits_of, share_text
from lowbit.methods.second_moments import input_rows
from lowbit.methods.weights import EncodedWeight, kernel_matrix, plain_codes, rerounded
from lowbit.plan.packed import pack_floats, pack_steps, unpack_floats
from lowbit.rounding.asymmetric import (
    InputPairs,
    asymmetric_errors,
    asymmetric_target,
    mean_error,
    pairs_init,
    pairs_merge,
    pairs_update,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.methods.coded_walk import Layer
    from lowbit.methods.rerounding import Kind
    from lowbit.plan.plan import Plan, SitePlan
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["rounded_for_quantized_inputs"]

_ROWS = 128
_EVERY = 4


def rounded_for_quantized_inputs(
    model: ir.Model,
    plan: Plan,
    target: Target,
    feeds: Iterable[Feed],
    *,
    kind: Kind = "gptq",
    biases: bool = True,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Plan:
    """Return a plan whose weights are rounded for what the coded layers before give.

    Args:
        model: The cleaned float model.
        plan: What was decided, with roundings for float inputs, to which every layer is compared.
        target: Where the model will run; its kernels set the limits of pairs.
        feeds: Calibration samples.
        kind: How to round.
        biases: Whether biases take up the mean error.
        seed: Seed of which rows of the inputs are looked at.
        advance: Called after every layer.

    Raises:
        ModelError: The graph has element types that PyTorch does not have.
    """
    # PyTorch takes a second to load, and nothing else here needs it.
    from lowbit.methods.coded_walk import walked

    def change(layer: Layer) -> SitePlan:
        shared = layer.site.weight is None or len(tuple(layer.site.weight.uses())) > 1
        # What several layers share would have to fit the inputs of all.
        if shared or layer.encoded.beside is not None or not fits(layer.site, layer.entry, target, kind):
            return layer.entry
        if keeps_values(layer.site, layer.entry):
            return layer.entry
        return _Rounding(layer, kind, biases=biases, seed=seed).run()

    return walked(model, plan, target, feeds, change, advance=advance)


class _Rounding:
    """One layer, with what it reads.

    Args:
        layer: The layer.
        kind: How to round.
        biases: Whether its bias takes up the mean error.
        seed: Seed of the rows.
    """

    def __init__(self, layer: Layer, kind: Kind, *, biases: bool, seed: int) -> None:
        self.layer, self.kind, self.seed = layer, kind, seed
        self.weight = kernel_matrix(layer.site, layer.site.weight_array())
        self.centred = biases and layer.site.bias is not None and layer.bias is not None
        scale = None if layer.entry.scale is None else unpack_floats(layer.entry.scale)
        self.base: EncodedWeight | None = None
        if layer.encoded.fmt.element.kind == "integer":
            self.base = layer.nearest(layer.entry, scale)

    def run(self) -> SitePlan:
        """Return the entry with other codes and bias, if they are better, and with a note."""
        layer = self.layer
        nearest = plain_codes(layer.site, self.base) if self.base is not None else None
        if self.base is None or nearest is None:
            return layer.entry
        fit, held = self._seen()
        both = pairs_merge(fit, held)
        if not both.count or not np.isfinite(both.moments).all() or not both.moments.any():
            return layer.entry
        judging = held if held.count else fit
        decoded = kernel_matrix(layer.site, layer.encoded.decode())
        before = float(asymmetric_errors(judging, decoded, self._present_shift()).sum())
        codes = self._codes(fit, nearest)
        after = float(asymmetric_errors(judging, self._decoded(codes), self._shift(fit, codes)).sum())
        power = float(judging.power.sum()) / max(judging.count, 1)
        texts = share_text(before, power), share_text(after, power)
        if after >= before:
            note = f"output error {texts[0]} for quantized inputs, rounded anew {texts[1]}: kept"
            return dataclasses.replace(layer.entry, notes=(*layer.entry.notes, note))
        # It generalizes: what was held out for this test may now take part.
        final = self._codes(both, nearest)
        packed = pack_steps((final.astype(np.int16) - nearest).astype(np.int8), nearest)
        rerounded(layer.site, self.base, packed)  # what is stored has to be legal
        note = f"output error {texts[0]} -> {texts[1]} by {self.kind} rounding for quantized inputs"
        entry = dataclasses.replace(layer.entry, rounding=packed, notes=(*layer.entry.notes, note))
        if not self.centred:
            return entry
        own = self._own_bias() + self._shift(both, final)
        return dataclasses.replace(entry, bias=pack_floats(own.astype(np.float32)), input_mean=None)

    def _seen(self) -> tuple[InputPairs, InputPairs]:
        """Return what was seen of the samples to round by, and of those that are held out."""
        site = self.layer.site
        groups = site.attribute("group", 1) if site.op_type == "Conv" else 1
        halves = [pairs_init(self.weight, groups), pairs_init(self.weight, groups)]
        generator = np.random.default_rng(self.seed)
        for index, arrays in enumerate(self.layer.inputs()):
            picks = int(generator.integers(1 << 31))
            # The same rows of both.
            exact, coded = (input_rows(site, each, _ROWS, np.random.default_rng(picks)) for each in arrays)
            half = int(index % _EVERY == _EVERY - 1)
            halves[half] = pairs_update(halves[half], exact, coded)
        return halves[0], halves[1]

    def _codes(self, seen: InputPairs, nearest: NDArray[np.int8]) -> NDArray[np.int16]:
        assert self.base is not None
        goal, moments = asymmetric_target(seen, centred=self.centred)
        scale, zero_point = grids_of(self.layer.site, self.base)
        codes: NDArray[np.int16] = better_codes(
            goal, nearest, scale, zero_point, moments, limits_of(self.layer.site, self.base), self.kind
        )
        return codes

    def _decoded(self, codes: NDArray[np.int16]) -> NDArray[np.float64]:
        assert self.base is not None
        scale, zero_point = grids_of(self.layer.site, self.base)
        return (codes.astype(np.float64) - zero_point) * scale

    def _own_bias(self) -> NDArray[np.float64]:
        bias = self.layer.site.bias
        assert bias is not None
        assert bias.const_value is not None
        return np.asarray(bias.const_value.numpy(), dtype=np.float64).reshape(-1)

    def _present_shift(self) -> NDArray[np.float64] | float:
        """Return what the layer's bias adds now beyond the float one's."""
        layer = self.layer
        if layer.bias is None or layer.site.bias is None:
            return 0.0
        return np.asarray(layer.bias, dtype=np.float64).reshape(-1) - self._own_bias()

    def _shift(self, seen: InputPairs, codes: NDArray[np.int16]) -> NDArray[np.float64] | float:
        """Return what the bias is to add with these codes."""
        return mean_error(seen, self._decoded(codes)) if self.centred else self._present_shift()
