"""What trials of steps have learned, kept on this machine as a first guess for later processes.

One small file in the cache folder holds it for each kind of processor that uses the folder.  It is
written when a process ends, by whoever ends last; nothing depends on it but the order of the first
trials and what ``python -m rmsjit info`` shows.  Whatever is wrong with the file, it is ignored.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rmsjit.runtime import store


class Work(NamedTuple):
    """A kind of step.

    Attributes
    ----------
    kind : str
        "dense", "sparse", "catch up", "sum" or "copy".
    most : int
        The maximum number of threads.
    bits : int
        It writes less than ``2**bits`` bytes, and at least half as many.
    """

    kind: str
    most: int
    bits: int


class Way(NamedTuple):
    """How a step may be run.

    Attributes
    ----------
    threads : int
    prefetches : bool
        Whether memory is fetched ahead.
    """

    threads: int
    prefetches: bool = False

    def __str__(self) -> str:
        return f"{self.threads}{_PREFETCHING if self.prefetches else ''}"

    @classmethod
    def read(cls, text: str) -> Way:
        """The way of a text as ``str`` gives it, or `ValueError`."""
        threads = text.removesuffix(_PREFETCHING)
        return cls(int(threads), threads != text)


_PREFETCHING = " prefetching"
Costs = Mapping[Way, float]  # seconds per byte

_own: dict[Work, Costs] = {}  # what this process has found out


def guess(work: Work) -> Costs:
    """What earlier processes have found out about a kind of step; empty if nothing."""
    return _earlier().get(work, {})


def note(work: Work, costs: Costs) -> None:
    """Keep the costs that a round of trials has found, to be saved when the process ends."""
    if not _own:
        atexit.register(save)
    _own[work] = dict(costs)


def known() -> dict[Work, Costs]:
    """All that this and earlier processes have found out on this machine."""
    return {**_read(_path()), **_own}


def save() -> None:
    """Add what this process has found out to the file, if that changes any choice.

    The cache folder must exist: whoever has no kernels there wants no other files either.
    """
    path = _path()
    if path is None or not path.parent.is_dir():
        return
    earlier = _read(path)
    if all(fastest(costs) == fastest(earlier.get(work, {})) for work, costs in _own.items()):
        return  # hundreds of ranks that end together need not write the same
    machines = _machines(path)
    machines[_machine()] = [[*w, _by_text(costs)] for w, costs in {**earlier, **_own}.items()]
    with contextlib.suppress(OSError):
        store.replace(path, json.dumps(machines, indent=1).encode())


def fastest(costs: Costs) -> Way | None:
    """The way with the lowest cost."""
    return min(costs, key=costs.__getitem__, default=None)


def _by_text(costs: Costs) -> dict[str, float]:
    return {str(way): cost for way, cost in costs.items()}


@functools.cache
def _earlier() -> dict[Work, Costs]:
    return _read(_path())


def _path() -> Path | None:
    folder = store.cache_folder()
    return None if folder is None else folder / store.LEARNED_FILE


@functools.cache
def _machine() -> str:
    """What tells machines apart that share a cache folder."""
    from llvmlite import binding

    return f"{platform.machine()} {binding.get_host_cpu_name()}, {os.cpu_count()} CPUs"


def _read(path: Path | None) -> dict[Work, Costs]:
    if path is None:
        return {}
    rows = _machines(path).get(_machine(), [])
    found: dict[Work, Costs] = {}
    for row in rows if isinstance(rows, list) else []:
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            kind, most, bits, costs = row
            work = Work(str(kind), int(most), int(bits))
            found[work] = {Way.read(text): _checked(cost) for text, cost in costs.items()}
    return found


def _checked(cost: Any) -> float:
    """A cost, or `ValueError`."""
    value = float(cost)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def _machines(path: Path) -> dict[str, Any]:
    """The content of the file; empty if it is missing, damaged or another user's."""
    try:
        stored = store.trusted_bytes(path)
        content = json.loads(stored or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
