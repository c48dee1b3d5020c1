"""States of other runs, checked before they are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from rmsjit.torch.bound import check_slots
from rmsjit.torch.counts import STEP, fresh_counts, loaded_count
from rmsjit.torch.settings import check_saved, name_of

_Groups = Sequence[Mapping[str, Any]]
_Owners = dict[Any, tuple[Tensor, str]]  # parameters and what errors call them, by saved number


def prepared(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state for an optimizer, checked, with counts of its own side by side.

    Raises
    ------
    TypeError, ValueError
        If a setting or a part of the state is not valid.
    """
    for key in ("param_groups", "state"):
        if key not in state_dict:
            raise ValueError(f"state_dict must have {key!r}, got {', '.join(map(str, state_dict))}")
    groups, states = state_dict["param_groups"], state_dict["state"]
    for number, group in enumerate(groups):
        check_saved(group, number)
    if _sizes(groups) != _sizes(optimizer.param_groups):
        return state_dict  # which torch refuses
    owners = _owners(optimizer.param_groups, groups)
    for key, state in states.items():
        _check_state(key, state, owners)
    return {**state_dict, "state": _with_own_counts(states, owners)}


def _sizes(groups: _Groups) -> list[int]:
    return [len(group["params"]) for group in groups]


def _owners(ours: _Groups, saved: _Groups) -> _Owners:
    """The parameter of each saved state, and its name in errors."""
    return {
        key: (parameter, name_of(position, our, number))
        for number, (our, group) in enumerate(zip(ours, saved, strict=True))
        for position, (parameter, key) in enumerate(
            zip(our["params"], group["params"], strict=True)
        )
    }


def _check_state(key: Any, state: Any, owners: _Owners) -> None:
    if key not in owners:  # torch keeps it as it is
        return
    parameter, owner = owners[key]
    if not isinstance(state, Mapping):
        raise TypeError(f"the state of {owner} must be a dict, got {state!r}")
    if not is_lazy(parameter):  # whose shape is not known yet
        check_slots(parameter, state, owner)


def _with_own_counts(states: Mapping[Any, Any], owners: _Owners) -> dict[Any, Any]:
    counted = [key for key, state in states.items() if key in owners and STEP in state]
    numbers = [loaded_count(states[key][STEP], owners[key][1]) for key in counted]
    counts = fresh_counts(numbers)
    own = {key: {**states[key], STEP: c} for key, c in zip(counted, counts, strict=True)}
    return {**states, **own}
