"""The state of ``optax.rmsprop``: tuples of its transformations, with trees of arrays in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.tensors import array_of_tensor
from rmsjit.checkpoints.compare import Variables
from rmsjit.exchange.losses import refuse_losses
from rmsjit.exchange.state import (
    State,
    check_arguments,
    check_kind,
    next_numbers,
    refuse_unbuilt,
    state_of,
    write_state,
)
from rmsjit.optimizers.base import Optimizer
from rmsjit.rule.form import Form
from rmsjit.rule.slot import MG, MOMENTUM, RMS

_FIELDS = {"nu": RMS.name, "mu": MG.name, "trace": MOMENTUM.name}
_COUNT = "count"
_CARRIED = {
    "ScaleByRmsState",
    "ScaleByRmsWithCountState",
    "ScaleByRStdDevState",
    "ScaleByRStdDevWithCountState",
    "TraceState",
    "ScaleByScheduleState",
    "EmptyState",  # of what remembers nothing, such as clipping
}

Replace = Callable[[str, Any], Any]  # of a field and its value


def from_optax_state(state: Any, variables: Variables, optimizer: Any) -> Any:
    """Continue with the state of ``optax.rmsprop``.

    Parameters
    ----------
    state : tuple
        As ``init`` and ``update`` of the transformation give it, or of a chain with clipping or
        weight decay in it; its arrays may be NumPy's.
    variables : dict of str to ndarray or Variable
        By the paths that they have in the tree of parameters, such as ``"layer/kernel"`` for
        ``params["layer"]["kernel"]``.  Their values are left alone.
    optimizer : RMSprop or train.RMSPropOptimizer
        Must have the same form and slots; its state is replaced, not its hyperparameters.

    Returns
    -------
    RMSprop or train.RMSPropOptimizer
        `optimizer`; `iterations` is what the state counts, where it does.

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If the form differs (the message lists all that would be lost), the state is another
        transformation's, or paths or shapes differ.  Nothing is changed then.

    See Also
    --------
    to_optax_state : The reverse.

    Notes
    -----
    The ``trace`` of optax is the negative of the momentum here.

    A state does not tell where epsilon is, nor whether momentum is Nesterov's: `optimizer` must
    have both as the transformation does.

    Examples
    --------
    ::

        opt = rmsjit.RMSprop(0.01, epsilon=1e-8, form=rmsjit.Form(epsilon="inside"))
        rmsjit.interop.from_optax_state(state, {"w": w, "b": b}, opt)
    """
    check_arguments(optimizer, variables)
    trees, counts = _content(state)
    _refuse_other_form(trees, state, optimizer)
    slots = {_FIELDS[field]: _arrays(field, tree, variables) for field, tree in trees.items()}
    if MOMENTUM.name in slots:
        slots[MOMENTUM.name] = {
            name: np.array(-array) for name, array in slots[MOMENTUM.name].items()
        }
    iterations = max((int(array_of_tensor(count)) for count in counts), default=None)
    write_state(State(slots, iterations), optimizer, variables)
    return optimizer


def to_optax_state(optimizer: Any, variables: Variables, state: Any) -> Any:
    """The state as ``update`` of ``optax.rmsprop`` takes it, with NumPy arrays in it.

    Parameters
    ----------
    optimizer : RMSprop or train.RMSPropOptimizer
    variables : dict of str to ndarray or Variable
        All that the optimizer has stepped, by their paths as for `from_optax_state`.
    state : tuple
        A state of that transformation, such as ``init(params)`` gives; it is left as it is.

    Returns
    -------
    tuple
        Of the same structure, with copies of the slots as NumPy arrays.

    Raises
    ------
    TypeError, ValueError
        As `from_optax_state` does; or if a variable has taken no step and is not built.

    See Also
    --------
    from_optax_state : The reverse.

    Examples
    --------
    ::

        tx = optax.rmsprop(0.01)
        state = rmsjit.interop.to_optax_state(opt, {"w": w, "b": b}, tx.init(params))
        updates, state = tx.update(gradients, state, params)
    """
    taken = state_of(optimizer, variables)
    refuse_unbuilt(taken, optimizer, variables)
    trees, _ = _content(state)
    _refuse_other_form(trees, state, optimizer)
    for field, tree in trees.items():
        theirs = _arrays(field, tree, variables)
        for name, value in taken.slots[_FIELDS[field]].items():
            check_kind(f"{field} of {name!r}", value, theirs[name])

    def replaced(field: str, value: Any) -> Any:
        if field == _COUNT:
            return np.array(taken.iterations or 0, array_of_tensor(value).dtype)
        arrays = taken.slots[_FIELDS[field]]
        if field == "trace":
            return _mapped(value, lambda path, _: np.array(-arrays[path]))
        return _mapped(value, lambda path, _: arrays[path].copy())

    return _with(state, replaced)


def _content(state: Any) -> tuple[dict[str, Any], list[Any]]:
    """The trees of arrays by the names of their fields, and all counts of steps."""
    trees: dict[str, Any] = {}
    counts = []
    for part in _parts(state):
        for field in part._fields:
            if field == _COUNT:
                counts.append(getattr(part, field))
            elif field in trees:
                raise ValueError(f"state must be of one rmsprop, got {field} twice")
            else:
                trees[field] = getattr(part, field)
    if "nu" not in trees:
        raise ValueError("state must be of optax.rmsprop, got one without nu")
    return trees, counts


def _parts(state: Any) -> Iterator[Any]:
    """The states of the transformations in a chain, within which chains may be."""
    name = type(state).__name__
    if name in _CARRIED and hasattr(state, "_fields"):
        yield state
    elif type(state) in (tuple, list):
        for part in state:
            yield from _parts(part)
    else:
        raise ValueError(f"state must be of optax.rmsprop, got {name}, which would be lost")


def _with(state: Any, replaced: Replace) -> Any:
    """A state of the same structure, with other values in the fields of all its parts."""
    if hasattr(state, "_fields"):
        fields = {field: replaced(field, getattr(state, field)) for field in state._fields}
        return type(state)(**fields)
    return type(state)(_with(part, replaced) for part in state)


def _refuse_other_form(trees: Mapping[str, Any], state: Any, optimizer: Optimizer) -> None:
    """Raise `ValueError` if the forms differ in what a state of optax tells."""
    ours, slots = optimizer._store.form, [_FIELDS[field] for field in trees]
    bias_correction = any(type(part).__name__.endswith("WithCountState") for part in _parts(state))
    there = Form.with_slots(
        *slots,
        rms_start=ours.slot(RMS.name).start,
        epsilon=ours.epsilon,
        nesterov=ours.nesterov and MOMENTUM.name in slots,
        bias_correction=bias_correction,
        weight_decay=ours.weight_decay,
        complex_square="modulus",
    )
    refuse_losses(
        ours,
        there,
        "optax.rmsprop",
        momentum=float(ours.has_momentum or there.has_momentum),
        weight_decay=next_numbers(optimizer).weight_decay,
        is_complex=any(v.dtype.kind == "c" for v in optimizer.variables_seen),
    )


# --- trees ----------------------------------------------------------------------------------


def _arrays(field: str, tree: Any, variables: Variables) -> dict[str, NDArray[Any]]:
    """The arrays of a tree by their paths, which must be the names of the variables."""
    arrays: dict[str, NDArray[Any]] = {}

    def note(path: str, leaf: Any) -> None:
        arrays[path] = array_of_tensor(leaf)

    _mapped(tree, note)
    missing, unknown = variables.keys() - arrays.keys(), arrays.keys() - variables.keys()
    if missing or unknown:
        raise ValueError(
            f"the paths in {field} must be the names of the variables; only here: "
            f"{', '.join(sorted(missing)) or 'none'}; only there: "
            f"{', '.join(sorted(unknown)) or 'none'}"
        )
    return arrays


def _mapped(tree: Any, function: Callable[[str, Any], Any], path: str = "") -> Any:
    """A tree of the same structure, with `function` of the path and value of each leaf."""

    def mapped(key: Any, branch: Any) -> Any:
        return _mapped(branch, function, f"{path}/{key}" if path else str(key))

    if isinstance(tree, Mapping):
        return type(tree)({key: mapped(key, branch) for key, branch in tree.items()})  # type: ignore[call-arg]
    if hasattr(tree, "_fields"):
        return type(tree)(*(mapped(name, getattr(tree, name)) for name in tree._fields))
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped(number, branch) for number, branch in enumerate(tree))
    if not hasattr(tree, "dtype"):
        raise ValueError(f"{path or 'the tree'} must be an array, got {type(tree).__name__}")
    return function(path, tree)
