"""The hyperparameters of a group of parameters, and the form of the rule that they stand for."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from torch import Tensor

from rmsjit.forms.table import BY_NAME
from rmsjit.rule.checks import (
    as_number,
    in_unit_interval,
    nonnegative,
    nonnegative_number,
    positive_number,
)
from rmsjit.rule.form import Form
from rmsjit.rule.numbers import StepNumbers

_NAMES = ("lr", "alpha", "momentum", "eps", "weight_decay")
_values_in = itemgetter(*_NAMES)
_PLAIN = {float, int}  # types of numbers that need no conversion
LATER_SETTINGS = {  # that states of older versions of torch do not have
    "momentum": 0.0,
    "centered": False,
    "capturable": False,
    "foreach": None,
    "maximize": False,
    "differentiable": False,
}


def name_of(position: int, group: Mapping[str, Any], number: int) -> str:
    """What errors call a parameter of a group."""
    name = f" ({group['param_names'][position]})" if "param_names" in group else ""
    return f"parameter {position}{name} of group {number}"


def check_saved(group: Mapping[str, Any], number: int) -> None:
    """Check the settings of a saved group.

    Raises
    ------
    TypeError, ValueError
        If one is not there, as in the state of another optimizer, or is not valid.
    """
    whole = {**LATER_SETTINGS, **group}
    missing = [name for name in _NAMES if name not in whole]
    if missing:
        raise ValueError(
            f"group {number} of state_dict must have the settings of RMSprop, got one without "
            f"{', '.join(missing)}: {', '.join(map(str, group))}"
        )
    numbers_of(whole)
    refuse_differentiable(whole)


def numbers_of(group: Mapping[str, Any]) -> StepNumbers:
    """The numbers of a group's next step.

    The learning rate may be negative, as torch's schedulers can make it by rounding.

    Raises
    ------
    TypeError
        If one is not a number.
    ValueError
        If one is out of its range.
    """
    values = _values_in(group)
    if not _PLAIN.issuperset(map(type, values)):
        values = tuple(map(number_of, _NAMES, values))
    return _checked(*values)


def check_rate(group: Mapping[str, Any]) -> None:
    """Raise `ValueError` if the learning rate that a group begins with is negative."""
    nonnegative("lr", number_of("lr", group["lr"]))


def number_of(name: str, value: Any) -> float:
    """The current number, also of a tensor or an array.

    Raises
    ------
    TypeError, ValueError
        If it is not one finite real number.
    """
    if type(value) in _PLAIN:
        return value  # type: ignore[no-any-return]
    if isinstance(value, Tensor):
        if value.numel() != 1:
            shape = (*value.shape,)
            raise ValueError(f"{name} must have one element, got a tensor of shape {shape}")
        value = value.item()
    return as_number(name, value)


@functools.lru_cache  # a group has the same numbers at most steps
def _checked(
    lr: float, alpha: float, momentum: float, eps: float, weight_decay: float
) -> StepNumbers:
    return StepNumbers(
        as_number("lr", lr),
        in_unit_interval("alpha", as_number("alpha", alpha)),
        in_unit_interval("momentum", as_number("momentum", momentum)),
        positive_number("eps", eps),
        nonnegative_number("weight_decay", weight_decay),
    )


def form_of(numbers: StepNumbers, centered: bool) -> Form:
    """The form of ``torch.optim.RMSprop`` with what these numbers use."""
    return _form(numbers.momentum > 0, numbers.weight_decay > 0, bool(centered))


@functools.cache
def _form(momentum: bool, weight_decay: bool, centered: bool) -> Form:
    used = {"momentum": float(momentum), "weight_decay": float(weight_decay), "centered": centered}
    return BY_NAME["torch"].chosen(used).form


def refuse_differentiable(group: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a group asks for steps that autograd can go through."""
    if group["differentiable"]:
        raise ValueError(
            "differentiable must be False, got True: steps of compiled code have no derivative; "
            "those of torch.optim.RMSprop have one"
        )
