"""The dtypes that a variable may have, and the types that compiled code stores and computes in."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray


@dataclass(frozen=True, eq=False)  # one object for each dtype, compared by identity
class Precision:
    """How a dtype is stored and computed.

    Attributes
    ----------
    name : str
        The dtype's name.
    storage : str
        What compiled code sees: half types travel as integers (`rmsjit.kernels.scalars`).
    computing : str
        The real dtype of the arithmetic and of the hyperparameters.
    real : str
        The storage of the real numbers that an element is made of.
    components : int
        How many of them: 2 for a complex dtype.
    """

    name: str
    storage: str
    computing: str
    real: str
    components: int = 1

    @property
    def is_half(self) -> bool:
        """Whether elements are rounded to 16 bits where they are stored."""
        return self.name.endswith("float16")


_PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("float16", "uint16", "float32", "uint16"),
        Precision("bfloat16", "int16", "float32", "int16"),
        Precision("float32", "float32", "float32", "float32"),
        Precision("float64", "float64", "float64", "float64"),
        Precision("complex64", "complex64", "float32", "float32", components=2),
        Precision("complex128", "complex128", "float64", "float64", components=2),
    )
}

SUPPORTED = tuple(_PRECISIONS)


@functools.cache  # a dtype's name takes microseconds to make
def precision_of(dtype: np.dtype[Any]) -> Precision | None:
    """The `Precision` of a dtype, or None where rmsjit can't train it."""
    return _PRECISIONS.get(dtype.name) if dtype.isnative else None


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype of a name; bfloat16 is not NumPy's own.

    Raises
    ------
    ImportError
        If the name is "bfloat16" and ml_dtypes is not installed.
    """
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def converted(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """An array in another dtype, or itself; overflow and the like pass, whatever `np.errstate`.

    A number too large for the dtype becomes infinite.
    """
    with np.errstate(all="ignore"):
        return array.astype(dtype, copy=False)


class Kinds(NamedTuple):
    """The types that a kernel is compiled for, by name.

    Attributes
    ----------
    variable : str
        What variables and gradients are stored in.
    slots : tuple of str
        What each slot is stored in.
    computing : str
        The real type of the numbers of a step, as wide as the widest of these.
    total : str
        What sums of gradients are made in.
    """

    variable: str
    slots: tuple[str, ...]
    computing: str
    total: str


@functools.cache
def kinds_of(precision: Precision, slot_dtypes: tuple[str | None, ...]) -> Kinds:
    """The types for variables of a precision whose slots have these dtypes; None for the same."""
    slots = [precision if name is None else _PRECISIONS[name] for name in slot_dtypes]
    computing = np.result_type(precision.computing, *(slot.computing for slot in slots)).name
    total = precision.storage if precision.components == 2 else computing
    return Kinds(precision.storage, tuple(slot.storage for slot in slots), computing, total)
