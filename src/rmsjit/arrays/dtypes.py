"""The dtypes that a variable may have, and the types that compiled code stores and computes in."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np


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
    parts : int
        How many of them: 2 for a complex dtype.
    """

    name: str
    storage: str
    computing: str
    real: str
    parts: int = 1


_PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("float16", "uint16", "float32", "uint16"),
        Precision("bfloat16", "int16", "float32", "int16"),
        Precision("float32", "float32", "float32", "float32"),
        Precision("float64", "float64", "float64", "float64"),
        Precision("complex64", "complex64", "float32", "float32", parts=2),
        Precision("complex128", "complex128", "float64", "float64", parts=2),
    )
}

SUPPORTED = tuple(_PRECISIONS)


@functools.cache  # a dtype's name takes microseconds to make
def precision_of(dtype: np.dtype[Any]) -> Precision | None:
    """The `Precision` of a dtype, or None where rmsjit can't train it."""
    return _PRECISIONS.get(dtype.name) if dtype.isnative else None
