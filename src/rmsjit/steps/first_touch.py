"""New slots on the memory nodes of the threads that will update them.

Where a machine has several memory nodes, a page comes from the node of the thread that touches it
first.  One thread that fills a slot would put all of it on its own node, and the threads of the
others would have to read it from there in each step.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of
from rmsjit.kernels import loader, touching
from rmsjit.runtime import threads
from rmsjit.runtime.memory_nodes import memory_nodes
from rmsjit.runtime.processors import thread_limit
from rmsjit.runtime.trials import LEAST_BYTES
from rmsjit.state.making import FreshSlot
from rmsjit.steps.act import Act, Call
from rmsjit.steps.partition import cut_evenly


def touch_first(fresh: Sequence[FreshSlot], num_threads: int | None) -> None:
    """Touch new slots on as many threads as may update them, each its part.

    Nothing is done on one thread or one memory node, or for little memory.

    Parameters
    ----------
    fresh : sequence of FreshSlot
        Not filled yet.
    num_threads : int or None
        The maximum number of threads; None for as many as the process may keep busy.
    """
    nbytes = sum(new.memory.nbytes for new in fresh)
    if nbytes < LEAST_BYTES or memory_nodes() < 2:
        return
    limit = num_threads or thread_limit()
    if limit > 1:
        threads.prepare()
    launch = threads.launch(limit)
    if launch.threads == 1:
        return
    cuts, spans = spans_by_thread(fresh, launch.threads)
    words = np.zeros(touching.WORDS, np.int64)
    words[touching.BINS], words[touching.PAGE_BYTES] = launch.threads, mmap.PAGESIZE
    words[touching.CUTS], words[touching.SPANS] = address_of(cuts), address_of(spans)
    call = Call(loader.touch_pages(), words, (cuts, spans, fresh))
    Act([call], launch=launch).run()  # or not, if threads can't be launched now


def spans_by_thread(
    fresh: Sequence[FreshSlot], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The memory of new slots, by the thread that updates it in a dense step of their variables.

    Returns
    -------
    cuts : int64 array, shape (threads + 1,)
        Where the spans of each thread start, and how many spans there are.
    spans : int64 array, shape (spans, 2)
        The first address of each, and the first one behind it.
    """
    by_precision: dict[str, list[FreshSlot]] = {}
    for new in fresh:
        by_precision.setdefault(new.entry.precision.name, []).append(new)
    bins: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for together in by_precision.values():
        entries = list({new.entry.key: new.entry for new in together}.values())
        slots = {e.key: [n.memory for n in together if n.entry.key == e.key] for e in entries}
        sizes = np.array([entry.canonical.size for entry in entries], np.int64)
        starts = np.array([address_of(entry.canonical) for entry in entries], np.int64)
        part = cut_evenly(sizes, starts, entries[0].canonical.itemsize, count)
        for b, spans in enumerate(bins):
            for row, first, length in part.pieces[part.bins[b] : part.bins[b + 1]].tolist():
                held, size = slots[entries[row].key], int(sizes[row])
                spans += [_span_of(memory, first, first + length, size) for memory in held]
    cuts = np.cumsum([0, *map(len, bins)])
    return cuts, np.array([span for spans in bins for span in spans], np.int64).reshape(-1, 2)


def _span_of(memory: NDArray[np.generic], first: int, stop: int, size: int) -> tuple[int, int]:
    """The addresses of a slot's memory for some elements of its variable."""
    start = address_of(memory)
    return start + memory.nbytes * first // size, start + memory.nbytes * stop // size
