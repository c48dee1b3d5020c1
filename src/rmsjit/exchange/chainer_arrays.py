"""The arrays that Chainer saves of its RMSprop and RMSpropGraves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.checkpoints.compare import Variables
from rmsjit.exchange.losses import refuse_losses
from rmsjit.exchange.state import State, check_arguments, next_numbers, state_of, write_state
from rmsjit.optimizers.base import Optimizer
from rmsjit.rule.form import Form
from rmsjit.rule.slot import MG, MOMENTUM, RMS

_PLAIN = {RMS.name: "ms"}
_GRAVES = {RMS.name: "n", MG.name: "g", MOMENTUM.name: "delta"}
_STEPS, _EPOCH = "t", "epoch"


def from_chainer_arrays(arrays: Mapping[str, Any], variables: Variables, optimizer: Any) -> Any:
    """Continue with the state of Chainer's RMSprop or RMSpropGraves.

    Parameters
    ----------
    arrays : dict of str to ndarray
        As ``numpy.load`` gives the file of ``chainer.serializers.save_npz(path, optimizer)``.
    variables : dict of str to ndarray or Variable
        By the names of ``link.namedparams()``, such as ``"/l1/W"``.  Their values are left alone.
    optimizer : RMSprop or train.RMSPropOptimizer
        Must have the same form and slots; its state is replaced, not its hyperparameters.

    Returns
    -------
    RMSprop or train.RMSPropOptimizer
        `optimizer`.

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If the form differs (the message lists all that would be lost), or the names or shapes of
        the variables do.  Nothing is changed then.

    See Also
    --------
    to_chainer_arrays : The reverse.

    Notes
    -----
    ``delta`` of Graves's rule is the negative of the momentum here.  RMSprop's arrays do not tell
    where epsilon is: `optimizer` must have it as ``eps_inside_sqrt`` says.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit.interop
    >>> arrays = {"t": np.array(7), "epoch": np.array(0), "W/t": np.array(7), "W/ms": np.ones(2)}
    >>> w, opt = np.zeros(2), rmsjit.RMSprop(0.01, 0.99, epsilon=1e-8)
    >>> opt = rmsjit.interop.from_chainer_arrays(arrays, {"/W": w}, opt)
    >>> int(opt.iterations), opt.get_slot(w, "rms").numpy()
    (7, array([1., 1.]))
    """
    check_arguments(optimizer, variables)
    try:
        steps = int(arrays[_STEPS])
        parts = _by_variable(arrays)
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"arrays must be of an optimizer of Chainer: {error!r}") from error
    names = {name.strip("/"): name for name in variables}
    if names.keys() != parts.keys():
        raise ValueError(
            f"the variables must be those of Chainer's arrays, {', '.join(sorted(parts))}, got "
            f"{', '.join(sorted(names))}"
        )
    keys = {key for part in parts.values() for key in part}
    theirs = _GRAVES if keys & set(_GRAVES.values()) else _PLAIN
    unstepped = [names[path] for path, part in parts.items() if not part]
    _refuse_other_form(theirs, optimizer, unstepped)
    slots: dict[str, dict[str, NDArray[Any]]] = {slot: {} for slot in theirs}
    for path, part in parts.items():
        if part and part.keys() != set(theirs.values()):
            raise ValueError(f"{path} must have {', '.join(theirs.values())}, got {[*part]}")
        for slot, key in theirs.items():
            if part:  # else it has taken no step
                array = np.asarray(part[key])
                slots[slot][names[path]] = np.array(-array) if key == "delta" else array
    write_state(State(slots, steps), optimizer, variables)
    return optimizer


def to_chainer_arrays(optimizer: Any, variables: Variables, epoch: int = 0) -> dict[str, Any]:
    """The state as Chainer's RMSprop or RMSpropGraves saves it.

    Parameters
    ----------
    optimizer : RMSprop or train.RMSPropOptimizer
        Of the form of RMSprop, with the slot rms alone, or of RMSpropGraves, with all three.
    variables : dict of str to ndarray or Variable
        All that the optimizer has stepped, by the names of ``link.namedparams()``.
    epoch : int, default 0
        Which Chainer keeps beside the count of steps.

    Returns
    -------
    dict of str to ndarray
        Copies.  ``numpy.savez(path, **arrays)`` writes the file that
        ``chainer.serializers.load_npz(path, optimizer)`` reads.

    Raises
    ------
    TypeError, ValueError
        As `from_chainer_arrays` does.

    See Also
    --------
    from_chainer_arrays : The reverse.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit.interop
    >>> w, opt = np.zeros(2), rmsjit.RMSprop(0.01, 0.99, epsilon=1e-8)
    >>> _ = opt.apply_gradients([(np.ones(2), w)])
    >>> sorted(rmsjit.interop.to_chainer_arrays(opt, {"/W": w}))
    ['W/ms', 'W/t', 'epoch', 't']
    """
    state = state_of(optimizer, variables)
    theirs = _GRAVES if len(optimizer._store.form.slots) > 1 else _PLAIN
    _refuse_other_form(theirs, optimizer, [name for name in variables if not state.of(name)])
    steps = state.iterations or 0
    arrays: dict[str, Any] = {_STEPS: np.array(steps), _EPOCH: np.array(epoch)}
    for name in variables:
        path, held = name.strip("/"), state.of(name)
        arrays[f"{path}/{_STEPS}"] = np.array(steps if held else 0)
        for slot, value in held.items():
            key = theirs[slot]
            arrays[f"{path}/{key}"] = np.array(-value if key == "delta" else value)
    return arrays


def _by_variable(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arrays of each variable; none where it has taken no step."""
    parts: dict[str, dict[str, Any]] = {}
    for title in arrays:
        path, _, key = title.rpartition("/")
        if path:
            part = parts.setdefault(path, {})
            if key != _STEPS:
                part[key] = arrays[title]
    return parts


def _refuse_other_form(
    theirs: Mapping[str, str], optimizer: Optimizer, unstepped: Sequence[str]
) -> None:
    """Raise `ValueError` if the forms differ in what Chainer's arrays tell."""
    ours, is_graves = optimizer._store.form, theirs is _GRAVES
    there = Form.with_slots(
        *theirs,
        epsilon="inside" if is_graves else ours.epsilon,
        weight_decay=ours.weight_decay,  # a hook there
    )
    refuse_losses(
        ours,
        there,
        f"chainer.optimizers.{'RMSpropGraves' if is_graves else 'RMSprop'}",
        momentum=float(ours.has_momentum or is_graves),
        weight_decay=next_numbers(optimizer).weight_decay,
        unstepped=unstepped,
    )
