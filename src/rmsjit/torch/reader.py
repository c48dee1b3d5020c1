"""Reading where tensors are and how they lie in memory, a list of them in one compiled call.

torch 2.13 offers the C function for it, as DLPack 1.3 specifies it.  Where a version of torch has
none, the methods of tensors answer the same more slowly.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmsjit.arrays.layout import address_of
from rmsjit.kernels import loader, tensors
from rmsjit.runtime.cache import Kernel

_API, _API_NAME = "__dlpack_c_exchange_api__", b"dlpack_exchange_api"
_MAJOR = 1  # of the versions of DLPack that have this table
# Words of the table: its version (two halves), an older table, then C functions.
_VERSION, _DESCRIBE, _TABLE_WORDS = 0, 5, 7


class Reader:
    """Finds tensors that lie in memory as some others do.

    Parameters
    ----------
    like : sequence of Tensor
        Dense.
    kernel : Kernel
    describe : int
        The address of torch's C function that describes a tensor.
    """

    def __init__(self, like: Sequence[Tensor], kernel: Kernel, describe: int) -> None:
        self._read = kernel.call
        self._count = len(like)
        rows = [_expected(tensor, describe) for tensor in like]
        self._expected = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
        for row, numbers in zip(self._expected, rows, strict=True):
            row[: len(numbers)] = numbers
        self._description = np.zeros(tensors.DESCRIPTION_WORDS, np.int64)
        self._words = np.zeros(tensors.WORDS, np.int64)
        self._words[tensors.COUNT], self._words[tensors.TUPLE_TYPE] = self._count, id(tuple)
        self._words[tensors.FIRST_TYPE] = id(Tensor)
        self._words[tensors.SECOND_TYPE] = id(torch.nn.Parameter)
        self._words[tensors.DESCRIBE] = describe
        self._words[tensors.CLEAR_ERROR] = _clear_error()
        self._words[tensors.EXPECTED] = address_of(self._expected)
        self._words[tensors.COLUMNS] = self._expected.shape[1]
        self._words[tensors.DESCRIPTION] = address_of(self._description)
        self._address = address_of(self._words)
        self.is_useful = True

    def addresses(self, others: Sequence[Tensor]) -> NDArray[np.int64] | None:
        """Where each of other tensors begins.

        Returns
        -------
        int64 array, shape (tensors,), or None
            None if some tensor lies in memory otherwise or has none, is of a subclass, or is not
            dense.  After one that is not dense `is_useful` is False, as torch takes long to say so.
        """
        found = np.empty(self._count, np.int64)
        together = tuple(others)
        status = self._read(id(together), self._address, address_of(found))
        self.is_useful = status != tensors.NOT_DESCRIBED
        return found if status == tensors.AS_EXPECTED else None


def reader_for(like: Sequence[Tensor]) -> Reader | None:
    """A reader of tensors that lie in memory as these do, if torch and Python allow one."""
    found = _functions()
    return None if found is None else Reader(like, *found)


@functools.cache
def _functions() -> tuple[Kernel, int] | None:
    """The kernel that reads tensors, and torch's C function that it calls."""
    describe, kernel = _describe_of_torch(), loader.read_tensors()
    if not describe or kernel is None:
        return None
    example = torch.zeros(3, 5, dtype=torch.float64, device="cpu").T
    read = Reader([example], kernel, describe).addresses([example])
    agrees = read is not None and read.tolist() == [example.data_ptr()]
    return (kernel, describe) if agrees else None


def _describe_of_torch() -> int:
    """The address of the C function that describes a tensor, or 0."""
    api = getattr(Tensor, _API, None)
    if api is None:
        return 0
    prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    pointer_of = prototype(("PyCapsule_GetPointer", ctypes.pythonapi))
    table = (ctypes.c_uint64 * _TABLE_WORDS).from_address(pointer_of(api, _API_NAME))
    return int(table[_DESCRIBE]) if table[_VERSION] & 0xFFFFFFFF == _MAJOR else 0


def _clear_error() -> int:
    """The address of the C function that clears Python's error."""
    return ctypes.cast(ctypes.pythonapi.PyErr_Clear, ctypes.c_void_p).value or 0


def _expected(tensor: Tensor, describe: int) -> list[int]:
    """What is expected of a tensor with the memory layout of this one."""
    description = np.zeros(tensors.DESCRIPTION_WORDS, np.int64)
    # As Python's own call of a C function, it raises the error that the function sets.
    call = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(describe)
    call(tensor, address_of(description))
    kind = [int(description[word]) for word in (tensors.DEVICE, tensors.KIND)]
    return [*kind, tensor.ndim, *tensor.shape, *tensor.stride()]
