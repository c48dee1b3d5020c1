"""`Variable`: a named array with the methods of ``tf.Variable``."""

from __future__ import annotations

import copy
import operator
import sys
from collections.abc import Callable, Iterator, ValuesView
from types import FrameType
from typing import Any, Self, SupportsIndex

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import ArrayLike, DTypeLike, NDArray

from rmsjit.arrays.masked import refuse_masked
from rmsjit.arrays.tensors import new_array
from rmsjit.arrays.written import written_arguments
from rmsjit.autodiff import hooks
from rmsjit.text import brief

_Method = Callable[..., Any]

UNTRACED = -2  # autograd treats a box with a trace below -1 as a constant


def _array_method(name: str) -> _Method:
    """A method that calls the one of the array, or of its stand-in while a tape records."""

    def method(self: Variable, *args: Any, **kwargs: Any) -> Any:
        return getattr(hooks.read(self), name)(*args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"``ndarray.{name}`` of the value, recorded by tapes."
    return method


# The dtypes of Python's numbers in TensorFlow.
_NARROWER = {
    "float64": np.float32,
    "int64": np.int32,
    "uint64": np.int32,
    "complex128": np.complex64,
}


class Variable(NDArrayOperatorsMixin):
    """A named array that optimizers update in place.

    rmsjit also accepts a plain writeable ``ndarray`` wherever it takes a variable.  This class adds
    a name, a constraint and the interface of ``tf.Variable``.  Arithmetic and NumPy functions treat
    a `Variable` as its array and return plain arrays, or differentiable results while a
    `rmsjit.GradientTape` records.

    ``v.array``, ``v.numpy()`` and ``float(v)`` always return plain values, which are constants to a
    tape.  ``np.asarray(v)`` and other implicit conversions return the array, but raise `TypeError`
    while a tape watches `v`, because it would treat whatever is computed from the array as a
    constant.

    Parameters
    ----------
    initial_value : array_like
        An ``ndarray`` is used without copying, so the variable and the array share memory.
        Anything else is converted.  Python floats, alone or in lists, become float32 and Python
        integers int32, as in TensorFlow; anything with a dtype, such as an array of another
        library or a list of NumPy scalars, keeps it.  A callable is called without arguments to
        get the value.
    name : str, optional
        Used in the names of slots and in error messages.
    dtype : dtype_like, optional
        Converts (and so copies) an `initial_value` of another dtype.
    trainable : bool, default True
        Whether `rmsjit.GradientTape` watches the variable automatically.  If False, optimizers
        leave it alone, whatever its gradient.
    constraint : callable, optional
        Called with the value after each update; its result becomes the value.

    Examples
    --------
    >>> v = Variable([1.0, 2.0], name="bias")
    >>> v
    <rmsjit.Variable 'bias:0' shape=(2,) dtype=float32, numpy=array([1., 2.], dtype=float32)>
    >>> (v * 2).tolist()
    [2.0, 4.0]
    """

    __slots__ = ("__weakref__", "_array", "_constraint", "_name", "_trainable")
    __array_priority__ = 100  # `ndarray - Variable` asks the variable first

    def __init__(
        self,
        initial_value: ArrayLike | Variable | Callable[[], ArrayLike],
        name: str | None = None,
        dtype: DTypeLike | None = None,
        trainable: bool = True,
        constraint: Callable[[NDArray[Any]], ArrayLike] | None = None,
    ) -> None:
        if constraint is not None and not callable(constraint):
            raise TypeError(f"constraint must be callable or None, got {constraint!r}")
        self._array = _as_array(
            initial_value() if callable(initial_value) else initial_value, dtype
        )
        self._name = name or "Variable"
        self._trainable = bool(trainable)
        self._constraint = constraint

    @property
    def name(self) -> str:
        """The name with ``:0`` appended, as TensorFlow writes it."""
        return self._name if ":" in self._name else f"{self._name}:0"

    @property
    def array(self) -> NDArray[Any]:
        """The memory itself, not a copy."""
        return self._array

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def size(self) -> int:
        return self._array.size

    @property
    def trainable(self) -> bool:
        return self._trainable

    @property
    def constraint(self) -> Callable[[NDArray[Any]], ArrayLike] | None:
        return self._constraint

    def numpy(self) -> NDArray[Any]:
        """A copy of the value: an array, or a NumPy scalar if the shape is ``()``.

        Later steps don't change the copy, but they do change ``np.asarray(v)`` and ``v.array``.
        """
        value: NDArray[Any] = self._array.copy()[()]  # a scalar has the methods of an array
        return value

    def value(self) -> Any:
        """Like `numpy`, but returns the recorded result if a tape watches the variable."""
        recorded = hooks.stand_in(self)
        return self.numpy() if recorded is None else recorded

    def read_value(self) -> Any:
        """Same as `value`."""
        return self.value()

    def item(self, *index: Any) -> Any:
        """One element as a Python number."""
        return self._array.item(*index)

    def tolist(self) -> Any:
        """The value as nested lists of Python numbers."""
        return self._array.tolist()

    def assign(self, value: ArrayLike) -> Variable:
        """Overwrite the value in place; a wrong shape raises `ValueError`.

        Tapes don't record this.  They refuse to differentiate operations that used the old value.
        """
        self._array[...] = self._checked(value)
        hooks.wrote([self._array])
        return self

    def assign_add(self, delta: ArrayLike) -> Variable:
        """Add `delta` in place; otherwise like `assign`."""
        self._array[...] += self._checked(delta)
        hooks.wrote([self._array])
        return self

    def assign_sub(self, delta: ArrayLike) -> Variable:
        """Subtract `delta` in place; otherwise like `assign`."""
        self._array[...] -= self._checked(delta)
        hooks.wrote([self._array])
        return self

    def _checked(self, value: ArrayLike) -> NDArray[Any]:
        value = array_of(value)
        refuse_masked(value, f"the value of {self.name}")
        array = np.asarray(value)
        if array.shape != self.shape:
            raise ValueError(f"{self.name} has shape {self.shape}, got a value of {array.shape}")
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise TypeError(f"{self.name} has dtype {self.dtype}, got a value of {array.dtype}")
        converted = array.astype(self.dtype, copy=False)
        are_integers = array.dtype.kind in "iu" and self.dtype.kind in "iu"
        if are_integers and not np.array_equal(converted, array):
            raise OverflowError(f"{self.name} has dtype {self.dtype}, got {brief(value)}")
        return converted

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Any:
        # Code that does not know tapes converts its arguments silently.
        if hooks.stand_in(self) is not None:
            return hooks.refuse_conversion(self.name, sys._getframe(1))
        if dtype is None or np.dtype(dtype) == self.dtype:
            return self._array.copy() if copy else self._array
        if copy is False:
            raise ValueError(f"{self.name}: converting {self.dtype} to {dtype} needs a copy")
        return self._array.astype(dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        compute = getattr(ufunc, method)
        written = inputs[:1] if method == "at" else kwargs.get("out", ())
        if not written:
            return compute(*map(_read, inputs), **mapped(_read, kwargs))
        for target in written:
            _check_unwatched(target)
        for operand in inputs:
            _check_unrecorded(operand)
        result = compute(*arrays_of(inputs), **arrays_of(kwargs))
        hooks.wrote(array_of(target) for target in written)
        # `v += x` must assign the variable to `v`, not its array.
        return written[0] if method != "at" and len(written) == 1 else result

    def __array_function__(
        self, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        written: list[Variable] = []
        if hooks.are_used():
            targets = written_arguments(function, args, kwargs)
            written = [target for target in targets if isinstance(target, Variable)]
        for target in written:
            _check_unwatched(target)
        result = function(*mapped(_read, args), **mapped(_read, kwargs))
        hooks.wrote(target.array for target in written)
        return result

    # These three make a variable look like one of autograd's boxes, also inside lists.  autograd
    # uses them once the first `rmsjit.GradientTape` has registered `Variable`.
    @property
    def _trace(self) -> float:
        recorded = hooks.stand_in(self)
        return UNTRACED if recorded is None else recorded._trace

    @property
    def _node(self) -> Any:
        return hooks.sources[id(self._array)]

    @property
    def _value(self) -> NDArray[Any]:
        return np.asarray(self._array)  # a plain array even for subclasses such as memmap

    all: _Method = _array_method("all")
    any: _Method = _array_method("any")
    argmax: _Method = _array_method("argmax")
    argmin: _Method = _array_method("argmin")
    argsort: _Method = _array_method("argsort")
    astype: _Method = _array_method("astype")
    clip: _Method = _array_method("clip")
    conj: _Method = _array_method("conj")
    copy: _Method = _array_method("copy")
    cumsum: _Method = _array_method("cumsum")
    dot: _Method = _array_method("dot")
    flatten: _Method = _array_method("flatten")
    max: _Method = _array_method("max")
    mean: _Method = _array_method("mean")
    min: _Method = _array_method("min")
    prod: _Method = _array_method("prod")
    ravel: _Method = _array_method("ravel")
    repeat: _Method = _array_method("repeat")
    reshape: _Method = _array_method("reshape")
    round: _Method = _array_method("round")
    squeeze: _Method = _array_method("squeeze")
    std: _Method = _array_method("std")
    sum: _Method = _array_method("sum")
    swapaxes: _Method = _array_method("swapaxes")
    transpose: _Method = _array_method("transpose")
    var: _Method = _array_method("var")

    @property
    def T(self) -> Any:  # noqa: N802  # NumPy's name
        return hooks.read(self).T

    @property
    def real(self) -> Any:
        return hooks.read(self).real

    @property
    def imag(self) -> Any:
        return hooks.read(self).imag

    # NumPy does not know products with scipy.sparse matrices.
    def __matmul__(self, other: Any) -> Any:
        return hooks.read(self) @ _read(other)

    def __rmatmul__(self, other: Any) -> Any:
        return other @ hooks.read(self)

    def __getitem__(self, index: Any) -> Any:
        return hooks.read(self)[arrays_of(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._array[arrays_of(index)] = array_of(value)
        hooks.wrote([self._array])

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Any]:
        return iter(hooks.read(self))

    def __pos__(self) -> Any:
        return +hooks.read(self)

    def __contains__(self, value: Any) -> bool:
        return array_of(value) in self._array

    def __float__(self) -> float:
        self._check_not_stored(sys._getframe(1))
        return float(self._array)

    def __int__(self) -> int:
        self._check_not_stored(sys._getframe(1))
        return int(self._array)

    def __index__(self) -> int:
        return self._array.__index__()

    def __bool__(self) -> bool:
        return bool(self._array)

    def __complex__(self) -> complex:
        self._check_not_stored(sys._getframe(1))
        return complex(self._array)

    def _check_not_stored(self, caller: FrameType) -> None:
        if hooks.records() and hooks.is_stored(caller) and hooks.stand_in(self) is not None:
            hooks.refuse_conversion(self.name, caller)

    # `==` compares elements, as for arrays, but variables are hashed by identity: TensorFlow code
    # relies on this through `Variable.ref()`.
    def __hash__(self) -> int:
        return id(self)

    def ref(self) -> int:
        """A hashable key that identifies this object."""
        return id(self)

    def __copy__(self) -> Self:
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with an array of its own; both have the same constraint."""
        state = super().__reduce_ex__(2)[2]
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        for name, value in {**(attributes or {}), **(slots or {})}.items():
            is_shared = name == "_constraint"
            setattr(copied, name, value if is_shared else copy.deepcopy(value, memo))
        return copied

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return super().__reduce_ex__(max(2, operator.index(protocol)))  # older ones know no slots

    def __format__(self, spec: str) -> str:
        return format(self._array, spec) if spec else str(self)

    def __repr__(self) -> str:
        value = repr(self._array) if self.ndim else str(self._array)
        return (
            f"<rmsjit.Variable '{self.name}' shape={self.shape} dtype={self.dtype}, numpy={value}>"
        )


def array_of(value: Any) -> Any:
    """The array of a `Variable` or of a recorded result; other values unchanged."""
    return value.array if isinstance(value, (Variable, hooks.Recorded)) else value


def is_trainable(variable: Any) -> bool:
    """Whether steps may change a variable: an array, or a `Variable` that is trainable."""
    return not isinstance(variable, Variable) or variable.trainable


def arrays_of(arguments: Any) -> Any:
    """Function arguments with `array_of` applied to each, also inside containers."""
    return mapped(array_of, arguments)


def _read(value: Any) -> Any:
    return hooks.read(value) if isinstance(value, Variable) else value


def mapped(change: Callable[[Any], Any], arguments: Any) -> Any:
    """Function arguments with `change` applied to each, also inside containers."""
    if isinstance(arguments, tuple):
        return tuple(mapped(change, argument) for argument in arguments)
    if isinstance(arguments, (list, ValuesView)):
        return [mapped(change, argument) for argument in arguments]
    if isinstance(arguments, dict):
        return {key: mapped(change, argument) for key, argument in arguments.items()}
    return change(arguments)


def _is_watched(value: Any) -> bool:
    """Whether a tape records what is computed from a variable."""
    return isinstance(value, Variable) and hooks.stand_in(value) is not None


def _check_unwatched(target: Any) -> None:
    if _is_watched(target):
        raise TypeError(
            f"an operator can't write to {target.name} while a tape watches it: use `v = v + x` "
            f"for a new value, or `v.assign` to overwrite it without recording"
        )


def _check_unrecorded(operand: Any) -> None:
    if _is_watched(operand):
        raise TypeError(
            f"{operand.name} can't be computed into an array while a tape watches it: use "
            f"`x = x + v` in place of `x += v`"
        )


def _as_array(value: Any, dtype: DTypeLike | None) -> NDArray[Any]:
    value = array_of(value)
    refuse_masked(value, "initial_value")
    if isinstance(value, np.ndarray):
        return value if dtype is None else value.astype(dtype, copy=False)
    array = new_array(value, dtype)
    if dtype is not None or not _is_plain(value):
        return array
    narrow = array.astype(_NARROWER.get(array.dtype.name, array.dtype))
    if array.dtype.kind in "iu" and not np.array_equal(narrow, array):
        raise OverflowError(f"initial_value must fit in int32 without a dtype, got {brief(value)}")
    return narrow


def _is_plain(value: Any) -> bool:
    """Whether a value consists of Python numbers only, which have no dtype."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (int, float, complex, range)) and not isinstance(value, np.generic)
