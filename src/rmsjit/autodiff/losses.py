"""Gradients of a loss, in the three ways in which optimizers ask for them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rmsjit.autodiff.tape import GradientTape
from rmsjit.nest import flatten, pack_like
from rmsjit.text import brief
from rmsjit.variables import Variable


def gradients_of(
    loss: Any, var_list: Any, grad_loss: Any = None, tape: GradientTape | None = None
) -> tuple[list[Any], list[Any]]:
    """The gradients of a loss, as in Keras's ``minimize``.

    Parameters
    ----------
    loss : callable without arguments, or a value that `tape` recorded
        The sum of its elements is differentiated.
    var_list : nested structure of Variables and arrays, or a callable that returns one
        A callable is called after the loss.  For an array, the loss must read it through
        ``Variable(array)``, made from this very array.
    grad_loss : array_like, optional
        Weights for the elements of the loss, with its shape.
    tape : GradientTape, optional
        Records the loss instead of a new tape.

    Returns
    -------
    gradients, variables : list, list
        In the order of `flatten`.  A gradient is None if the loss does not depend on the variable.

    Raises
    ------
    TypeError
        If the loss is not a number or array, or `var_list` contains anything but variables and
        arrays that the loss reads through a `Variable`.
    ValueError
        If `loss` is a value and there is no tape.
    """
    if tape is None:
        if not callable(loss):
            raise ValueError(
                "a loss that is a value needs the tape that recorded it: pass tape=, or a "
                "callable that computes the loss"
            )
        tape = GradientTape()
    if callable(loss):
        with tape:
            if not callable(var_list):
                tape.watch(_checked_variables(var_list))
            loss = loss()
    variables = _checked_variables(var_list() if callable(var_list) else var_list)
    return tape.gradient(loss, variables, grad_loss), variables


def gradients_of_arguments(
    loss: Callable[..., Any], var_list: Any, grad_loss: Any = None, tape: GradientTape | None = None
) -> tuple[list[Any], list[Any]]:
    """The gradients of ``loss(*var_list)``, as in TensorFlow 1; otherwise as `gradients_of`.

    The loss gets the flattened variables as arguments, or a dictionary whole if it takes one
    argument: a `Variable` as it is, a plain array as a stand-in, so that the tape notices its use.
    """
    var_list = var_list() if callable(var_list) else var_list
    variables = _checked_variables(var_list)
    with tape or GradientTape() as tape:
        arguments = tape.watch(variables)
        is_whole = isinstance(var_list, Mapping) and _argument_count(loss) == 1
        value = loss(pack_like(var_list, arguments)) if is_whole else loss(*arguments)
    return tape.gradient(value, arguments, grad_loss), variables


def takes_arguments(loss: Callable[..., Any]) -> bool:
    """Whether a loss takes the variables; TensorFlow itself calls it without arguments."""
    return _argument_count(loss) > 0


def _argument_count(loss: Callable[..., Any]) -> float:
    """How many variables a loss takes, infinitely many for ``*args`` and for unknown signatures."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return math.inf
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return math.inf
    return sum(
        one.kind is one.POSITIONAL_ONLY
        or (one.kind is one.POSITIONAL_OR_KEYWORD and one.default is one.empty)
        for one in parameters
    )


def gradients_of_touched(
    loss: Callable[[], Any], grad_loss: Any = None
) -> tuple[list[Any], list[Any]]:
    """The gradients for every trainable `Variable` that the loss reads, in order of first use.

    Otherwise as `gradients_of`.
    """
    with GradientTape() as tape:
        value = loss()
    variables = list(tape.watched_variables())
    return tape.gradient(value, variables, grad_loss), variables


def _checked_variables(var_list: Any) -> list[Any]:
    variables = flatten(var_list)
    for position, variable in enumerate(variables):
        if not isinstance(variable, (Variable, np.ndarray)):
            raise TypeError(
                f"var_list[{position}] must be a variable: an rmsjit.Variable or an array, "
                f"got {brief(variable)}"
            )
    return variables
