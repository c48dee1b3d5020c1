"""`Traced`: the result of computing with variables while a tape records.

It is an autograd box that also works as an array elsewhere: plain NumPy functions accept it, and it
prints as a number and converts to one.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rmsjit.autodiff import hooks, sparse
from rmsjit.autodiff.autograd_names import (
    ArrayBox,
    ArrayVSpace,
    Box,
    anp,
    call_ufunc,
    isbox,
    notrace_primitives,
    recordable,
)
from rmsjit.autodiff.corrected import VERSIONS
from rmsjit.autodiff.corrected.arguments import refuse_out, refused
from rmsjit.autodiff.corrected.numbers import power
from rmsjit.autodiff.record import TapeNode, is_differentiable
from rmsjit.autodiff.rules import name_of
from rmsjit.variables import UNTRACED, Variable, arrays_of, mapped


def _method(name: str, function: Any) -> Callable[..., Any]:
    """The method of a result that does the same as a function of NumPy."""
    version = VERSIONS[function]

    def method(self: Traced, *args: Any, **keywords: Any) -> Any:
        if self.is_recorded:
            return version(self, *args, **keywords)
        return getattr(self.array, name)(*_with_constants(args), **_with_constants(keywords))

    return method


class Traced(ArrayBox, hooks.Recorded):  # type: ignore[misc]  # autograd has no types
    """The result of a computation with variables while a tape records.

    It can be used like an array, with NumPy and ``autograd.numpy``.  `numpy`, ``float`` and the
    like return its values.  Once no tape records it any more, all NumPy functions treat it as an
    ordinary array.
    """

    __slots__ = ()

    @property
    def array(self) -> NDArray[Any]:
        """The values, not copied."""
        return self._value  # type: ignore[no-any-return]

    @property
    def stands_for(self) -> NDArray[Any] | None:
        """The watched array, if this is its stand-in."""
        return self._node.array  # type: ignore[no-any-return]

    @property
    def is_recorded(self) -> bool:
        """Whether a tape that is recording now knows this result."""
        return any(self._node in record.steps for record in hooks.records())

    def numpy(self) -> Any:
        """A copy of the values: an array, or a NumPy scalar if the shape is ``()``."""
        return self._value.copy()[()]

    def item(self) -> Any:
        """The only element as a Python number."""
        return self._value.item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self._value.tolist()

    def copy(self) -> Any:
        """A copy, recorded by the tape."""
        return anp.array(self)

    def astype(self, dtype: DTypeLike, **options: Any) -> Any:
        """The values in another dtype; integers and booleans are constants to the tape."""
        if not is_differentiable(np.dtype(dtype)):
            return self.array.astype(dtype, **options)
        if np.dtype(dtype).kind == "c" and self.dtype.kind != "c":
            # With astype alone, autograd would cast the complex gradient back with a warning.
            return ArrayBox.astype(self + 0j, dtype, **options)
        return super().astype(dtype, **options)

    def reshape(self, *shape: Any, **options: Any) -> Any:
        """The same as ``np.reshape``, whose shape may also be given as several arguments."""
        return VERSIONS[np.reshape](self, shape[0] if len(shape) == 1 else shape, **options)

    def transpose(self, *axes: Any) -> Any:
        """The same as ``np.transpose``, whose axes may also be given as several arguments."""
        return VERSIONS[np.transpose](self, axes[0] if len(axes) == 1 else axes or None)

    clip = _method("clip", np.clip)
    flatten = _method("flatten", np.ravel)
    max = _method("max", np.max)
    mean = _method("mean", np.mean)
    min = _method("min", np.min)
    prod = _method("prod", np.prod)
    ravel = _method("ravel", np.ravel)
    repeat = _method("repeat", np.repeat)
    std = _method("std", np.std)
    sum = _method("sum", np.sum)
    var = _method("var", np.var)

    def conj(self) -> Any:
        """The complex conjugates."""
        return anp.conj(self)

    def dot(self, other: Any) -> Any:
        """The same as ``np.dot(self, other)``."""
        return anp.dot(self, other)

    @property
    def real(self) -> Any:
        return anp.real(self)

    @property
    def imag(self) -> Any:
        return anp.imag(self)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Any:
        # A function unknown to autograd converts its arguments silently, and the tape would take
        # its result for a constant.
        if self.is_recorded:
            return hooks.refuse_conversion("a result", sys._getframe(1))
        return np.array(self._value, dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if not self.is_recorded:
            return getattr(ufunc, method)(*_with_constants(inputs), **_with_constants(kwargs))
        if any(map(hooks.is_sparse, inputs)):
            raise TypeError(
                f"a tape can record `matrix @ x` and `x @ matrix` for a sparse matrix, but not "
                f"{ufunc.__name__}: use matrix.toarray()"
            )
        if ufunc is np.sign and self.dtype.kind == "c":  # autograd takes it for a constant
            raise refused(ufunc, "complex numbers", "use z / np.abs(z)")
        is_refused = kwargs and "out" not in kwargs and method == "__call__"
        if is_refused and not _is_constant(recordable(ufunc)):
            raise refused(ufunc, f"{next(iter(kwargs))}=", "use astype or np.where on the result")
        inputs = tuple(np.asarray(x) if isinstance(x, (list, tuple)) else x for x in inputs)
        result = call_ufunc(self, ufunc, method, inputs, kwargs)
        if result is NotImplemented and all(isinstance(value, _OURS) for value in inputs):
            raise TypeError(
                f"a tape can't record {ufunc.__name__} as {method}"
                f"{' with out=, as by an operator like +=' if 'out' in kwargs else ''}"
            )
        return result

    def __array_function__(
        self, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if function in _WITHOUT_VALUES:
            return function(*arrays_of(args), **arrays_of(kwargs))
        if not self.is_recorded:
            return function(*_with_constants(args), **_with_constants(kwargs))
        version = _recordable(function, args)
        if not _is_constant(version):
            refuse_out(function, kwargs)
        return version(*args, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):  # autograd's derivative would take booleans for integers
            index = np.asarray(index, None if index else np.intp)
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        self._check_not_stored(sys._getframe(1))
        return float(self._value)

    def __int__(self) -> int:
        self._check_not_stored(sys._getframe(1))
        return int(self._value)

    def __complex__(self) -> complex:
        self._check_not_stored(sys._getframe(1))
        return complex(self._value)

    def _check_not_stored(self, caller: FrameType) -> None:
        if hooks.is_stored(caller) and self.is_recorded:
            hooks.refuse_conversion("a result", caller)

    # Results do not change, and a copy would be unknown to tapes.
    def __copy__(self) -> Traced:
        return self

    def __deepcopy__(self, known: dict[int, Any]) -> Traced:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        if self.is_recorded:
            hooks.refuse_conversion("a result", sys._getframe(1))
        return np.asarray, (self._value,)

    def __matmul__(self, other: Any) -> Any:
        if hooks.is_sparse(other):
            return sparse.from_right(self, other)
        return super().__matmul__(other)

    def __rmatmul__(self, other: Any) -> Any:
        if hooks.is_sparse(other):
            return sparse.from_left(other, self)
        return super().__rmatmul__(other)

    def __pow__(self, other: Any) -> Any:
        return power(self, other)

    def __rpow__(self, other: Any) -> Any:
        return power(other, self)

    def __pos__(self) -> Any:
        return self

    def __floordiv__(self, other: Any) -> Any:
        return anp.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return anp.floor_divide(other, self)

    def __format__(self, spec: str) -> str:
        return format(self._value[()], spec) if spec else str(self)

    def __str__(self) -> str:
        return str(self._value)

    def __repr__(self) -> str:
        return f"<rmsjit result: shape={self.shape} dtype={self.dtype}, numpy={self._value[()]!r}>"


# If all inputs of a ufunc have these types, no other type can take over the call.
_OURS = (Box, Variable, np.ndarray, np.generic, int, float, complex)


# These don't read values, so they may get the array instead of the result.
_WITHOUT_VALUES = frozenset({np.ndim, np.shape, np.size, np.iscomplexobj, np.result_type})

# These take lists of arrays.  Only autograd's versions look for boxes inside lists.
_OF_LISTS: dict[Any, Callable[..., Any]] = {
    np.append: anp.append,
    np.column_stack: anp.column_stack,
    np.concatenate: VERSIONS[np.concatenate],
    np.hstack: anp.hstack,
    np.stack: anp.stack,
    np.vstack: anp.vstack,
}


def _with_constants(arguments: Any) -> Any:
    """The arguments, with results that no tape records now replaced by their arrays."""

    def plain(value: Any) -> Any:
        return value.array if isinstance(value, Traced) and not value.is_recorded else value

    return mapped(plain, arguments)


def _is_constant(version: Any) -> bool:
    """Whether tapes take the result for a constant, as that of a comparison."""
    return version in notrace_primitives[TapeNode]


def _recordable(function: Any, args: tuple[Any, ...]) -> Callable[..., Any]:
    """autograd's version of a NumPy function called with these positional arguments."""
    if function in _OF_LISTS:
        return _OF_LISTS[function]
    version = VERSIONS.get(function) or recordable(function)
    if version is None:
        raise TypeError(f"autograd has no version of {name_of(function)} that a tape could record")
    if not any(isbox(argument) and argument._trace != UNTRACED for argument in args):
        # autograd would not see the box and would call NumPy's function, which called us.
        raise TypeError(
            f"a tape can record {name_of(function)} only if variables and results are positional "
            f"arguments, not inside lists or given by keyword"
        )
    return version


def _box(value: Any, trace: float, node: Any) -> ArrayBox:
    if type(node) is TapeNode:
        array = np.asarray(value)
        if array.dtype == object:
            raise TypeError("a tape can't record a function that returns Python objects")
        return Traced(array, trace, node)
    return ArrayBox(value, trace, node)


def _register() -> None:
    """Make autograd create `Traced` boxes for tape nodes."""
    with contextlib.suppress(ImportError):
        import ml_dtypes

        ArrayBox.register(ml_dtypes.bfloat16)
        ArrayVSpace.register(ml_dtypes.bfloat16)
    for value_type, box_type in list(Box.type_mappings.items()):
        if box_type is ArrayBox and value_type is not ArrayBox:
            Box.type_mappings[value_type] = _box
    Box.types.add(Traced)
    Box.type_mappings[Traced] = ArrayBox  # an inner autograd.grad boxes a tape's box


def register_variable_types(kind: type[Variable] = Variable) -> None:
    """Make autograd's functions treat variables, also of subclasses, as boxes."""
    if kind not in Box.types:
        Box.types.add(kind)
        Box.type_mappings[kind] = lambda value, *rest: ArrayBox(hooks.read(value), *rest)
    for subclass in kind.__subclasses__():
        register_variable_types(subclass)


_register()
