"""`Variable`: a name for an array, with the methods that TensorFlow users reach for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import ArrayLike, DTypeLike, NDArray

_PRINTED_ELEMENTS = 1000  # beyond this NumPy abbreviates, as it does for plain arrays


class Variable(NDArrayOperatorsMixin):
    """A named array that optimizers update in place.

    A plain writeable ``ndarray`` serves just as well wherever rmsjit takes a variable; this class
    adds a name, a constraint and the spelling of ``tf.Variable``.  Arithmetic and NumPy functions
    take a `Variable` for the array that it holds and give plain arrays back.

    Parameters
    ----------
    initial_value : array_like
        An ``ndarray`` of a dtype that rmsjit trains is held as it is, not copied, so that the
        variable and the array stay one memory.  Anything else is converted; Python floats become
        float32 and Python integers int32, as in TensorFlow.
    name : str, optional
        Appears in the names of slots and in error messages.
    dtype : dtype_like, optional
        Converts (and then copies) `initial_value` if it has another dtype.
    trainable : bool, default True
        Whether `rmsjit.GradientTape` watches the variable by itself.
    constraint : callable, optional
        Called with the value after each update; what it returns becomes the value.

    Examples
    --------
    >>> v = Variable([1.0, 2.0], name="bias")
    >>> v
    <rmsjit.Variable 'bias:0' shape=(2,) dtype=float32, numpy=array([1., 2.], dtype=float32)>
    >>> (v * 2).tolist()
    [2.0, 4.0]
    """

    __slots__ = ("__weakref__", "_array", "_constraint", "_name", "_trainable")
    __array_priority__ = 100  # so that `ndarray - Variable` asks the variable first

    def __init__(
        self,
        initial_value: ArrayLike | Variable,
        name: str | None = None,
        dtype: DTypeLike | None = None,
        trainable: bool = True,
        constraint: Callable[[NDArray[Any]], ArrayLike] | None = None,
    ) -> None:
        if constraint is not None and not callable(constraint):
            raise TypeError(f"constraint must be callable or None, got {constraint!r}")
        self._array = _as_array(initial_value, dtype)
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

    def numpy(self) -> Any:
        """A copy of the value: an array, or a NumPy scalar where the shape is ``()``.

        The value at this moment, as in TensorFlow; ``np.asarray(v)`` and ``v.array`` give the
        memory, which later steps change.
        """
        return self._array.copy()[()]

    def value(self) -> Any:
        """The same as `numpy`."""
        return self.numpy()

    def read_value(self) -> Any:
        """The same as `numpy`."""
        return self.numpy()

    def assign(self, value: ArrayLike) -> Variable:
        """Overwrite the value in place; a wrong shape raises `ValueError`."""
        self._array[...] = self._checked(value)
        return self

    def assign_add(self, delta: ArrayLike) -> Variable:
        """Add `delta` in place; a wrong shape raises `ValueError`."""
        self._array[...] += self._checked(delta)
        return self

    def assign_sub(self, delta: ArrayLike) -> Variable:
        """Subtract `delta` in place; a wrong shape raises `ValueError`."""
        self._array[...] -= self._checked(delta)
        return self

    def _checked(self, value: ArrayLike) -> NDArray[Any]:
        array = np.asarray(value)
        if array.shape != self.shape:
            raise ValueError(f"{self.name} has shape {self.shape}, got a value of {array.shape}")
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise TypeError(f"{self.name} has dtype {self.dtype}, got a value of {array.dtype}")
        return array.astype(self.dtype, copy=False)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if dtype is None or np.dtype(dtype) == self.dtype:
            return self._array.copy() if copy else self._array
        if copy is False:
            raise ValueError(f"{self.name}: converting {self.dtype} to {dtype} needs a copy")
        return self._array.astype(dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if "out" in kwargs:
            kwargs["out"] = tuple(array_of(target) for target in kwargs["out"])
        return getattr(ufunc, method)(*(array_of(value) for value in inputs), **kwargs)

    def __getitem__(self, index: Any) -> Any:
        return self._array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._array[index] = array_of(value)

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Any:
        return iter(self._array)

    def __float__(self) -> float:
        return float(self._array)

    def __int__(self) -> int:
        return int(self._array)

    def __index__(self) -> int:
        return self._array.__index__()

    def __bool__(self) -> bool:
        return bool(self._array)

    def __complex__(self) -> complex:
        return complex(self._array)

    # Variables are compared element by element, as arrays are, and still are keys of dictionaries
    # by their identity, which TensorFlow code relies on through `Variable.ref()`.
    def __hash__(self) -> int:
        return id(self)

    def ref(self) -> int:
        """A hashable stand-in for this very object."""
        return id(self)

    def __copy__(self) -> Variable:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Variable:
        copied = Variable(
            self._array.copy(), self._name, trainable=self._trainable, constraint=self._constraint
        )
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return Variable, (self._array, self._name, None, self._trainable, self._constraint)

    def __repr__(self) -> str:
        value = repr(self._array[()]) if self.ndim else _plain_number(self._array)
        return (
            f"<rmsjit.Variable '{self.name}' shape={self.shape} dtype={self.dtype}, numpy={value}>"
        )


def array_of(variable: Any) -> Any:
    """The array that a `Variable` holds; anything else as it is."""
    return variable._array if isinstance(variable, Variable) else variable


def _plain_number(array: NDArray[Any]) -> str:
    return str(array[()])


def _as_array(value: Any, dtype: DTypeLike | None) -> NDArray[Any]:
    if isinstance(value, Variable):
        value = value.array
    if isinstance(value, np.ndarray):
        return value if dtype is None else value.astype(dtype, copy=False)
    array = np.array(value, dtype)
    if dtype is not None or isinstance(value, np.generic):
        return array
    narrower = {"float64": np.float32, "int64": np.int32, "complex128": np.complex64}
    return array.astype(narrower.get(array.dtype.name, array.dtype))
