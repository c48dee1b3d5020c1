"""The optimizer's variables in ``.keras`` and ``.weights.h5`` files.

Such a file numbers the variables of the optimizer and does not name them.  Keras skips all of them,
with a warning, where their number is not the expected one; here that is an error.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import dtype_named
from rmsjit.checkpoints.atomic_file import replacing
from rmsjit.checkpoints.compare import Variables
from rmsjit.exchange.keras_rounds import (
    TITLES,
    Place,
    calls_per_step,
    places_of,
    state_from,
    values_and_count,
)
from rmsjit.exchange.keras_variables import form_of, keras_form, refuse_other_form
from rmsjit.exchange.state import (
    State,
    check_arguments,
    check_kind,
    refuse_unbuilt,
    state_of,
    write_state,
)
from rmsjit.optimizers.base import Optimizer

_WEIGHTS, _CONFIG, _GROUP = "model.weights.h5", "config.json", "optimizer/vars"
_LARGEST_CONFIG = 2**26  # bytes; that of a large model takes a hundredth of it
_LIBRARY = "keras.optimizers.RMSprop"

Path = str | os.PathLike[str]


def from_keras_file(path: Path, variables: Variables, optimizer: Any) -> Any:
    """Continue with the optimizer's state in a file of Keras 3 or tf-keras.

    Parameters
    ----------
    path : path_like
        Ends in ``.keras`` or ``.weights.h5``.
    variables : dict of str to ndarray or Variable
        In the order of ``model.trainable_variables``, and all of them: such files number the
        optimizer's variables.  Their values are left alone.
    optimizer : RMSprop or train.RMSPropOptimizer
        Must have the same form and slots; its state is replaced, not its hyperparameters.

    Returns
    -------
    RMSprop or train.RMSPropOptimizer
        `optimizer`.

    Raises
    ------
    ImportError
        If h5py is not installed.
    OSError
        If the file can't be opened.
    TypeError
        If an argument is of a wrong type, or a ``.keras`` file holds another optimizer.
    ValueError
        If the form differs (the message lists all that would be lost), or the number or shapes of
        the variables do.  Nothing is changed then.

    See Also
    --------
    to_keras_file : The reverse.
    from_keras_optimizer : From an optimizer of Keras, by names.

    Notes
    -----
    A ``.weights.h5`` file does not say which optimizer it is of.

    Examples
    --------
    ::

        named = {v.path: v.numpy() for v in model.trainable_variables}
        opt = rmsjit.RMSprop(0.001, form=rmsjit.Form(epsilon="inside"))
        rmsjit.interop.from_keras_file("model.keras", named, opt)
    """
    check_arguments(optimizer, variables)
    try:
        with _opened(path) as (config, held):
            _check_config(config, optimizer)
            state = _read(held, optimizer, variables)
        write_state(state, optimizer, variables)
    except ValueError as error:
        raise ValueError(f"{path} can't be loaded: {error}") from error
    return optimizer


def to_keras_file(optimizer: Any, variables: Variables, path: Path) -> None:
    """Put the state of an optimizer into a file that Keras has saved.

    Parameters
    ----------
    optimizer : RMSprop or train.RMSPropOptimizer
    variables : dict of str to ndarray or Variable
        In the order of ``model.trainable_variables``, and all of them.
    path : path_like
        A ``.keras`` or ``.weights.h5`` file of a model whose optimizer is of that form, and was
        built.  All else in it stays, the learning rate and the model's own weights too.

    Raises
    ------
    ImportError
        If h5py is not installed.
    OSError
        If the file can't be read or written; the old one is still there, whole.
    TypeError, ValueError
        As `from_keras_file` does; or if a variable has taken no step and is not built.  The file
        has not been changed then.

    See Also
    --------
    from_keras_file : The reverse.
    """
    state = state_of(optimizer, variables, has_rounds=True)
    refuse_unbuilt(state, optimizer, variables)
    try:
        with _opened(path) as (config, held):
            _check_config(config, optimizer)
            changes = _changes(held, state, optimizer, variables)
    except ValueError as error:
        raise ValueError(f"{path} can't be written to: {error}") from error
    with replacing(path) as draft:
        if os.fspath(path).endswith(".keras"):
            _copy_archive(path, draft, changes)
        else:
            shutil.copyfile(path, draft)
            _overwrite(draft, changes)


def _check_config(config: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Raise an error if the file's optimizer, as far as it tells, has another form."""
    ours = optimizer._store.form
    if config:
        there = form_of(config)
    else:  # where it does not tell, it has what there is here
        there = keras_form(momentum=ours.has_momentum, centered=ours.centered)
        there = there.with_average() if ours.has_average else there
        config = {
            "use_ema": ours.has_average,
            "gradient_accumulation_steps": calls_per_step(optimizer),
        }
    refuse_other_form(config, there, _LIBRARY, optimizer)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The configuration of the optimizer, empty where there is none, and the variables it had."""
    h5py = _h5py()
    with contextlib.ExitStack() as stack:
        config: dict[str, Any] = {}
        file: Any = os.fspath(path)
        if file.endswith(".keras"):
            archive = stack.enter_context(_archive(path))
            config = _optimizer_config(archive)
            file = stack.enter_context(archive.open(_WEIGHTS))
        elif not file.endswith(".weights.h5"):
            raise ValueError("its name must end in .keras or .weights.h5")
        weights = stack.enter_context(h5py.File(file, "r"))
        if _GROUP not in weights:
            raise ValueError("it was saved without an optimizer, or the model was not compiled")
        held = dict(weights[_GROUP])
        if any(one.file != weights for one in held.values()):
            raise ValueError("its variables are links into another file")
        yield config, held


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("files of Keras need h5py: pip install h5py") from error
    return h5py


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is no .keras file: {error}") from error
    if not {_WEIGHTS, _CONFIG} <= set(archive.namelist()):
        archive.close()
        raise ValueError(f"it must hold {_CONFIG} and {_WEIGHTS}, got {archive.namelist()}")
    return archive


def _optimizer_config(archive: zipfile.ZipFile) -> dict[str, Any]:
    if archive.getinfo(_CONFIG).file_size > _LARGEST_CONFIG:
        raise ValueError(f"its {_CONFIG} must be below {_LARGEST_CONFIG} bytes")
    try:
        config: dict[str, Any] = json.loads(archive.read(_CONFIG))["compile_config"]["optimizer"]
        return dict(config["config"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"its {_CONFIG} describes no optimizer: {error!r}") from error


def _places(
    held: Mapping[str, Any], optimizer: Optimizer, variables: Variables
) -> dict[str, Place]:
    """What each number stands for, where all are as they must be."""
    keys = places_of(optimizer._store.form, optimizer, variables)
    first = len(held) - len(keys)
    if first not in (1, 2) or held.keys() != set(map(str, range(len(held)))):
        slots = ", ".join(dict.fromkeys(TITLES[slot] for slot, _ in keys))
        raise ValueError(
            f"it has {len(held)} optimizer variables, but must have {1 + len(keys)}, "
            f"or {2 + len(keys)} with the learning rate: iteration, and {slots} of each of the "
            f"{len(variables)} variables"
        )
    places = dict(zip(map(str, range(first, len(held))), keys, strict=True))
    for number, (slot, name) in places.items():
        _check_stored(f"{TITLES[slot]} of {name!r}", held[number], variables[name].shape)
    for number in map(str, range(first)):
        _check_stored("iteration and learning rate", held[number], ())
    return places


def _check_stored(title: str, dataset: Any, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` unless a dataset lies in this file and has this shape."""
    if getattr(dataset, "shape", None) != shape:
        raise ValueError(f"{title} must be of shape {shape}, got {dataset!r}")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{title} is stored in another file")


def _read(held: Mapping[str, Any], optimizer: Optimizer, variables: Variables) -> State:
    places = _places(held, optimizer, variables)
    values = {place: _value(held[number]) for number, place in places.items()}
    return state_from(values, int(held["0"][()]), optimizer, variables)


def _value(dataset: Any) -> NDArray[Any]:
    value = np.asarray(dataset[()])
    if dataset.attrs.get("dtype") == "bfloat16":  # which HDF5 does not know
        return value.view(dtype_named("bfloat16"))
    return value


def _changes(
    held: Mapping[str, Any], state: State, optimizer: Optimizer, variables: Variables
) -> dict[str, NDArray[Any]]:
    """The new values of the file's variables, by number."""
    places = _places(held, optimizer, variables)
    values, count = values_and_count(state, [*places.values()], optimizer, variables)
    changes = {"0": np.array(count, held["0"].dtype)}
    for number, (slot, name) in places.items():
        value = values[slot, name]
        check_kind(f"{TITLES[slot]} of {name!r}", value, _value(held[number]))
        changes[number] = value
    return changes


def _overwrite(file: Any, changes: Mapping[str, NDArray[Any]]) -> None:
    with _h5py().File(file, "r+") as weights:
        for number, value in changes.items():
            dataset = weights[_GROUP][number]
            dataset[...] = value if value.dtype == dataset.dtype else value.view(dataset.dtype)


def _copy_archive(path: Path, draft: Path, changes: Mapping[str, NDArray[Any]]) -> None:
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(draft, "w") as copy:
        for member in archive.infolist():
            content = io.BytesIO(archive.read(member))
            if member.filename == _WEIGHTS:
                _overwrite(content, changes)
            copy.writestr(member, content.getvalue())
