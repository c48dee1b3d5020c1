"""Which object owns the memory of an array, whether it is still there, and who else holds it."""

import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of

_memoryview = memoryview(b"")
# What a memoryview holds its object through, together with other views of the same buffer.
_Buffer = type(next(iter(gc.get_referents(_memoryview)), _memoryview))


class Ground(NamedTuple):
    """The memory that an array is a view of, as it was at one time."""

    root: int  # id of the object that owns the memory; every view keeps it alive
    address: int  # of all the memory of this object; 0 if it was closed
    nbytes: int  # size of all the memory of this object; -1 if it was closed


def private_view(array: NDArray[Any]) -> NDArray[Any]:
    """A new plain view, which keeps the memory alive but not the array object itself."""
    return array.view(np.ndarray)


def anchor_of(array: NDArray[Any]) -> NDArray[Any]:
    """The array at the end of a chain of views.

    It owns its memory or has it from something that is no array, such as a mapped file.
    """
    while True:
        base = _below(array)
        if not isinstance(base, np.ndarray):
            return array
        array = base


def _below(array: NDArray[Any]) -> Any:
    """The object that an array has its memory from, None if it owns it."""
    base: Any = array.base
    if isinstance(base, memoryview):
        try:
            return base.obj
        except ValueError:  # it was released
            return base
    if base is None or isinstance(base, np.ndarray):
        return base
    helper = getattr(base, "base", None)  # of np.lib.stride_tricks
    return helper if isinstance(helper, np.ndarray) else base


def ground_of(array: NDArray[Any]) -> Ground:
    """The memory under an array as it is now; it is not read.

    Memory can go away although arrays refer to it, when a mapped file or shared memory is closed
    or an array or a mapping is resized.
    """
    anchor = anchor_of(array)
    provider = None if anchor.flags.owndata else _below(anchor)
    if provider is not None:
        try:
            whole = np.frombuffer(provider, np.uint8)
        except (TypeError, BufferError):  # it has no buffer, but another interface
            pass
        except (ValueError, AttributeError):
            return Ground(id(provider), 0, -1)
        else:
            return Ground(id(provider), address_of(whole), whole.nbytes)
    return Ground(id(anchor), address_of(anchor), anchor.nbytes)


def is_still(ground: Ground, view: NDArray[Any]) -> bool:
    """Whether a view has the same memory under it as before."""
    base = view.base
    if type(base) is np.ndarray and base.flags.owndata:  # written out for steps of many variables
        return ground == (id(base), address_of(base), base.nbytes)
    return ground == ground_of(view)


def held_elsewhere(owned: Sequence[Iterable[NDArray[Any]]], as_arrays: bool = False) -> list[bool]:
    """For each group of arrays over the same memory, whether anybody else holds that memory.

    Each group must contain all of our own arrays over the memory: private views, or arrays that we
    allocated.  The result is also true if we can't know, as for memory of other libraries.  The
    bytes that an array was unpickled from are known.

    With `as_arrays`, only array objects count, and not what is below them, such as a message in
    which many arrays came.
    """
    counts = _Counts()
    groups = [list(views) for views in owned]
    for view in {id(view): view for views in groups for view in views}.values():
        counts.walk(view)
    return [any(counts.is_held(view, as_arrays) for view in views) for views in groups]


class _Counts:
    """Counts references to the arrays in chains of views, and how many of them are our own."""

    def __init__(self) -> None:
        self._own: dict[int, list[Any]] = {}  # by id: the array, and our references to it
        sentinel = np.empty(0)
        self._own[id(sentinel)] = [sentinel, 0]
        del sentinel
        (self._held_by_us,) = self._references().values()
        self._own.clear()
        self._external: dict[int, int] | None = None

    def walk(self, view: NDArray[Any]) -> None:
        """Count the reference that each object in the chain has to the next."""
        for below in _chain(view):
            counted = self._own.setdefault(id(below), [below, 0])
            counted[1] += 1
            if counted[1] > 1:
                return

    def is_held(self, view: NDArray[Any], as_arrays: bool) -> bool:
        if self._external is None:
            references = self._references()
            self._external = {
                key: references[key] - own - self._held_by_us for key, (_, own) in self._own.items()
            }
        last: Any = None
        for last in _chain(view):
            if as_arrays and not isinstance(last, np.ndarray):
                return False
            if self._external[id(last)] > 0:
                return True
        if isinstance(last, np.ndarray) and last.base is None:
            return not last.flags.owndata
        return not (as_arrays or isinstance(last, (bytes, bytearray)))

    def _references(self) -> dict[int, int]:
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            return dict.fromkeys(self._own, sys.maxsize)
        return {key: sys.getrefcount(counted[0]) for key, counted in self._own.items()}


def _chain(view: NDArray[Any]) -> Iterator[Any]:
    """The objects below a view, each of which holds the next one, as far as they are counted."""
    below: Any = view.base
    while isinstance(below, (np.ndarray, memoryview, _Buffer, bytes, bytearray)):
        yield below
        if isinstance(below, np.ndarray):
            below = below.base
        else:  # bytes hold nothing, nor does a memoryview that was released
            below = next(iter(gc.get_referents(below)), None)
