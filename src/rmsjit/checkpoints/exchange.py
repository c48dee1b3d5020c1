"""Conversion of the optimizer's state from and to the formats of other libraries.

tf-keras needs no conversion: `rmsjit.RMSprop.get_weights` and `set_weights` use the same lists of
arrays as ``tf_keras.optimizers.legacy.RMSprop``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import dtype_named, precision_of
from rmsjit.checkpoints.compare import (
    Variables,
    check_all_named,
    check_variables,
    saved_variables,
)
from rmsjit.checkpoints.content import Checkpoint, SavedOptimizer, SavedWeight
from rmsjit.checkpoints.restore import new_optimizer, restore
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.rule.form import MG, MOMENTUM, RMS, Form
from rmsjit.rule.presets import keras_legacy

_TORCH_SLOTS = {RMS.name: "square_avg", MOMENTUM.name: "momentum_buffer", MG.name: "grad_avg"}
_TORCH_DEFAULTS = {"momentum": 0.0, "centered": False, "weight_decay": 0.0, "maximize": False}


def to_torch_state_dict(optimizer: RMSprop, variables: Variables) -> dict[str, Any]:
    """The state in the format of ``torch.optim.RMSprop.load_state_dict``.

    Parameters
    ----------
    optimizer : RMSprop
        Must have epsilon outside of the root, as in torch.  This is so if it was constructed
        without momentum; a momentum that is set later does not move epsilon.
    variables : dict of str to ndarray or Variable
        All parameters of the torch optimizer, in its order.

    Returns
    -------
    dict
        ``state``, with copies as CPU tensors, and ``param_groups``, with one group that has the
        hyperparameters of the next step.

    Raises
    ------
    ImportError
        If torch is not installed.
    TypeError
        If torch has no such optimizer, or can't train a variable in the same way.  Complex
        variables are rejected, since torch squares their two parts separately.
    ValueError
        If epsilon is inside of the root, a variable of the optimizer is missing, or there is
        momentum and the learning rate is zero, so that it can't be divided.

    See Also
    --------
    from_torch_state_dict : The inverse.

    Notes
    -----
    torch multiplies by the learning rate after the momentum, rmsjit before.  Therefore the momentum
    is divided by the learning rate of the next step, and runs agree until the learning rate
    changes.

    Clipping and schedules are not part of a torch optimizer and are not converted.

    Examples
    --------
    ::

        state_dict = rmsjit.interop.to_torch_state_dict(opt, {"w": w, "b": b})
        torch_opt = torch.optim.RMSprop([torch_w, torch_b])
        torch_opt.load_state_dict(state_dict)
    """
    _check_for_torch(optimizer, variables)
    optimizer.sync()
    numbers = optimizer._hyperparameters.at(optimizer.iterations.array)
    group: dict[str, Any] = {
        "lr": numbers.learning_rate,
        "momentum": numbers.momentum,
        "alpha": numbers.rho,
        "eps": numbers.epsilon,
        "centered": optimizer.centered,
        "weight_decay": 0,
        "capturable": False,
        "foreach": None,
        "maximize": False,
        "differentiable": False,
        "params": list(range(len(variables))),
    }
    state = {}
    for index, (name, variable) in enumerate(variables.items()):
        if optimizer._store.slot_of(variable, RMS.name) is not None:
            state[index] = _torch_state(optimizer, name, variable, numbers.momentum, group["lr"])
    return {"state": state, "param_groups": [group]}


def from_torch_state_dict(
    state_dict: Mapping[str, Any], variables: Variables, optimizer: RMSprop | None = None
) -> RMSprop:
    """An optimizer that continues the run of a ``torch.optim.RMSprop``.

    Parameters
    ----------
    state_dict : dict
        The result of ``torch.optim.RMSprop.state_dict``, with tensors or arrays.
    variables : dict of str to ndarray or Variable
        In the order of the parameters of the torch optimizer, with their shapes and dtypes.
        Their values do not change.
    optimizer : RMSprop, optional
        Its state is replaced, its hyperparameters do not change.  By default a new one is created
        with the hyperparameters of `state_dict`.

    Returns
    -------
    RMSprop
        `optimizer` or a new one; `iterations` is the highest ``step`` of the parameters.

    Raises
    ------
    TypeError
        If an argument has a wrong type.
    ValueError
        If `state_dict` does not fit the variables or the optimizer, in which case the message
        lists the differences, or if it uses weight decay, ``maximize``, or several groups with
        different hyperparameters, which rmsjit lacks.  Nothing is changed in this case.

    See Also
    --------
    to_torch_state_dict : The inverse.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit.interop
    >>> state_dict = {
    ...     "state": {0: {"step": 7.0, "square_avg": np.ones(2), "momentum_buffer": np.ones(2)}},
    ...     "param_groups": [
    ...         {"lr": 0.5, "alpha": 0.99, "eps": 1e-8, "momentum": 0.9, "params": [0]}
    ...     ],
    ... }
    >>> w = np.zeros(2)
    >>> opt = rmsjit.interop.from_torch_state_dict(state_dict, {"w": w})
    >>> int(opt.iterations), opt.rho
    (7, 0.99)
    >>> opt.get_slot(w, "momentum").numpy()
    array([0.5, 0.5])
    """
    check_variables(variables)
    if optimizer is not None and not isinstance(optimizer, RMSprop):
        raise TypeError(f"optimizer must be an RMSprop, got {type(optimizer).__name__}")
    try:
        checkpoint = _torch_checkpoint(state_dict, variables)
        if optimizer is None and checkpoint.optimizer.config["epsilon"] <= 0:
            raise ValueError(f"eps must be positive, got {checkpoint.optimizer.config['epsilon']}")
        made = new_optimizer(checkpoint, None) if optimizer is None else optimizer
        made.sync()  # rows that have missed steps need the old state to catch up
        restore(checkpoint, made, variables)
    except ValueError as error:
        raise ValueError(f"the state_dict can't be loaded: {error}") from error
    assert isinstance(made, RMSprop)
    return made


# --- to torch -------------------------------------------------------------------------------


def _check_for_torch(optimizer: Any, variables: Variables) -> None:
    if not isinstance(optimizer, RMSprop):
        raise TypeError(
            f"optimizer must be an RMSprop, got {type(optimizer).__name__}; torch has no other"
        )
    check_variables(variables)
    for name, variable in variables.items():
        precision = precision_of(variable.dtype)
        if precision is None or precision.components == 2:
            raise TypeError(f"variables[{name!r}] must be real, got dtype {variable.dtype}")
    check_all_named(optimizer, variables)
    form = optimizer._store.form
    if form.epsilon != "outside" or form.slot(RMS.name).start != 0:
        raise ValueError(
            "torch.optim.RMSprop has epsilon outside of the root, but this optimizer has it "
            "inside, so torch would not continue its run; a momentum that is set after "
            "construction leaves epsilon outside"
        )


def _torch_state(
    optimizer: RMSprop, name: str, variable: Any, momentum: float, learning_rate: float
) -> dict[str, Any]:
    state = {"step": _tensor(np.array(optimizer.iterations, np.float32))}
    for slot, torch_name in _TORCH_SLOTS.items():
        held = optimizer._store.slot_of(variable, slot)
        if slot == MOMENTUM.name and momentum > 0:  # torch requires it even before its first use
            array = np.zeros(variable.shape, variable.dtype) if held is None else held.array
            state[torch_name] = _tensor(_per_rate(array, learning_rate, name))
        elif slot != MOMENTUM.name and held is not None:
            state[torch_name] = _tensor(held.array)
    return state


def _per_rate(momentum: NDArray[Any], learning_rate: float, name: str) -> NDArray[Any]:
    if learning_rate == 0 and momentum.any():
        raise ValueError(
            f"the momentum of {name!r} can't be divided by the learning rate, which is 0"
        )
    return (momentum.astype(np.float64) / (learning_rate or 1.0)).astype(momentum.dtype)


def _tensor(array: NDArray[Any]) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("a state_dict of torch needs torch: pip install torch") from error
    if array.dtype.name == "bfloat16":  # not supported by torch.from_numpy
        return torch.from_numpy(np.array(array.view(np.int16), order="C")).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


# --- from torch -----------------------------------------------------------------------------


def _torch_checkpoint(state_dict: Mapping[str, Any], variables: Variables) -> Checkpoint:
    """The equivalent checkpoint of rmsjit, with the current values of the variables."""
    try:
        group, indices = _one_group(state_dict["param_groups"])
        if len(indices) != len(variables):
            raise ValueError(
                f"it has {len(indices)} parameters, and there are {len(variables)} variables"
            )
        names = dict(zip(indices, variables, strict=True))
        states = {names[index]: state for index, state in state_dict["state"].items()}
        weights = _saved_weights(states, group)
        iterations = int(max((float(state["step"]) for state in states.values()), default=0))
        config = {
            "learning_rate": float(group["lr"]),
            "rho": float(group["alpha"]),
            "momentum": float(group["momentum"]),
            "epsilon": float(group["eps"]),
            "centered": bool(group["centered"]),
        }
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"it is none of torch.optim.RMSprop: {type(error).__name__}: {error}"
        ) from error
    optimizer = SavedOptimizer("RMSprop", "RMSprop", config, _torch_form(group), iterations)
    return Checkpoint(optimizer, saved_variables(variables), weights)


def _one_group(groups: Any) -> tuple[dict[str, Any], list[Any]]:
    """The hyperparameters, which must be the same in all groups, and the indices of parameters."""
    merged: list[dict[str, Any]] = [{**_TORCH_DEFAULTS, **group} for group in groups]
    first = merged[0]
    for name in ("lr", "alpha", "eps", *_TORCH_DEFAULTS):
        values = [group[name] for group in merged]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"its groups differ in {name}: {values}; use one rmsjit optimizer for each"
            )
    if first["weight_decay"] != 0 or first["maximize"]:
        raise ValueError("it has weight_decay or maximize, which rmsjit lacks")
    return first, [index for group in merged for index in group["params"]]


def _saved_weights(
    states: Mapping[str, Mapping[str, Any]], group: Mapping[str, Any]
) -> list[SavedWeight]:
    """The slots of all parameters, in the order in which rmsjit creates them."""
    weights = []
    for slot in _torch_form(group).slot_names:
        for name, state in states.items():
            value = _array(state[_TORCH_SLOTS[slot]])
            if slot == MOMENTUM.name:
                value = (value.astype(np.float64) * float(group["lr"])).astype(value.dtype)
            weights.append(SavedWeight(name, slot, value))
    return weights


def _torch_form(group: Mapping[str, Any]) -> Form:
    """The form of a torch optimizer, which has epsilon outside of the root even with momentum."""
    form = keras_legacy(centered=bool(group["centered"]), momentum=False)
    return form.with_momentum() if group["momentum"] > 0 else form


def _array(value: Any) -> NDArray[Any]:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # not supported by Tensor.numpy
        import torch

        bits: NDArray[Any] = tensor.view(torch.int16).numpy()
        return bits.view(dtype_named("bfloat16"))
    array: NDArray[Any] = tensor.numpy()
    return array
