"""Whose memory an array looks at, whether it still lies there, and who else holds it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of

_CLOSED = -1  # in place of a size


class Ground(NamedTuple):
    """Where the memory lies that an array is a view of.

    Attributes
    ----------
    root : int
        The identity of the object that has the memory, which every view of it keeps alive.
    address, nbytes : int
        Where its memory begins and how large it is, all of it, at this time.
    """

    root: int
    address: int
    nbytes: int

    @property
    def is_closed(self) -> bool:
        """Whether the memory was given back, so that the address may be another's."""
        return self.nbytes == _CLOSED


def private_view(array: NDArray[Any]) -> NDArray[Any]:
    """A plain view that nobody else has, which keeps the memory alive and not the object."""
    return array.view(np.ndarray)


def anchor_of(array: NDArray[Any]) -> NDArray[Any]:
    """The array that an array is a view of, through any number of views.

    It owns its memory, or has it from something that is no array: a file, another library.
    """
    while True:
        base = _below(array)
        if not isinstance(base, np.ndarray):
            return array
        array = base


def _below(array: NDArray[Any]) -> Any:
    """What an array has its memory from; None where it is its own."""
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
    """Where the memory under an array lies now; nothing of it is read.

    Memory can go although arrays look at it: a mapped file or shared memory that is closed, an
    array or a mapping that is resized.
    """
    anchor = anchor_of(array)
    provider = None if anchor.flags.owndata else _below(anchor)
    if provider is not None:
        try:
            whole = np.frombuffer(provider, np.uint8)
        except (TypeError, BufferError):  # it gives arrays in a way of its own
            pass
        except (ValueError, AttributeError):
            return Ground(id(provider), 0, _CLOSED)
        else:
            return Ground(id(provider), address_of(whole), whole.nbytes)
    return Ground(id(anchor), address_of(anchor), anchor.nbytes)


def held_elsewhere(owned: Sequence[Iterable[NDArray[Any]]]) -> list[bool]:
    """Whether others than ourselves hold the memory of arrays.

    Parameters
    ----------
    owned : sequence of iterable of ndarray
        For each memory, the arrays over it that are ours: private views, or arrays of our own.
        All that we have must be among them, but for the lists and attributes that hold them.

    Returns
    -------
    list of bool
        True also where it can't be told, as for memory of other libraries.
    """
    counts = _Counts()
    groups = [list(views) for views in owned]
    for view in {id(view): view for views in groups for view in views}.values():
        counts.walk(view)
    return [any(counts.is_held(view) for view in views) for views in groups]


class _Counts:
    """How many references to each array of some chains of views are our own."""

    def __init__(self) -> None:
        self._own: dict[int, list[Any]] = {}  # by identity: the array, and our references to it
        sentinel = np.empty(0)
        self._own[id(sentinel)] = [sentinel, 0]
        del sentinel
        (self._held_by_us,) = self._references().values()
        self._own.clear()
        self._external: dict[int, int] | None = None

    def walk(self, view: NDArray[Any]) -> None:
        """Count the reference that each array of a chain has to the next."""
        base: Any = view.base
        while isinstance(base, np.ndarray):
            counted = self._own.setdefault(id(base), [base, 0])
            counted[1] += 1
            if counted[1] > 1:
                return
            base = base.base

    def is_held(self, view: NDArray[Any]) -> bool:
        if self._external is None:
            references = self._references()
            self._external = {
                key: references[key] - own - self._held_by_us for key, (_, own) in self._own.items()
            }
        base: Any = view.base
        while isinstance(base, np.ndarray):
            if self._external[id(base)] > 0 or (base.base is None and not base.flags.owndata):
                return True
            if base.base is None:
                return False
            base = base.base
        return True

    def _references(self) -> dict[int, int]:
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            return dict.fromkeys(self._own, sys.maxsize)
        return {key: sys.getrefcount(counted[0]) for key, counted in self._own.items()}
