"""The number of memory nodes that this process may use, as on a machine with several sockets."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path


@functools.cache
def memory_nodes(root: str | Path = "/") -> int:
    """How many nodes have memory for this process; 1 where the system doesn't say.

    Parameters
    ----------
    root : path
        The folder that contains ``proc`` and ``sys``.
    """
    root = Path(root)
    try:
        there = (root / "sys/devices/system/node/has_memory").read_text()
        status = (root / "proc/self/status").read_text()
        allowed = status.partition("Mems_allowed_list:")[2].splitlines()[0]
        return max(1, len(set(_numbers(there)) & set(_numbers(allowed))))
    except (OSError, ValueError, IndexError):
        return 1


def _numbers(text: str) -> Iterator[int]:
    """The numbers in a list such as ``0-1,4``."""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
