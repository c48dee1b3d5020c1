"""Memory that is used again once nobody refers to it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST_BYTES = 1 << 16  # the system gives less than that without new pages


class RecycledMemory:
    """Flat arrays, new ones or those that nobody but this object refers to any more.

    New memory of some size comes from the system page by page, which takes longer than to write to
    it.  An array counts as in use while any object refers to it or to a view of it.  Copies and
    pickles of this object have no memory.
    """

    def __init__(self) -> None:
        self._now: dict[Any, list[NDArray[Any]]] = {}
        self._before: dict[Any, list[NDArray[Any]]] = {}

    def array(self, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A flat array with any values."""
        if size * dtype.itemsize < _LEAST_BYTES:
            return np.empty(size, dtype)
        arrays = self._now.setdefault((size, dtype), self._before.pop((size, dtype), []))
        for array in arrays:
            if sys.getrefcount(array) == _FREE:
                return array
        arrays.append(np.empty(size, dtype))
        return arrays[-1]

    def turn(self) -> None:
        """Release arrays of sizes that were not asked for since the last turn."""
        self._before, self._now = self._now, {}

    def __reduce__(self) -> Any:
        return RecycledMemory, ()


def _references_to_a_free_array() -> int:
    """What `sys.getrefcount` says of an array that only a list refers to, and a loop.

    A number that never occurs if there is no GIL, as references are counted otherwise then.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return -1
    arrays = [np.empty(0)]
    for array in arrays:
        return sys.getrefcount(array)
    return -1


_FREE = _references_to_a_free_array()
