"""The random bits of stochastic rounding: what makes those of a variable differ from all others.

The bits of an element are a function of the seed, the number of the step, the number of its
variable and its own number, so a run that is saved and resumed gets the same bits.  The elements of
a part of a divided variable have their numbers in the whole one, and so the bits of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.state.entries import Entry
from rmsjit.state.numbering import numbers_of
from rmsjit.state.slots import SlotStore

NO_NOISE = np.zeros(1, np.int64)  # where nothing is rounded by random bits


def noise_for(
    store: SlotStore, entries: Sequence[Entry | None], turns: Sequence[int], seed: int
) -> NDArray[np.int64]:
    """The memory that kernels read, `rmsjit.kernels.noise.noise_of`, of the variables of a step.

    Parameters
    ----------
    store : SlotStore
        Numbers variables; see `rmsjit.state.numbering`.
    entries : sequence of Entry or None
        None where there is no gradient.
    turns : sequence of int
        How many earlier pairs have the same variable; each of its updates gets other bits.
    seed : int

    Returns
    -------
    int64 array, shape (1 + 2 * entries,)
        The first, the number of the step, is still to be written.
    """
    present = [entry for entry in entries if entry is not None]
    numbers = numbers_of(store, [entry.key for entry in present])
    noise = np.zeros(1 + 2 * len(entries), np.int64)
    of_variables = noise[1:].reshape(-1, 2)
    for place, (entry, turn) in enumerate(zip(entries, turns, strict=True)):
        if entry is not None:
            number = numbers[entry.key] if entry.number is None else entry.number
            of_variables[place] = _word(seed, number, turn), entry.first
    return noise


def _word(seed: int, number: int, turn: int) -> Any:
    """64 bits that almost certainly differ between any two variables or seeds."""
    words = np.random.SeedSequence(seed, spawn_key=(number, turn)).generate_state(1, np.uint64)
    return words.view(np.int64)[0]
