"""`save` and `load`: an optimizer and its variables in one file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, overload

from numpy.typing import NDArray

from rmsjit.arrays.blocks import as_bytes
from rmsjit.checkpoints.array_file import DTYPES, ending_of, read_arrays, write_arrays
from rmsjit.checkpoints.atomic_file import replacing
from rmsjit.checkpoints.compare import (
    Variables,
    check_all_named,
    check_optimizer,
    check_variables,
    class_of,
    saved_variables,
)
from rmsjit.checkpoints.content import (
    Checkpoint,
    SavedGroup,
    SavedOptimizer,
    SavedWeight,
    decoded,
    encoded,
)
from rmsjit.checkpoints.groups import add_saved_groups, saved_groups
from rmsjit.checkpoints.loss_scales import scale_state
from rmsjit.checkpoints.restore import new_optimizer, new_variables, restore
from rmsjit.checkpoints.rounds import saved_round
from rmsjit.optimizers.base import Optimizer
from rmsjit.optimizers.keras_config import own_config_of
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.optimizers.tf1 import RMSPropOptimizer
from rmsjit.runtime.warning import warn
from rmsjit.state.entries import key_of
from rmsjit.state.packed_slot import PackedSlot
from rmsjit.variables import array_of

# Mostly an RMSprop.  If this were the union with the other class, which lacks some of its methods,
# type checkers would refuse what is right.
Made = RMSprop | Any

Given = TypeVar("Given", bound=Optimizer)
Named = TypeVar("Named", bound=Variables)


def save(path: str | os.PathLike[str], optimizer: Optimizer, variables: Variables) -> None:
    """Write variables and the optimizer's state to one file.

    Parameters
    ----------
    path : path_like
        Ends in ``.npz`` or ``.safetensors``; the latter needs the safetensors package.
    optimizer : RMSprop or train.RMSPropOptimizer
    variables : dict of str to ndarray or Variable
        At least every variable that the optimizer has stepped or built.  Others, such as a step
        count or a frozen table, are saved as well.

    Raises
    ------
    ImportError
        If the file is to be ``.safetensors`` and safetensors is not installed.
    OSError
        If the file can't be written; an older file stays complete.
    TypeError
        If `variables` contains something that is not an array of numbers, or the optimizer's
        configuration contains a value that JSON does not support; the message names it.
    ValueError
        If the path has another suffix, a variable of the optimizer is missing, or two variables
        overlap in part.

    See Also
    --------
    load : Read the file, or restore from it in place.

    Notes
    -----
    The file is written under another name, synced to disk and renamed.  So if the process is killed
    at any time, `path` is the complete old file or the complete new one.  A killed process leaves a
    folder ``.<file name>.<8 characters>.saving``, which the next `save` to the same path removes.

    Other threads must not step the optimizer at the same time.

    Files contain no pickled objects.  ``.npz`` files have a checksum of each array;
    ``.safetensors`` files do not.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import rmsjit
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "run.npz")
    >>> w = np.ones(3)
    >>> opt = rmsjit.RMSprop(0.5)
    >>> for _ in range(2):
    ...     _ = opt.apply_gradients([(w, w)])
    >>> rmsjit.save(path, opt, {"w": w})

    Read it back in another process, or restore existing arrays:

    >>> opt, variables = rmsjit.load(path)
    >>> bool((variables["w"] == w).all()), int(opt.iterations)
    (True, 2)
    >>> w, opt = np.zeros(3), rmsjit.RMSprop(0.5)
    >>> _ = rmsjit.load(path, opt, {"w": w})
    >>> bool((variables["w"] == w).all()), int(opt.iterations)
    (True, 2)
    >>> folder.cleanup()
    """
    ending_of(path)
    check_optimizer(optimizer)
    check_variables(variables)
    checkpoint = taken(optimizer, variables)
    try:
        text, arrays = encoded(checkpoint)
    except TypeError as error:
        raise TypeError(f"JSON can't hold the configuration of {optimizer!r}: {error}") from error
    with replacing(path) as draft:
        write_arrays(draft, text, arrays)


@overload
def load(
    path: str | os.PathLike[str],
    optimizer: None = None,
    variables: None = None,
    *,
    custom_objects: Mapping[str, Any] | None = None,
) -> tuple[Made, dict[str, NDArray[Any]]]: ...


@overload
def load(
    path: str | os.PathLike[str],
    optimizer: None = None,
    *,
    variables: Named,
    custom_objects: Mapping[str, Any] | None = None,
) -> tuple[Made, Named]: ...


@overload
def load(
    path: str | os.PathLike[str],
    optimizer: Given,
    variables: None = None,
    *,
    custom_objects: Mapping[str, Any] | None = None,
) -> tuple[Given, dict[str, NDArray[Any]]]: ...


@overload
def load(
    path: str | os.PathLike[str],
    optimizer: Given,
    variables: Named,
    *,
    custom_objects: Mapping[str, Any] | None = None,
) -> tuple[Given, Named]: ...


def load(
    path: str | os.PathLike[str],
    optimizer: Optimizer | None = None,
    variables: Variables | None = None,
    *,
    custom_objects: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Load a file that `save` has written, in place if `optimizer` and `variables` are given.

    Parameters
    ----------
    path : path_like
        Ends in ``.npz`` or ``.safetensors``.
    optimizer : RMSprop or train.RMSPropOptimizer, optional
        Must have the saved class, form and groups of variables; its state is replaced.  The
        learning rate and the other hyperparameters, those of groups among them, do not change, so
        you can resume with different ones; only what a `ReduceOnPlateau` knows of the metrics is
        restored.  By default a new optimizer is created with the saved hyperparameters.
    variables : dict of str to ndarray or Variable, optional
        Must have the saved names, shapes and dtypes; they are overwritten.  By default new arrays
        are created with the memory layout of the saved ones: in C or F order, and sharing memory
        if those did.
    custom_objects : dict, optional
        Classes by name, for a new optimizer: the user's own schedules and subclasses of rmsjit's
        optimizers.

    Returns
    -------
    optimizer : RMSprop or train.RMSPropOptimizer
    variables : dict of str to ndarray or Variable
        The arguments, or new ones.

    Raises
    ------
    ImportError
        If a package is missing: ``safetensors``, or ``ml_dtypes`` for bfloat16.
    OSError
        If the file can't be opened.
    TypeError
        If an argument is of a wrong type.
    ValueError
        If the file is damaged, has another format or a newer format version, or does not fit; the
        message lists the differences.  Nothing is changed in this case.

    See Also
    --------
    save : With examples.

    Notes
    -----
    A resumed run continues bit for bit, as if it had never stopped.

    Functions are not saved.  For a hyperparameter that is a function, the value that the last step
    used is saved; ``gradient_transformers`` and the like are left out.  Pass an `optimizer` that
    has them; otherwise, a warning names them.

    If a momentum was set after construction, set it before loading, too.  Weights that were added
    by `RMSprop.add_weight` must be added before loading; slots need not.
    """
    if optimizer is not None:
        check_optimizer(optimizer)
    if variables is not None:
        check_variables(variables)
    text, arrays = read_arrays(path)
    lost: tuple[str, ...] = ()
    try:
        checkpoint = decoded(text, arrays)
        if variables is None:
            variables = new_variables(checkpoint)
        if optimizer is None:
            lost = checkpoint.optimizer.functions
            optimizer = new_optimizer(checkpoint, custom_objects)
            add_saved_groups(checkpoint, optimizer, variables, custom_objects)
        restore(checkpoint, optimizer, variables)
    except ValueError as error:
        raise ValueError(f"{path} can't be loaded: {error}") from error
    if lost:
        warn(
            f"{path} was saved with functions, which a file can't hold: {', '.join(lost)}. The new "
            f"optimizer uses their last values, and leaves hooks out. To continue the run, pass an "
            f"optimizer that has them: load(path, optimizer, variables)"
        )
    return optimizer, variables


def taken(optimizer: Optimizer, variables: Variables) -> Checkpoint:
    """A checkpoint whose arrays are not copied."""
    check_all_named(optimizer, variables)
    optimizer.sync()  # the file format has no clocks for rows that have missed steps
    weights = _saved_weights(optimizer, variables)
    accumulated = saved_round(optimizer, variables)
    saved = _saved_optimizer(optimizer, saved_groups(optimizer, variables))
    return Checkpoint(saved, saved_variables(variables), weights, accumulated)


def _saved_weights(optimizer: Optimizer, variables: Variables) -> list[SavedWeight]:
    store = optimizer._store
    names = {key_of(variable): name for name, variable in reversed(list(variables.items()))}
    saved = []
    for (key, title), weight in list(store.created.items()):
        name = names[key] if key in store.entries else None
        if isinstance(weight, PackedSlot):
            value = as_bytes(weight.records)  # in the order of the variable in memory
        elif name is not None and title in store.entries[key].slots:
            value = array_of(store.slot_of(variables[name], title))  # with the axes of the variable
        else:
            value = weight.array
        if value.dtype.name not in DTYPES:
            raise TypeError(f"{weight.name} must hold numbers, got dtype {value.dtype}")
        saved.append(SavedWeight(name, title, value))
    return saved


def _saved_optimizer(optimizer: Optimizer, groups: list[SavedGroup]) -> SavedOptimizer:
    if isinstance(optimizer, RMSprop) and int(optimizer.iterations) < 0:
        raise ValueError(f"iterations must not be negative, got {int(optimizer.iterations)}")
    return SavedOptimizer(
        class_name=class_of(optimizer).__name__,
        subclass=type(optimizer).__name__,
        config=_config_of(optimizer),
        form=optimizer._store.form,
        iterations=int(optimizer.iterations) if isinstance(optimizer, RMSprop) else None,
        skipped_steps=optimizer.skipped_steps,
        groups=groups,
        loss_scale=scale_state(optimizer),
        functions=tuple(_functions_of(optimizer)),
    )


def _functions_of(optimizer: Optimizer) -> Iterator[str]:
    """The names of functions that an optimizer has, which are not saved."""
    yield from optimizer._hyperparameters.functions
    for number, group in enumerate(optimizer._hyperparameters.groups):
        yield from (f"{name} of group {number}" for name in group.functions)
    for name in ("gradient_transformers", "gradient_aggregator"):
        if getattr(optimizer, name, None):
            yield name


def _config_of(optimizer: Optimizer) -> dict[str, Any]:
    """The constructor's arguments; for a callable, the value that the last step used."""
    settings = optimizer._settings
    own = {"sparse": "exact" if settings.exact else "rows", "nonfinite": settings.nonfinite}
    # Defaults are left out, since a subclass need not accept arguments that it does not use.
    extra = {name: value for name, value in own.items() if value not in ("rows", "propagate")}
    if isinstance(optimizer, RMSprop):
        return own_config_of(optimizer) | extra
    assert isinstance(optimizer, RMSPropOptimizer)
    numbers = optimizer._hyperparameters
    extra |= optimizer._further_arguments(numbers.last)
    return {
        "learning_rate": numbers.last("learning_rate"),
        "decay": numbers.last("rho"),
        "momentum": numbers.last("momentum"),
        "epsilon": numbers.last("epsilon"),
        "use_locking": optimizer._use_locking,
        "centered": optimizer._store.form.centered,
        "name": optimizer._name,
        **extra,
    }
