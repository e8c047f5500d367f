"""What an optimizer remembers of a parameter, carried through a change of basis or of rank."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..errors import ConfigError

__all__ = [
    "AlongAxis",
    "carried",
    "carry_in_place_",
    "check_optimizer",
    "forget_parameters_",
    "group_of",
    "join_group_",
    "load_precision_",
    "mean_squares",
    "swap_parameter_",
]

FIRST: Final = ("exp_avg", "momentum_buffer", "grad_avg", "state1")
"""Means of gradients, which change as a gradient does."""
SECOND: Final = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "state2")
"""Means of squared gradients."""
FACTORED: Final = ("exp_avg_sq_row", "exp_avg_sq_col")
"""Adafactor's: the mean of the squares along each row and along each column."""
KEPT: Final = ("step", "RMS", "mu_product", "eta", "ax")
"""Numbers of the whole parameter."""
SUPPORTED: Final = ("Adam", "AdamW", "NAdam", "RAdam", "SGD", "RMSprop", "Adagrad", "Adafactor", "Lion")
"""Names of optimizer classes of torch, transformers and bitsandbytes whose state is known here."""


@dataclass(frozen=True, slots=True)
class AlongAxis:
    """A linear map of the gradient along the axis of directions."""

    axis: int
    """0 for A `(rank, in_features)`, 1 for B `(out_features, rank)`."""
    matrix: Tensor
    """`(new rank, rank)`; rows of 0 for directions that start anew."""
    new: tuple[int, ...] = ()
    """Indices of the directions that start anew."""
    squares: Mapping[str, float] = field(default_factory=dict)
    """What their second moments start at, by kind: at 0 the first steps would be many times too long."""

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the tensor with its directions mapped."""
        return _along(self.axis, self.matrix, tensor)

    def squared(self, tensor: Tensor) -> Tensor:
        """Return squares with their directions mapped, as if the entries' signs were independent."""
        return _along(self.axis, self.matrix.square(), tensor)

    def begun(self, kind: str, squares: Tensor) -> Tensor:
        """Return the squares of one kind with those of new directions put in; they lie along the axis, or alone."""
        if self.new:
            axis = self.axis if squares.dim() > 1 else 0
            squares = squares.index_fill(axis, torch.tensor(self.new, device=squares.device), self.squares[kind])
        return squares


def _along(axis: int, matrix: Tensor, tensor: Tensor) -> Tensor:
    return torch.movedim(torch.tensordot(matrix, tensor.double(), ([1], [axis])), 0, axis).contiguous()


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise unless the optimizer's state can be carried through a change of rank.

    Raises:
        ConfigError: For one whose state is packed in blocks, paged, or not known here.
    """
    kind = type(optimizer)
    library = kind.__module__.partition(".")[0]
    name = re.sub("^Paged|(8|32)bit$", "", kind.__name__)
    if name not in SUPPORTED or library not in ("torch", "transformers", "bitsandbytes"):
        problem = f"the state of {kind.__module__}.{kind.__name__} is not known to change with a parameter's shape"
    elif library == "bitsandbytes" and optimizer.args.optim_bits != 32:
        problem = f"{kind.__name__} of bitsandbytes packs its state in blocks of 8 bits, which cannot be cut"
    elif getattr(optimizer, "is_paged", False):
        problem = f"{kind.__name__} of bitsandbytes pages its state, which cannot be cut"
    else:
        return
    raise ConfigError(f"{problem}; use optim='adamw_torch', or another of {', '.join(SUPPORTED)} in 32 bits")


def swap_parameter_(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, change: AlongAxis) -> None:
    """Put `new` in the place of `old` in its group, with the state of `old` carried through the change.

    Step counts, learning rates and everything else of the group stay. First moments change exactly; second moments
    by the squared map, and never below the square of the first, which keeps the next step bounded.
    """
    for group in optimizer.param_groups:
        for index, parameter in enumerate(group["params"]):
            if parameter is old:
                group["params"][index] = new
    state = optimizer.state.pop(old, None)
    if state:
        optimizer.state[new] = carried(state, change)


def carry_in_place_(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, change: AlongAxis) -> None:
    """Carry a parameter's state through a change that leaves every shape."""
    state = optimizer.state.get(parameter, {})
    for key, value in carried(state, change).items():
        if value is not state[key]:
            state[key].copy_(value)


def forget_parameters_(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters and their state out of the optimizer."""
    gone = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]
    for parameter in [kept for kept in optimizer.state if id(kept) in gone]:
        del optimizer.state[parameter]


def load_precision_(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Give a loaded optimizer the precision that its state was saved in.

    torch casts what it loads to the parameter's precision, and Adafactor keeps float32 means of 16-bit parameters.

    Args:
        optimizer: The optimizer, which has loaded `saved`.
        saved: Its state dictionary as it lies in the checkpoint.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for parameter, number in zip(parameters, numbers, strict=True):
        state = optimizer.state[parameter]
        for key, value in saved["state"].get(number, {}).items():
            if isinstance(value, Tensor) and value.dtype != state[key].dtype:
                state[key] = value.to(parameter.device)


def group_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> int | None:
    """Return the index of the group that holds a parameter; None if none does."""
    groups = enumerate(optimizer.param_groups)
    return next((index for index, group in groups if any(held is parameter for held in group["params"])), None)


def join_group_(
    optimizer: torch.optim.Optimizer,
    index: int,
    parameter: nn.Parameter,
    order: Sequence[nn.Parameter],
    squares: Mapping[str, float],
) -> None:
    """Put a parameter into a group, with a state as if it had been there and had never had a gradient of its own.

    It goes where the order puts it, since a saved state knows parameters by their place alone.

    Args:
        optimizer: The optimizer.
        index: Of the group.
        parameter: The parameter.
        order: All of the model's parameters, in its order, this one among them.
        squares: What its second moments start at, by kind, from `mean_squares`.
    """
    place = {id(known): at for at, known in enumerate(order)}
    held = optimizer.param_groups[index]["params"]
    later = (at for at, other in enumerate(held) if place.get(id(other), -1) > place[id(parameter)])
    held.insert(next(later, len(held)), parameter)
    alike = (state for known, state in optimizer.state.items() if state and known.dim() == parameter.dim())
    example: dict[str, Any] = next(alike, {})
    if example:
        optimizer.state[parameter] = {key: _begun(key, value, parameter, squares) for key, value in example.items()}


def _begun(key: str, value: Any, parameter: nn.Parameter, squares: Mapping[str, float]) -> Any:
    """Return what one entry of another parameter's state is for a new one."""
    if value is None or key in KEPT:
        return value.clone() if isinstance(value, Tensor) else value
    rows, columns = parameter.shape[:-1], (*parameter.shape[:-2], parameter.shape[-1])
    shape = {FACTORED[0]: rows, FACTORED[1]: columns}.get(key, parameter.shape)
    return torch.full(shape, squares.get(key, 0.0), dtype=value.dtype, device=parameter.device)


def mean_squares(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[nn.Parameter, int, int]]
) -> dict[str, float]:
    """Return the mean of each kind of second moment over the entries of some parameters.

    Args:
        optimizer: The optimizer.
        parameters: Each with its axis of directions, and how many of those are in use.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for parameter, axis, rank in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None and key in SECOND + FACTORED:
                used = value.narrow(axis, 0, rank) if value.dim() > axis and value.shape == parameter.shape else value
                sums[key] = sums.get(key, 0.0) + float(used.double().sum())
                counts[key] = counts.get(key, 0) + used.numel()
    return {key: total / counts[key] if counts[key] else 0.0 for key, total in sums.items()}


def carried(state: Mapping[str, Any], change: AlongAxis) -> dict[str, Any]:
    """Return one parameter's state after a change of its directions.

    Raises:
        ConfigError: If the state holds something that is not known here.
    """
    new: dict[str, Any] = {}
    for key, value in state.items():
        if value is None or key in KEPT:
            new[key] = value
        elif key in FIRST:
            new[key] = change(value).to(value.dtype)
        elif key in SECOND:
            new[key] = change.begun(key, _floored(change.squared(value), state, change)).to(value.dtype)
        elif key not in FACTORED:
            raise ConfigError(f"the optimizer's state {key!r} is not known to change with a parameter's shape")
    if all(key in state for key in FACTORED):
        new |= _factored(state, change)
    return new


def _floored(second: Tensor, state: Mapping[str, Any], change: AlongAxis) -> Tensor:
    first = next((state[key] for key in ("exp_avg", "state1", "grad_avg") if state.get(key) is not None), None)
    return second if first is None else torch.maximum(second, change(first).square())


def _factored(state: Mapping[str, Any], change: AlongAxis) -> dict[str, Tensor]:
    """Return Adafactor's two means of v ≈ row · col / mean(row): one is mapped, the other follows its mean."""
    names = FACTORED if change.axis == 0 else FACTORED[::-1]
    own, other = (state[name].double() for name in names)
    new = change.begun(names[0], change.matrix.square() @ own)
    new_other = other * new.mean() / own.mean()
    return {name: value.to(state[name].dtype) for name, value in zip(names, (new, new_other), strict=True)}
