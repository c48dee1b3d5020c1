"""`save` and `load`: an optimizer and its variables in one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rmsjit.arrays.layout import layout_of
from rmsjit.checkpoints.array_file import DTYPES, ending_of, read_arrays, write_arrays
from rmsjit.checkpoints.atomic_file import replacing
from rmsjit.checkpoints.compare import (
    Variables,
    check_all_named,
    check_optimizer,
    check_variables,
    class_of,
    key_of,
    sharing_of,
)
from rmsjit.checkpoints.content import (
    Checkpoint,
    SavedOptimizer,
    SavedVariable,
    SavedWeight,
    decoded,
    encoded,
)
from rmsjit.checkpoints.restore import new_optimizer, new_variables, restore
from rmsjit.optimizers.base import Optimizer
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.optimizers.tf1 import RMSPropOptimizer
from rmsjit.variables import array_of


def save(path: str | os.PathLike[str], optimizer: Optimizer, variables: Variables) -> None:
    """Write variables and the optimizer's state to one file.

    Parameters
    ----------
    path : path_like
        Ends in ``.npz`` or, with the package of that name, ``.safetensors``.
    optimizer : RMSprop or train.RMSPropOptimizer
    variables : dict of str to ndarray or Variable
        At least every variable that the optimizer has stepped or built.  Others, such as a step
        count or a frozen table, are saved as well.

    Raises
    ------
    ImportError
        If the file is to be ``.safetensors`` and that package is not installed.
    OSError
        If the file can't be written; an older file is still there, whole.
    TypeError
        If `variables` holds something that is no array of numbers, or the optimizer's
        configuration something that JSON can't; it is named.
    ValueError
        If the ending is another, a variable of the optimizer is missing, or two variables share a
        part of their memory.

    See Also
    --------
    load : Read the file, or restore from it in place.

    Notes
    -----
    The file is written under another name, synced to the disk and renamed: whenever the process
    is killed, `path` is the old file or the new one, whole.  What a killed process has left, a
    folder ``.<file name>.<8 characters>.saving``, is removed by the next `save` to the same path.

    Other threads must not step meanwhile.

    No pickle is involved.  ``.npz`` files hold a checksum of each array; ``.safetensors`` files
    do not.

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

    Another process reads it back, or restores its own arrays:

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
    checkpoint = _taken(optimizer, variables)
    try:
        text, arrays = encoded(checkpoint)
    except TypeError as error:
        raise TypeError(f"the configuration of {optimizer!r} is not for JSON: {error}") from error
    with replacing(path) as draft:
        write_arrays(draft, text, arrays)


def load(
    path: str | os.PathLike[str],
    optimizer: Optimizer | None = None,
    variables: Variables | None = None,
    *,
    custom_objects: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Restore what `save` has written: in place where `optimizer` and `variables` are given.

    Parameters
    ----------
    path : path_like
        Ends in ``.npz`` or ``.safetensors``.
    optimizer : RMSprop or train.RMSPropOptimizer, optional
        Of the class and form that was saved; its state is replaced.  Learning rate and the other
        hyperparameters stay as they are, since changing them on resuming is the user's choice.
        By default a new optimizer is made, with the hyperparameters that were saved.
    variables : dict of str to ndarray or Variable, optional
        Of the names, shapes and dtypes that were saved; overwritten.  By default new arrays are
        made that lie in memory as those that were saved: by rows or columns, and as one memory
        where two names shared theirs.
    custom_objects : dict, optional
        Classes by name, for a new optimizer: of schedules that rmsjit does not know, and of
        subclasses of its optimizers.

    Returns
    -------
    optimizer : RMSprop or train.RMSPropOptimizer
    variables : dict of str to ndarray or Variable
        Those given, or new ones.

    Raises
    ------
    ImportError
        If a package is missing: ``safetensors``, or ``ml_dtypes`` for bfloat16.
    OSError
        If the file can't be opened.
    TypeError
        If an argument is of a wrong type.
    ValueError
        If the file is damaged, of another kind or of a newer format version, or if it does not
        fit: each difference is named.  Nothing has been changed then.

    See Also
    --------
    save : With examples.

    Notes
    -----
    A run that is resumed continues bit for bit, as if it had never stopped.

    Functions are not saved: of a hyperparameter that is one the value is that the last step used,
    of ``gradient_transformers`` and the like nothing.  Give an `optimizer` that has them.

    A momentum that was set after construction must be set before loading, too.  Weights that
    `RMSprop.add_weight` has added must have been added; slots need not.
    """
    if optimizer is not None:
        check_optimizer(optimizer)
    if variables is not None:
        check_variables(variables)
    text, arrays = read_arrays(path)
    try:
        checkpoint = decoded(text, arrays)
        if optimizer is None:
            optimizer = new_optimizer(checkpoint, custom_objects)
        if variables is None:
            variables = new_variables(checkpoint)
        restore(checkpoint, optimizer, variables)
    except ValueError as error:
        raise ValueError(f"{path} can't be loaded: {error}") from error
    return optimizer, variables


def _taken(optimizer: Optimizer, variables: Variables) -> Checkpoint:
    """A checkpoint of the very arrays, not of copies."""
    check_all_named(optimizer, variables)
    optimizer.sync()  # a file holds no clocks of rows that have missed steps
    sharing = sharing_of(variables, variables)
    saved = {}
    for name, variable in variables.items():
        array = array_of(variable)
        saved[name] = SavedVariable(array, layout_of(array), sharing[name])
    return Checkpoint(_saved_optimizer(optimizer), saved, _saved_weights(optimizer, variables))


def _saved_weights(optimizer: Optimizer, variables: Variables) -> list[SavedWeight]:
    store = optimizer._store
    names = {key_of(variable): name for name, variable in reversed(list(variables.items()))}
    saved = []
    for (key, title), weight in store.created.items():
        name = names[key] if key in store.entries else None
        value = weight.array
        if name is not None and title in store.entries[key].slots:
            value = array_of(store.slot_of(variables[name], title))  # with the variable's axes
        if value.dtype.name not in DTYPES:
            raise TypeError(f"{weight.name} must hold numbers, got dtype {value.dtype}")
        saved.append(SavedWeight(name, title, value))
    return saved


def _saved_optimizer(optimizer: Optimizer) -> SavedOptimizer:
    return SavedOptimizer(
        class_name=class_of(optimizer).__name__,
        subclass=type(optimizer).__name__,
        config=_config_of(optimizer),
        form=optimizer._store.form,
        iterations=int(optimizer.iterations) if isinstance(optimizer, RMSprop) else None,
        skipped_steps=optimizer.skipped_steps,
    )


def _config_of(optimizer: Optimizer) -> dict[str, Any]:
    """The constructor's arguments; a callable as the value that a step has used."""
    own = {"sparse": "exact" if optimizer._exact else "rows", "nonfinite": optimizer._nonfinite}
    # Only where they are not the defaults: a subclass need not take what it does not use.
    extra = {name: value for name, value in own.items() if value not in ("rows", "propagate")}
    if isinstance(optimizer, RMSprop):
        return optimizer.get_config() | extra
    assert isinstance(optimizer, RMSPropOptimizer)
    numbers = optimizer._hyperparameters
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
