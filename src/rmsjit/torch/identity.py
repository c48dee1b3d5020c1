"""Comparing many objects by identity, in compiled code if that can read Python's objects."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

from rmsjit.kernels import loader

Objects = tuple[Any, ...]


def are_same(ones: Objects, others: Objects) -> bool:
    """Whether two tuples hold the same objects in the same order."""
    kernel = loader.same_items()
    if kernel is None:
        return len(ones) == len(others) and all(map(is_, ones, others))
    return bool(kernel.call(id(ones), id(others)))


def has_none(objects: Objects) -> bool:
    """Whether one of the objects is None."""
    kernel = loader.has_item()
    if kernel is None:
        return any(one is None for one in objects)
    return bool(kernel.call(id(objects), id(None)))


class SameValues:
    """What some dictionaries hold under some keys, to see whether it is still there.

    Parameters
    ----------
    dictionaries : sequence of dict
    keys : sequence of str
    values : sequence of sequence
        What each of them is to hold under each key.
    """

    def __init__(
        self,
        dictionaries: Sequence[Mapping[str, Any]],
        keys: Sequence[str],
        values: Sequence[Sequence[Any]],
    ) -> None:
        self._dictionaries, self._keys = tuple(dictionaries), tuple(keys)
        self._values = tuple(value for row in values for value in row)
        self._kernel = loader.same_values()
        tuples = self._dictionaries, self._keys, self._values
        self._arguments = *map(id, tuples), _address_of_get_item()

    def are_there(self) -> bool:
        """Whether the dictionaries hold the same objects under these keys."""
        if self._kernel is None:
            found = [one.get(key) for one in self._dictionaries for key in self._keys]
            return all(map(is_, found, self._values))
        return bool(self._kernel.call(*self._arguments))


def _address_of_get_item() -> int:
    """Of the C function by which compiled code looks into dictionaries."""
    return ctypes.cast(ctypes.pythonapi.PyDict_GetItem, ctypes.c_void_p).value or 0
