"""What variables, tapes and optimizers need to know about each other.

`Variable` asks here whether a tape of this thread is recording.  This module does not import
autograd, so importing `Variable` stays cheap.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from opcode import opmap
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.overlap import overlapping

if TYPE_CHECKING:
    from rmsjit.autodiff.record import Record


class Recorded:
    """Base class of the results of computing with variables while a tape records."""

    __slots__ = ()

    @property
    @abstractmethod
    def array(self) -> NDArray[Any]:
        """The values, not copied."""

    @property
    @abstractmethod
    def stands_for(self) -> NDArray[Any] | None:
        """The watched array, if this is its stand-in."""


class _Thread(threading.local):
    def __init__(self) -> None:
        self.records: list[Record] = []


_thread = _Thread()

# The sources of live tapes, keyed by the id of their arrays.  A source keeps its array alive, so
# the id can't be reused while the entry exists.
sources: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

live: dict[int, Any] = sources.data  # type: ignore[attr-defined]  # a fast test for "any sources?"


def are_used() -> bool:
    """Whether a tape is recording or alive."""
    return bool(live or _thread.records)


_before_gather: dict[weakref.ref[Any], None] = {}


def records() -> list[Record]:
    """The records of the tapes that are recording in this thread: the list itself, to modify."""
    return _thread.records


@contextmanager
def paused() -> Iterator[None]:
    """Pause all tapes of this thread."""
    outer, _thread.records = _thread.records, []
    try:
        yield
    finally:
        _thread.records = outer


def stand_in(variable: Any) -> Any:
    """The stand-in for the array of a variable if a tape records operations on it, or None."""
    current = _thread.records
    # Ask every record, not only up to the first that notices: each must watch for itself.
    noticed = [record.notices(variable) for record in current]
    return current[-1].stand_in(variable.array) if any(noticed) else None


def read(variable: Any) -> Any:
    """The array of a variable, or its stand-in."""
    recorded = stand_in(variable)
    return variable.array if recorded is None else recorded


def refuse_conversion(name: str, caller: FrameType) -> Any:
    """Raise `TypeError`: `caller` converts a recorded value, and no tape would notice.

    Only ``sparse @ value`` gets a result: the object for which scipy leaves the product to `value`.
    """
    if _is_sparse_product(caller):
        return np.full((), None, object)
    raise TypeError(
        f"{name} can't become a plain array implicitly while a tape records it (the tape would "
        f"lose track of it): use a function of autograd.numpy, or .numpy() to take its value as a "
        f"constant"
    )


_STORES = {opmap[name] for name in ("STORE_SUBSCR", "STORE_SLICE") if name in opmap}


def is_stored(caller: FrameType) -> bool:
    """Whether `caller` implicitly makes a number of a value to store it: ``array[i] = value``."""
    return caller.f_code.co_code[caller.f_lasti] in _STORES


def is_sparse(value: Any) -> bool:
    """Whether a value is a matrix or array of scipy.sparse, in any format."""
    # Another thread may be about to import it.
    issparse = getattr(sys.modules.get("scipy.sparse"), "issparse", None)
    return issparse is not None and bool(issparse(value))


def _is_sparse_product(frame: FrameType) -> bool:
    """Whether a frame is scipy's code for ``sparse @ argument``, converting its argument."""
    caller = frame.f_back
    return (
        caller is not None
        and frame.f_code.co_name == "_matmul_dispatch"
        and caller.f_code.co_name == "__matmul__"
        and is_sparse(caller.f_locals.get("self"))
    )


def wrote(arrays: Iterable[NDArray[Any]]) -> None:
    """Tell tapes that the arrays were overwritten.

    A tape refuses to differentiate an operation whose variable has changed since, because the
    derivative would use the new values.  Views of the same memory count too.  Almost free while no
    tape is alive.
    """
    if not live:
        return
    written = {id(array): array for array in arrays}
    others = []
    for node in (ref() for ref in sources.valuerefs()):
        if node is not None:
            if id(node.array) in written:
                node.written()
            else:
                others.append(node)
    for k in overlapping([node.array for node in others], list(written.values())):
        others[k].written()


def before_gather(callback: Callable[[NDArray[Any], NDArray[np.intp]], object]) -> None:
    """Register `callback(array, ids)` to be called before `rmsjit.gather` reads rows of an array.

    The callback may update these rows in place.  `ids` are valid rows of `array`: a flat ``intp``
    array, in order of use, with repeats.  No tape records during the call.  The callback (also a
    method) is held weakly: when its owner dies, the registration ends.
    """
    kept = weakref.WeakMethod if inspect.ismethod(callback) else weakref.ref
    _before_gather[kept(callback, lambda dead: _before_gather.pop(dead, None))] = None


def announce_gather(array: NDArray[Any], ids: NDArray[np.intp]) -> None:
    """Call the callbacks registered with `before_gather`."""
    if not _before_gather:
        return
    with paused():
        for kept in list(_before_gather):
            callback = kept()
            if callback is not None:
                callback(array, ids)
