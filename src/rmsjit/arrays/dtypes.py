"""The dtypes that variables may have, and the types that compiled code stores and computes in."""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

ARITHMETIC = "arithmetic"  # as the dtype of a slot


class Precision(NamedTuple):
    """How compiled code stores a dtype and computes with it."""

    name: str  # of the dtype
    storage: str  # the type in compiled code, an integer for half types (`rmsjit.kernels.scalars`)
    computing: str  # the real dtype of the arithmetic and of the hyperparameters
    real: str  # the storage type of an element's real components
    components: int = 1  # real components per element: 2 for complex dtypes

    @property
    def is_half(self) -> bool:
        """Whether elements are stored in 16 bits."""
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

_PACKED = {  # of slots, in blocks (`rmsjit.arrays.blocks`)
    precision.name: precision
    for precision in (
        Precision("8bit", "int8", "float32", "int8"),
        Precision("unsigned 8bit", "uint8", "float32", "uint8"),
        Precision("fine 8bit", "int8", "float32", "int8"),
    )
}


@functools.cache  # NumPy takes microseconds to build the name of a dtype
def precision_of(dtype: np.dtype[Any]) -> Precision | None:
    """The `Precision` of a dtype, or None if rmsjit can't train it."""
    return _PRECISIONS.get(dtype.name) if dtype.isnative else None


def uncastable(name: str, dtype: np.dtype[Any], target: np.dtype[Any]) -> TypeError:
    """The error that the dtype of an argument does not cast to another one as same_kind."""
    return TypeError(f"{name} must have a dtype that casts to {target} as same_kind, got {dtype}")


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype with this name, including bfloat16 from ml_dtypes.

    Raises
    ------
    ImportError
        If the name is "bfloat16" and ml_dtypes is not installed.
    """
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise ImportError("bfloat16 needs ml_dtypes: pip install ml_dtypes") from error
        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def converted(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """The array in another dtype, not copied if it has that dtype already.

    Overflow and other floating-point errors are ignored, whatever `np.errstate` says; a number too
    large for the dtype becomes infinite.
    """
    if array.dtype == dtype:  # to ignore errors takes longer than to see that there are none
        return array
    with np.errstate(all="ignore"):
        return array.astype(dtype)


class Kinds(NamedTuple):
    """The names of the types that a kernel is compiled for."""

    variable: str  # the storage type of variables and gradients
    slots: tuple[str, ...]  # the storage type of each slot
    computing: str  # the real type of the hyperparameters of a step, as wide as the widest of these
    total: str  # the type in which gradients are summed


def slot_precision(precision: Precision, name: str | None) -> Precision:
    """The precision of a slot, from that of the variable and the dtype in `rmsjit.Slot`."""
    if name is None:
        return precision
    if name == ARITHMETIC:
        return _PRECISIONS[precision.computing] if precision.is_half else precision
    return _PACKED.get(name) or _PRECISIONS[name]


@functools.cache
def kinds_of(precision: Precision, slot_dtypes: tuple[str | None, ...]) -> Kinds:
    """The types for a variable's precision and the dtypes of its slots, as in `rmsjit.Slot`."""
    slots = [slot_precision(precision, name) for name in slot_dtypes]
    computing = np.result_type(precision.computing, *(slot.computing for slot in slots)).name
    total = precision.storage if precision.components == 2 else computing
    return Kinds(precision.storage, tuple(slot.storage for slot in slots), computing, total)
