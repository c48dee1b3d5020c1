"""Reading (gradient, variable) pairs and checking each of them, before anything is written."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import SUPPORTED, Precision, converted, precision_of, uncastable
from rmsjit.arrays.layout import layout_of, overlaps_itself
from rmsjit.arrays.masked import refuse_masked
from rmsjit.indexed_slices import IndexedSlices, maker_of_slices
from rmsjit.runtime.warning import warn
from rmsjit.text import brief
from rmsjit.variables import Variable, array_of

_MOST_INDICES = 2**31 - 1  # positions are kept in 32 bits

Pairs = tuple[Any, ...]
Position = int | str  # of a pair in its list; or its path in the structures of `RMSprop.step`


def pairs_of(grads_and_vars: Iterable[Any]) -> Pairs:
    """The items of an iterable as a tuple, which no other code can change.

    Raises
    ------
    TypeError
        If it is not iterable.
    """
    try:
        return tuple(grads_and_vars)
    except TypeError:
        if hasattr(grads_and_vars, "__iter__"):
            raise  # the error comes from the iterator itself
        raise TypeError(
            f"grads_and_vars must be an iterable of (gradient, variable) pairs, "
            f"got {type(grads_and_vars).__name__}"
        ) from None


def warn_if_used_up(grads_and_vars: Iterable[Any]) -> None:
    """Warn of an iterator without pairs, such as a `zip` that an earlier step has used up."""
    if hasattr(grads_and_vars, "__next__"):
        warn(
            f"grads_and_vars is a {type(grads_and_vars).__name__} object without pairs, so nothing "
            f"is updated: an iterator can be used only once, make another one for each step"
        )


def checked_pairs(pairs: Pairs) -> Pairs:
    """The same pairs, each as a plain tuple.

    Raises
    ------
    TypeError
        If one is not a tuple or list of two.
    """
    plain = True
    for position, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                f"grads_and_vars[{position}] must be a (gradient, variable) pair, got {brief(pair)}"
            )
        plain = plain and type(pair) is tuple
    return pairs if plain else tuple((gradient, variable) for gradient, variable in pairs)


def check_counter(counter: NDArray[Any] | None) -> None:
    """Raise `ValueError` if the counter of steps is read-only."""
    if counter is not None and not counter.flags.writeable:
        raise ValueError("iterations must be writeable, got a read-only Variable")


def present_pairs(given: Pairs) -> list[tuple[Any, Any]]:
    """The pairs with a gradient, each checked; one warning names the others.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `check_variable`, `dense_gradient` and `sparse_gradient` do.
    ValueError
        If no variable has a gradient.
    """
    pairs, missing = split_pairs(given)
    if not pairs:
        raise no_gradient(missing)
    if missing:
        warn_of_missing(missing)
    return pairs


def split_pairs(given: Pairs) -> tuple[list[tuple[Any, Any]], list[str]]:
    """The pairs with a gradient, and the names of the other variables; all are checked.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `check_variable`, `dense_gradient` and `sparse_gradient` do.
    """
    pairs: list[tuple[Any, Any]] = []
    missing: list[str] = []
    for position, (gradient, variable) in enumerate(checked_pairs(given)):
        check_variable(variable, position)
        if gradient is None:
            missing.append(naming(variable, position))
        elif isinstance(gradient, IndexedSlices):
            sparse_gradient(gradient, variable, position)
            values = converted(gradient.values, array_of(variable).dtype)
            slices = IndexedSlices(values, gradient.indices, gradient.dense_shape)
            pairs.append((slices, variable))
        else:
            array = dense_gradient(gradient, variable, position)
            pairs.append((converted(array, array_of(variable).dtype), variable))
    return pairs, missing


def no_gradient(names: Sequence[str]) -> ValueError:
    """The error for a step without a single gradient."""
    return ValueError(
        f"no gradient was given for any variable, or the loss depends on none: {', '.join(names)}"
    )


def changed_meanwhile() -> RuntimeError:
    """The error for a step whose variables other code changes while it is prepared."""
    return RuntimeError("variables must not be changed by others while a step reads them")


def warn_of_missing(names: Sequence[str]) -> None:
    """Warn about the variables that a step leaves unchanged."""
    warn(f"no gradient for {', '.join(names)}: left unchanged")


def check_is_array(variable: Any, position: Position) -> None:
    """Raise `TypeError` unless a variable is or holds an array."""
    if not isinstance(array_of(variable), np.ndarray):
        raise TypeError(
            f"{naming(variable, position)} must be a NumPy array or an rmsjit.Variable, "
            f"got {brief(variable)}"
        )


def check_variable(variable: Any, position: Position) -> Precision:
    """Check that a variable can be trained; its precision.

    Raises
    ------
    TypeError
        If it is not an array, or has a dtype that rmsjit does not support.
    ValueError
        If it is read-only, or its elements share memory.
    """
    check_is_array(variable, position)
    array = array_of(variable)
    if type(array) is not np.ndarray:
        refuse_masked(array, naming(variable, position))
    precision = precision_of(array.dtype)
    if precision is None:
        raise TypeError(
            f"{naming(variable, position)} must have one of the dtypes {', '.join(SUPPORTED)} in "
            f"native byte order, got {array.dtype!r}"
        )
    if not array.flags.writeable:
        raise ValueError(
            f"{naming(variable, position)} must be writeable, got a read-only array of shape "
            f"{array.shape}"
        )
    if not array.flags.forc and overlaps_itself(layout_of(array).canonical(array)):
        raise ValueError(
            f"{naming(variable, position)} must have an element of its own at every index, got "
            f"strides {array.strides} for shape {array.shape}, which use memory twice"
        )
    return precision


def dense_gradient(gradient: Any, variable: Any, position: Position) -> NDArray[Any]:
    """The gradient as an array, of its variable's shape and of a dtype that can be cast.

    Raises
    ------
    TypeError
        If it is not an array of numbers, or casting its dtype would lose more than precision.
    ValueError
        If its shape is not the variable's.
    """
    if type(gradient) is not np.ndarray:
        refuse_masked(gradient, _gradient_of(variable, position))
    array = (
        gradient if isinstance(gradient, np.ndarray) else _as_array(gradient, variable, position)
    )
    target = array_of(variable)
    if not np.can_cast(array.dtype, target.dtype, "same_kind"):
        raise uncastable(_gradient_of(variable, position), array.dtype, target.dtype)
    if array.shape != target.shape:
        raise ValueError(
            f"{_gradient_of(variable, position)} must have its shape {target.shape}, "
            f"got {array.shape}"
        )
    return array


def sparse_gradient(
    gradient: IndexedSlices, variable: Any, position: Position
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The values and indices of a sparse gradient that fits its variable.

    Compiled code checks the range of the indices.  They are a copy, so that no other code can
    change them between the check and their use.

    Raises
    ------
    TypeError
        If casting the dtype of the values would lose more than precision.
    ValueError
        If the shapes do not fit, or there are too many indices.
    RuntimeError
        If the variable has a constraint.
    """
    where = _gradient_of(variable, position)
    target = array_of(variable)
    if isinstance(variable, Variable) and variable.constraint is not None:
        raise RuntimeError(f"{where} must not be sparse, since the variable has a constraint")
    if not np.can_cast(gradient.values.dtype, target.dtype, "same_kind"):
        raise uncastable(f"the values of {where}", gradient.values.dtype, target.dtype)
    if target.ndim == 0 or gradient.values.shape[1:] != target.shape[1:]:
        raise ValueError(
            f"{where} must have values of shape (n, *row) for a variable of shape "
            f"{target.shape}, got {gradient.values.shape}"
        )
    if gradient.dense_shape not in (None, target.shape):
        raise ValueError(
            f"{where} must have its shape {target.shape} as dense_shape, got {gradient.dense_shape}"
        )
    if len(gradient.indices) >= _MOST_INDICES:
        raise ValueError(f"{where} must have fewer than 2**31 indices, got {len(gradient.indices)}")
    return gradient.values, np.array(gradient.indices, np.int64)


def index_error(gradient: IndexedSlices, k: int, variable: Any, position: Position) -> IndexError:
    """The error for an index that is out of range."""
    rows = array_of(variable).shape[0]
    return IndexError(
        f"{_gradient_of(variable, position)} must have indices from 0 to {rows - 1} "
        f"for its {rows} rows, got {gradient.indices[k]} at position {k}"
    )


def _as_array(gradient: Any, variable: Any, position: Position) -> NDArray[Any]:
    gradient = array_of(gradient)
    if isinstance(gradient, np.ndarray):
        return gradient
    maker = maker_of_slices(gradient)
    if maker is not None:
        raise TypeError(
            f"{_gradient_of(variable, position)} must be an array or an rmsjit.IndexedSlices, got "
            f"a sparse {type(gradient).__name__}: give rmsjit.IndexedSlices.{maker}(gradient)"
        )
    known = isinstance(gradient, (list, tuple, numbers.Number, np.generic))
    if not (known or hasattr(gradient, "__array__")):
        raise TypeError(
            f"{_gradient_of(variable, position)} must be an array or a nested list, "
            f"got {brief(gradient)}"
        )
    try:
        return np.asarray(gradient)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{_gradient_of(variable, position)} must be an array or a nested list of numbers: "
            f"{error}"
        ) from None


def is_sparse(kind: type) -> bool:
    """Whether gradients of this type are sparse."""
    return issubclass(kind, IndexedSlices)


def check_indices(gradient: IndexedSlices, variable: Any, position: Position) -> None:
    """Raise `IndexError` if an index is not a row of the table."""
    outside = (gradient.indices < 0) | (gradient.indices >= len(array_of(variable)))
    if outside.any():
        raise index_error(gradient, int(outside.argmax()), variable, position)


def _gradient_of(variable: Any, position: Position) -> str:
    if isinstance(position, str):
        return f"gradients{position}, the gradient of params{position},"
    return f"the gradient of {naming(variable, position)}"


def naming(variable: Any, position: Position) -> str:
    """How messages name a variable."""
    if isinstance(position, str):
        return f"params{position}"
    if isinstance(variable, Variable):
        return f"variable {position} ({variable.name})"
    return f"variable {position}"
