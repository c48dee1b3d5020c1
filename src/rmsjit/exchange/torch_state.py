"""The ``state_dict`` of ``torch.optim.RMSprop``, and of classes made after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import precision_of
from rmsjit.arrays.tensors import array_of_tensor, torch_tensor
from rmsjit.checkpoints.compare import Variables, check_optimizer, check_variables
from rmsjit.exchange.losses import refuse_losses
from rmsjit.exchange.state import (
    State,
    check_arguments,
    check_fit,
    next_numbers,
    state_of,
    write_state,
)
from rmsjit.forms.functions import function_of
from rmsjit.forms.library import Library
from rmsjit.forms.table import BY_NAME
from rmsjit.optimizers.base import Optimizer
from rmsjit.rule.form import Form
from rmsjit.rule.slot import MG, MOMENTUM, RMS

_NAMES = {RMS.name: "square_avg", MOMENTUM.name: "momentum_buffer", MG.name: "grad_avg"}
_DEFAULTS = {"momentum": 0.0, "centered": False, "weight_decay": 0.0}
_HYPERPARAMETERS = ("lr", "alpha", "eps", *_DEFAULTS)
_SHAPELESS = ("lr", "alpha", "eps")  # no form depends on their values
_REFUSED = {  # of no form; what to do instead
    "caution": "rmsjit has no step that leaves out elements",
    "corrected_weight_decay": "rmsjit has no decay by lr**2",
}


@dataclass(frozen=True)
class _Library:
    """A class with torch's layout of state, and how its layout differs from torch's."""

    row: Library  # of the table of forms
    title: str
    is_timm: bool = False  # which has options for the places of learning rate and decay
    counts_in_tensors: bool = True

    def arguments(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the class among the hyperparameters of a group."""
        return {a.name: group[a.name] for a in self.row.arguments if a.name in group}


_LIBRARIES = {
    "torch": _Library(BY_NAME["torch"], "torch.optim.RMSprop"),
    "timm": _Library(BY_NAME["timm"], "timm.optim.RMSpropTF", is_timm=True),
    "stable_baselines3": _Library(
        BY_NAME["stable_baselines3"],
        "stable_baselines3's RMSpropTFLike",
        counts_in_tensors=False,
    ),
    "pfrl": _Library(
        BY_NAME["pfrl"], "pfrl.optimizers.RMSpropEpsInsideSqrt", counts_in_tensors=False
    ),
}


def to_torch_state_dict(
    optimizer: Optimizer | Sequence[Optimizer],
    variables: Variables | Sequence[Variables],
    library: str = "torch",
) -> dict[str, Any]:
    """The state as ``load_state_dict`` of a torch optimizer takes it.

    Parameters
    ----------
    optimizer : RMSprop, train.RMSPropOptimizer, or list of them
        Of the form of that library; for torch that is epsilon outside of the root, and with
        momentum ``learning_rate="outside"``.  A list makes one group of parameters each, and so
        does each group of variables (`RMSprop.add_group`) after those that are in none.
    variables : dict of str to ndarray or Variable, or list of dict
        In the order of the parameters of the torch optimizer, group by group, and all of them; for
        a list of optimizers a list, in the order of the groups.
    library : {"torch", "timm", "stable_baselines3", "pfrl"}
        The library to write for: ``torch.optim.RMSprop``, or one with the same layout: RMSpropTF,
        RMSpropTFLike, or RMSpropEpsInsideSqrt.

    Returns
    -------
    dict
        ``state``, with tensors on the CPU that are copies, and ``param_groups`` with the
        hyperparameters of the next step.  Parameters are counted over all groups.

    Raises
    ------
    ImportError
        If torch is not installed.
    TypeError
        If an argument is of a wrong type, or a variable is complex, since torch squares the two
        parts separately.
    ValueError
        If the form differs, so that the run could not continue unchanged (the message lists the
        losses), or a variable of the optimizer is missing.

    See Also
    --------
    from_torch_state_dict : The reverse.

    Notes
    -----
    Variables that have taken no step are absent from ``state``, as they are in torch.  torch counts
    steps per parameter, rmsjit per optimizer; nothing is computed from the counts.

    Clipping and schedules are no part of a torch optimizer and are not carried over.

    Examples
    --------
    ::

        state_dict = rmsjit.interop.to_torch_state_dict(opt, {"w": w, "b": b})
        torch_opt = torch.optim.RMSprop([torch_w, torch_b])
        torch_opt.load_state_dict(state_dict)
    """
    like = _library(library)
    state: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    count = 0
    for one, named in _in_pairs(optimizer, variables):
        check_arguments(one, named)
        _check_real(named)
        taken = state_of(one, named)
        for row, part in _parts(one, named):
            group = _group_of(one, like, row)
            if one.maximize and not group.get("maximize"):
                raise ValueError(f"maximize=True would be lost: {like.title} has no such argument")
            unstepped = [name for name in part if not taken.of(name)]
            _refuse(one._store.form, _form_of(group, like), like, group, unstepped)
            group["params"] = list(range(count, count + len(part)))
            for number, (name, variable) in zip(group["params"], part.items(), strict=True):
                if name not in unstepped:
                    state[number] = _parameter_state(taken, name, variable.shape, group, like)
            groups.append(group)
            count += len(part)
    return {"state": state, "param_groups": groups}


def from_torch_state_dict(
    state_dict: Mapping[str, Any],
    variables: Variables | Sequence[Variables],
    optimizer: Any = None,
    library: str = "torch",
) -> Any:
    """An optimizer that continues the run of a torch optimizer.

    Parameters
    ----------
    state_dict : dict
        What ``state_dict()`` of the torch optimizer returns; arrays may replace tensors.
    variables : dict of str to ndarray or Variable, or list of dict
        With the shapes and dtypes of the parameters, in their order; where the groups have
        ``param_names``, of these names, in any order.  Values are left alone.  A list has one
        dict for each group of parameters; without it, all groups must have the same
        hyperparameters.
    optimizer : RMSprop, train.RMSPropOptimizer, or list of them, optional
        Its state is replaced, not its hyperparameters.  By default a new `RMSprop` is made, with
        form and hyperparameters of the group; for a list of variables a list of them.
    library : {"torch", "timm", "stable_baselines3", "pfrl"}
        The library it is from, as for `to_torch_state_dict`.

    Returns
    -------
    RMSprop, train.RMSPropOptimizer, or list of them
        `optimizer` or new ones; `iterations` is the highest ``step`` of the parameters.

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If `state_dict` does not fit the variables or the optimizer: each difference is named; or
        if it has what rmsjit lacks, such as ``caution``.  Nothing has been changed then.

    See Also
    --------
    to_torch_state_dict : The reverse.

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
    >>> int(opt.iterations), opt.rho, opt.form.learning_rate
    (7, 0.99, 'outside')
    >>> opt.get_slot(w, "momentum").numpy()
    array([1., 1.])
    """
    like = _library(library)
    one_dict = isinstance(variables, Mapping)
    pairs = _in_pairs(optimizer, variables)
    for given, named in pairs:
        check_variables(named)
        if given is not None:
            check_optimizer(given)
    try:
        groups, states = _read(state_dict)
        if one_dict:
            groups = [_merged(groups)]
        if len(groups) != len(pairs):
            raise ValueError(f"it has {len(groups)} groups, but variables has {len(pairs)} dicts")
        made = [
            _loaded(group, states, named, given, like)
            for group, (given, named) in zip(groups, pairs, strict=True)
        ]
        for state, one, named in made:
            check_fit(state, one, named)  # all of them, before the first is changed
    except ValueError as error:
        raise ValueError(f"the state_dict can't be loaded: {error}") from error
    for state, one, named in made:
        write_state(state, one, named)
    optimizers = [one for _, one, _ in made]
    return optimizers[0] if one_dict else optimizers


def _library(name: str) -> _Library:
    if name not in _LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(_LIBRARIES)}, got {name!r}")
    return _LIBRARIES[name]


def _in_pairs(optimizers: Any, variables: Any) -> list[tuple[Any, Any]]:
    """Each optimizer with its variables; None in place of optimizers that are to be made."""
    if isinstance(variables, Mapping):
        return [(optimizers, variables)]
    if not isinstance(variables, (list, tuple)):
        raise TypeError(
            f"variables must be a dict or a list of dicts, got {type(variables).__name__}"
        )
    if optimizers is None:
        return [(None, named) for named in variables]
    if not isinstance(optimizers, (list, tuple)) or len(optimizers) != len(variables):
        raise ValueError(
            f"optimizer must be a list of {len(variables)}, as variables are, got {optimizers!r}"
        )
    if len({id(one) for one in optimizers}) < len(optimizers):
        raise ValueError("optimizer must be a list of different optimizers, got one of them twice")
    return list(zip(optimizers, variables, strict=True))


def _refuse(
    here: Form, there: Form, like: _Library, group: Mapping[str, Any], unstepped: Sequence[str]
) -> None:
    refuse_losses(
        here,
        there,
        like.title,
        momentum=group["momentum"],
        weight_decay=group["weight_decay"],
        unstepped=unstepped,
    )


def _form_of(group: Mapping[str, Any], like: _Library) -> Form:
    """The form that a torch optimizer with these hyperparameters has."""
    given = like.arguments(group)
    return like.row.chosen({k: v for k, v in given.items() if k not in _SHAPELESS}).form


# --- to torch -------------------------------------------------------------------------------


def _check_real(variables: Variables) -> None:
    for name, variable in variables.items():
        precision = precision_of(variable.dtype)
        if precision is None or precision.components == 2:
            raise TypeError(f"variables[{name!r}] must be real, got dtype {variable.dtype}")


def _parts(optimizer: Optimizer, variables: Variables) -> Iterator[tuple[int, Variables]]:
    """The variables in no group, then those of each group, with the row of their numbers."""
    rows = {name: optimizer._store.row_of(variable) for name, variable in variables.items()}
    for row in range(len(optimizer.groups) + 1):
        part = {name: v for name, v in variables.items() if rows[name] == row}
        if part or not optimizer.groups:
            yield row, part


def _group_of(optimizer: Optimizer, like: _Library, row: int) -> dict[str, Any]:
    """The hyperparameters of the next step, as a group of parameters has them."""
    numbers, form = next_numbers(optimizer, row), optimizer._store.form
    group: dict[str, Any] = {
        "lr": numbers.learning_rate,
        "momentum": numbers.momentum,
        "alpha": numbers.rho,
        "eps": numbers.epsilon,
        "centered": form.centered,
        "weight_decay": numbers.weight_decay,
    }
    if like.is_timm:
        return group | {
            "decoupled_decay": form.weight_decay in ("decoupled", "subtracted"),
            "corrected_weight_decay": False,
            "lr_in_momentum": form.learning_rate == "inside",
            "caution": False,
            "foreach": None,
        }
    if like.counts_in_tensors:
        group |= {"capturable": False, "foreach": None}
        group |= {"maximize": optimizer.maximize, "differentiable": False}
    return group


def _parameter_state(
    taken: State,
    name: str,
    shape: tuple[int, ...],
    group: Mapping[str, Any],
    like: _Library,
) -> dict[str, Any]:
    held = taken.of(name)
    count = taken.iterations or 0
    step: Any = torch_tensor(np.array(count, np.float32)) if like.counts_in_tensors else count
    state = {"step": step, _NAMES[RMS.name]: torch_tensor(held[RMS.name])}
    if group["momentum"] > 0:  # torch wants it even before the first use
        fresh = np.zeros(shape, held[RMS.name].dtype)
        state[_NAMES[MOMENTUM.name]] = torch_tensor(held.get(MOMENTUM.name, fresh))
    if group["centered"]:
        state[_NAMES[MG.name]] = torch_tensor(held[MG.name])
    return state


# --- from torch -----------------------------------------------------------------------------

_States = Mapping[Any, Mapping[str, Any]]


def _read(state_dict: Any) -> tuple[list[dict[str, Any]], _States]:
    """The groups with all that is needed of them, and the state of each parameter."""
    try:
        groups = [{**_DEFAULTS, **group} for group in state_dict["param_groups"]]
        states = dict(state_dict["state"])
        numbers = [index for group in groups for index in group["params"]]
        if not groups or not states.keys() <= set(numbers) or len(set(numbers)) < len(numbers):
            raise ValueError(f"it has parameters {numbers} in groups, state for {[*states]}")
        for group in groups:
            for name in _HYPERPARAMETERS:
                group[name] = (bool if name == "centered" else float)(group[name])
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise _no_state_dict(error) from error
    return groups, states


def _no_state_dict(error: Exception) -> ValueError:
    return ValueError(f"it is not an RMSprop's state_dict: {type(error).__name__}: {error}")


def _merged(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """All parameters as one group, if the hyperparameters are those of each."""
    first = groups[0]
    for name in (*_HYPERPARAMETERS, "decoupled_decay", "lr_in_momentum", "maximize", *_REFUSED):
        values = [group.get(name) for group in groups]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"its groups differ in {name}: {values}; give a list of dicts of variables, one "
                f"for each group, to get as many optimizers"
            )
    merged = {**first, "params": [index for group in groups for index in group["params"]]}
    if all("param_names" in group for group in groups):
        merged["param_names"] = [name for group in groups for name in group["param_names"]]
    return merged


def _loaded(
    group: Mapping[str, Any], states: _States, variables: Variables, given: Any, like: _Library
) -> tuple[State, Any, Variables]:
    """The state of one group, with the optimizer that it is for."""
    for name, instead in _REFUSED.items():
        if group.get(name):
            raise ValueError(f"it has {name}: {instead}")
    if like.is_timm != ("lr_in_momentum" in group):
        raise ValueError(f"it is not of {like.title}: set library= to its library")
    ascends = bool(group.get("maximize"))
    if given is not None and ascends != given.maximize:
        raise ValueError(f"it has maximize={ascends}, the optimizer here {given.maximize}")
    form = _form_of(group, like)
    named = _by_name(group, states, variables)
    optimizer = function_of(like.row)(**like.arguments(group)) if given is None else given
    unstepped = [name for name in variables if name not in named]
    _refuse(optimizer._store.form, form, like, group, unstepped)
    try:
        slots: dict[str, dict[str, NDArray[Any]]] = {
            slot: {n: array_of_tensor(s[_NAMES[slot]]) for n, s in named.items()}
            for slot in form.slot_names
        }
        iterations = int(max((float(state["step"]) for state in named.values()), default=0))
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise _no_state_dict(error) from error
    return State(slots, iterations), optimizer, variables


def _by_name(
    group: Mapping[str, Any], states: _States, variables: Variables
) -> dict[str, Mapping[str, Any]]:
    """The states of a group's parameters that have taken a step, by the names of variables."""
    numbers, names = group["params"], list(variables)
    if len(numbers) != len(names):
        raise ValueError(f"it has {len(numbers)} parameters, and there are {len(names)} variables")
    if "param_names" in group:
        theirs = list(map(str, group["param_names"]))
        if sorted(theirs) != sorted(names):
            raise ValueError(
                f"its parameters have the names {theirs}, and the variables {names}; delete "
                f"'param_names' from the groups to go by their order"
            )
        names = theirs
    return {n: states[k] for k, n in zip(numbers, names, strict=True) if k in states}
