"""Recurrent layers: LSTM, GRU and RNN, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from lowbit.exceptions import ModelError
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__ = ["lstm_layer"]

Activation = Callable[["Tensor"], "Tensor"]
Product = Callable[["Tensor", "Tensor"], "Tensor"]
"""From `[..., n]` and a weight `[m, n]` to `[..., m]`."""

_Cell = Callable[["_Direction", "Tensor", tuple["Tensor", ...]], tuple["Tensor", ...]]
"""One step: from the direction, the input's share `[batch, gates]` and the states to the new states."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Direction:
    """What one direction of a layer computes with.

    Attributes:
        w: `[gates · hidden, input]`.
        r: `[gates · hidden, hidden]`.
        wb: Bias of the input, `[gates · hidden]`.
        rb: Bias of the recurrence, `[gates · hidden]`.
        p: Peepholes `[3 · hidden]`, if any.
        activations: Activation functions, in the specification's order.
        product: Multiplies by a weight.
        call: The node.
    """

    w: Tensor
    r: Tensor
    wb: Tensor
    rb: Tensor
    p: Tensor | None
    activations: tuple[Activation, ...]
    product: Product
    call: Call

    def clipped(self, x: Tensor) -> Tensor:
        """Return what goes into an activation function, within the node's bounds."""
        limit = self.call.get("clip", 0.0)
        return x.clamp(-limit, limit) if limit else x


# Which of alpha and beta a function reads, with their defaults.
_PARAMETERS: dict[str, tuple[float | None, float | None]] = {
    "affine": (1.0, 0.0),
    "leakyrelu": (0.01, None),
    "thresholdedrelu": (1.0, None),
    "scaledtanh": (1.0, 1.0),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0, None),
}


def _activation(name: str, alpha: float, beta: float) -> Activation:
    table: dict[str, Activation] = {
        "relu": torch.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "softsign": functional.softsign,
        "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        "affine": lambda x: alpha * x + beta,
        "leakyrelu": lambda x: torch.where(x >= 0, x, alpha * x),
        "thresholdedrelu": lambda x: torch.where(x >= alpha, x, torch.zeros_like(x)),
        "scaledtanh": lambda x: alpha * torch.tanh(beta * x),
        "hardsigmoid": lambda x: (alpha * x + beta).clamp(0, 1),
        "elu": lambda x: torch.where(x >= 0, x, alpha * torch.expm1(x.clamp(max=0))),
    }
    if name not in table:
        raise ModelError(f"no activation function of recurrent layers is called {name!r}", remedy="see the standard")
    return table[name]


def _activations(call: Call, defaults: list[str], directions: int) -> list[tuple[Activation, ...]]:
    """Return every direction's activation functions; alphas and betas go to those that read some, in order."""
    names = [str(name).lower() for name in call.get("activations") or defaults * directions]
    alphas, betas = list(call.get("activation_alpha") or []), list(call.get("activation_beta") or [])
    functions = []
    for name in names:
        alpha, beta = _PARAMETERS.get(name, (None, None))
        alpha = alphas.pop(0) if alpha is not None and alphas else alpha
        beta = betas.pop(0) if beta is not None and betas else beta
        functions.append(_activation(name, alpha or 0.0, beta or 0.0))
    count = len(defaults)
    return [tuple(functions[index * count : (index + 1) * count]) for index in range(directions)]


def _lstm_cell(direction: _Direction, given: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Make one step of an LSTM (Hochreiter and Schmidhuber 1997; peepholes: Gers and Schmidhuber 2000)."""
    h, c = states
    f, g, last = direction.activations
    i, o, forget, cell = (given + direction.product(h, direction.r) + direction.rb).chunk(4, dim=1)
    if direction.p is not None:
        p_i, p_o, p_f = direction.p.chunk(3)
        i, forget = i + p_i * c, forget + p_f * c
    entry = f(direction.clipped(i))
    keep = 1 - entry if direction.call.get("input_forget", 0) else f(direction.clipped(forget))
    new = keep * c + entry * g(direction.clipped(cell))
    if direction.p is not None:
        o = o + p_o * new
    # NOTE: The engine clips what goes into the gates, not the cell that goes out; the specification can be read so.
    return f(direction.clipped(o)) * last(new), new


def _gru_cell(direction: _Direction, given: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Make one step of a gated recurrent unit (Cho et al. 2014)."""
    (h,) = states
    f, g = direction.activations
    hidden = h.shape[1]
    gates, rest = direction.r[: 2 * hidden], direction.r[2 * hidden :]
    z, r = (given[:, : 2 * hidden] + direction.product(h, gates) + direction.rb[: 2 * hidden]).chunk(2, dim=1)
    update, reset = f(direction.clipped(z)), f(direction.clipped(r))
    if direction.call.get("linear_before_reset", 0):
        recurrent = reset * (direction.product(h, rest) + direction.rb[2 * hidden :])
    else:
        recurrent = direction.product(reset * h, rest) + direction.rb[2 * hidden :]
    candidate = g(direction.clipped(given[:, 2 * hidden :] + recurrent))
    return ((1 - update) * candidate + update * h,)


def _rnn_cell(direction: _Direction, given: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Make one step of a simple recurrent layer (Elman 1990)."""
    (h,) = states
    (f,) = direction.activations
    return (f(direction.clipped(given + direction.product(h, direction.r) + direction.rb)),)


def _unrolled(
    call: Call,
    cell: _Cell,
    x: Tensor,
    directions: list[_Direction],
    lengths: Tensor | None,
    states: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Run a cell over all sequences.

    Args:
        call: The node; `direction` and `layout` are read.
        cell: One step.
        x: `[time, batch, input]`, or with layout 1 `[batch, time, input]`.
        directions: One or two.
        lengths: Of the sequences, `[batch]`; all of `time` if left out.
        states: First states, `[directions, batch, hidden]` each, batch first with layout 1.

    Returns:
        All hidden states `[time, directions, batch, hidden]`, then the last of every state; batch first with layout 1.
        Hidden states behind the end of a sequence are zero.
    """
    batch_first = bool(call.get("layout", 0))
    if batch_first:
        x, states = x.transpose(0, 1), tuple(state.transpose(0, 1) for state in states)
    way = call.get("direction", "forward")
    outputs, ends = [], []
    for index, direction in enumerate(directions):
        current = tuple(state[index] for state in states)
        shares = direction.product(x, direction.w) + direction.wb
        hidden: list[Tensor] = [x.new_zeros(0)] * x.shape[0]
        backwards = way == "reverse" or index == 1
        for step in reversed(range(x.shape[0])) if backwards else range(x.shape[0]):
            new = cell(direction, shares[step], current)
            if lengths is None:
                current, hidden[step] = new, new[0]
                continue
            going = (lengths > step).reshape(-1, 1)
            current = tuple(torch.where(going, after, before) for after, before in zip(new, current, strict=True))
            hidden[step] = torch.where(going, new[0], torch.zeros_like(new[0]))
        outputs.append(torch.stack(hidden) if hidden else x.new_zeros((0, *current[0].shape)))
        ends.append(current)
    y = torch.stack(outputs, dim=1)
    last = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
    if batch_first:
        y, last = y.permute(2, 0, 1, 3), tuple(state.transpose(0, 1) for state in last)
    return (y, *last)


def _layer(
    call: Call,
    cell: _Cell,
    defaults: list[str],
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    states: tuple[Tensor | None, ...],
    p: Tensor | None = None,
    product: Product = functional.linear,
) -> tuple[Tensor, ...]:
    x, w, r, b, lengths = tensors
    count, hidden = w.shape[0], r.shape[2]
    batch = x.shape[0] if call.get("layout", 0) else x.shape[1]
    shape = (batch, count, hidden) if call.get("layout", 0) else (count, batch, hidden)
    first = tuple(x.new_zeros(shape) if state is None else state for state in states)
    bias = x.new_zeros(count, 2 * w.shape[1]) if b is None else b
    functions = _activations(call, defaults, count)
    directions = [
        _Direction(
            w=w[index],
            r=r[index],
            wb=bias[index, : w.shape[1]],
            rb=bias[index, w.shape[1] :],
            p=None if p is None else p[index],
            activations=functions[index],
            product=product,
            call=call,
        )
        for index in range(count)
    ]
    return _unrolled(call, cell, x, directions, lengths, first)


def lstm_layer(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    p: Tensor | None,
    product: Product = functional.linear,
) -> tuple[Tensor, ...]:
    """Run an LSTM layer.

    Args:
        call: The node.
        x: As the specification's `X`; the following likewise, in its order.
        w: `W`.
        r: `R`.
        b: `B`.
        lengths: `sequence_lens`.
        h: `initial_h`.
        c: `initial_c`.
        p: `P`.
        product: Multiplies by a weight.

    Returns:
        All hidden states, the last one, the last cell.
    """
    return _layer(call, _lstm_cell, ["sigmoid", "tanh", "tanh"], (x, w, r, b, lengths), (h, c), p, product)


@operator("LSTM")
def lstm(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    p: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run an LSTM layer: all hidden states, the last one, the last cell."""
    return lstm_layer(call, x, w, r, b, lengths, h, c, p)


@operator("GRU")
def gru(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run a GRU layer: all hidden states, the last one."""
    return _layer(call, _gru_cell, ["sigmoid", "tanh"], (x, w, r, b, lengths), (h,))


@operator("RNN")
def rnn(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run a simple recurrent layer: all hidden states, the last one."""
    return _layer(call, _rnn_cell, ["tanh"], (x, w, r, b, lengths), (h,))
