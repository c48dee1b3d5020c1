"""What variables, tapes and optimizers must know of each other, and no more than that.

`Variable` asks here whether a tape of this thread records, and so stays light: autograd is
imported by the modules that make tapes, not by the ones that hold arrays.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Gathering = Callable[[NDArray[Any], NDArray[np.intp]], object]


class Record(Protocol):
    """What a variable must know of a tape's record; `rmsjit.autodiff.record` has it whole."""

    def notices(self, variable: Any) -> bool:
        """Whether what is computed from `variable`, which is being read, gets recorded."""

    def stand_in(self, array: NDArray[Any]) -> Any:
        """What to compute with in place of `array`."""


class Recorded:
    """The base of what computing with variables gives while a tape records."""

    __slots__ = ()

    @property
    @abstractmethod
    def array(self) -> NDArray[Any]:
        """The values, not copied."""

    @property
    @abstractmethod
    def stands_for(self) -> NDArray[Any] | None:
        """The array that was watched, where this is its stand-in."""


class _Thread(threading.local):
    def __init__(self) -> None:
        self.records: list[Any] = []


_thread = _Thread()

# The sources of live tapes by the identity of their arrays.  A source holds its array, so that no
# other array can take over the identity while the entry is there.
sources: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

live: dict[int, Any] = sources.data  # type: ignore[attr-defined]  # to ask in no time whether any

_before_gather: dict[weakref.ref[Any], None] = {}


def records() -> list[Any]:
    """The records of the tapes that record in this thread: the list itself, to add to."""
    return _thread.records


@contextmanager
def paused() -> Iterator[None]:
    """Compute without any tape of this thread recording."""
    outer, _thread.records = _thread.records, []
    try:
        yield
    finally:
        _thread.records = outer


def read(variable: Any) -> Any:
    """The array of a variable, or its stand-in where a tape records what is done with it."""
    current: list[Record] = _thread.records
    # Every record is asked, not only the first that takes notice: each must watch for itself.
    noticed = [record.notices(variable) for record in current]
    if any(noticed):
        return current[-1].stand_in(variable.array)
    return variable.array


def unrecorded(name: str, caller: FrameType) -> Any:
    """What code that no tape records gets for a variable that one watches: `TypeError`.

    A product with a sparse matrix gets what makes it leave the product to the variable.
    """
    if is_sparse_product(caller):
        return no_array()
    raise TypeError(
        f"{name} can't become a plain array unasked while a tape watches it, for the tape would "
        f"lose track of it: use a function of autograd.numpy, or .numpy() to take its value as a "
        f"constant"
    )


def is_sparse(value: Any) -> bool:
    """Whether a value is a matrix or array of scipy.sparse, of any format."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(value))


def is_sparse_product(frame: FrameType | None) -> bool:
    """Whether code that converts its argument is ``sparse @ argument``, within scipy.

    It takes what gives no array for somebody who knows more, and leaves the product to it.
    """
    caller = frame.f_back if frame is not None else None
    return (
        frame is not None
        and caller is not None
        and frame.f_code.co_name == "_matmul_dispatch"
        and caller.f_code.co_name == "__matmul__"
        and is_sparse(caller.f_locals.get("self"))
    )


def no_array() -> Any:
    """What NumPy makes of objects that it can't convert."""
    return np.full((), None, object)


def wrote(arrays: Iterable[NDArray[Any]]) -> None:
    """Tell tapes that the arrays were written to.

    A tape refuses to differentiate an operation whose variable has changed since, for its
    derivative would be that of the new values.  Costs next to nothing while no tape is alive.
    """
    if not sources:
        return
    for array in arrays:
        source = sources.get(id(array))
        if source is not None:
            source.written()


def before_gather(callback: Gathering) -> None:
    """Have `callback(array, ids)` called before `rmsjit.gather` reads rows of any array.

    It may bring these rows up to date in place.  `ids` are valid rows of `array`: a flat
    ``intp`` array, in order of use, repeats included.  No tape records meanwhile.

    Parameters
    ----------
    callback : callable
        Held weakly (methods too): the registration ends with the life of its owner.
    """
    kept = weakref.WeakMethod if inspect.ismethod(callback) else weakref.ref
    _before_gather[kept(callback, lambda dead: _before_gather.pop(dead, None))] = None


def announce_gather(array: NDArray[Any], ids: NDArray[np.intp]) -> None:
    """Call what `before_gather` registered."""
    if not _before_gather:
        return
    with paused():
        for kept in list(_before_gather):
            callback = kept()
            if callback is not None:
                callback(array, ids)
