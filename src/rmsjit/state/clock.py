"""The clock of a table in ``sparse="exact"``: the step each row is done to, and what it missed.

With a zero gradient the rule multiplies ``rms`` and ``mg`` by rho and ``momentum`` by its factor,
and moves the variable by minus the new momentum.  Over several missed steps that is, for each row::

    rms, mg   <-  decay * rms, decay * mg               decay = product of the rhos
    variable  <-  kept * variable - drift * momentum    drift = sum of the products of factors
    momentum  <-  carry * momentum                      carry = product of the factors

so all that a row needs is these numbers for the step that it was last brought to.  They are kept
for every such step and carried on by one multiplication each per step.  (``kept`` is 1 but for
forms whose weight decay shrinks a variable at every step.)

Kernels count and read the clock by its words, in the same act as the rows themselves
(`rmsjit.kernels.rows`), so no instant finds one ahead of the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, address_of

NOW, CAPACITY, DONE, LAPSES, ROWS = range(5)  # the words, as `rmsjit.kernels.rows` reads them
LAPSE_ROWS = 4
LONGEST = 1 << 14  # steps, after which the whole table is brought up to date once
_SHORTEST = 1 << 8  # the same for a table with few rows, where that costs less than long lapses


class Clock:
    """The steps that a table has seen since all of it was up to date.

    Parameters
    ----------
    rows : int
        Of the table.
    rows_key : tuple
        Which rows they are (`rmsjit.arrays.layout.rows_key`).
    room : int
        The most steps that are counted without asking whether the clock is full.

    Attributes
    ----------
    words : int64 array
        What kernels know of the clock: two counts, and the addresses of its arrays.
    done : uint16 array, shape (rows,)
        The step that each row has been brought to.
    """

    def __init__(self, rows: int, rows_key: Key = (), room: int = 1) -> None:
        self.rows_key = rows_key
        self.done = np.zeros(rows, np.uint16)
        self._limit = min(LONGEST, max(_SHORTEST, rows))
        # All memory from the start: what grows could be found half moved.
        self._lapses = np.zeros((LAPSE_ROWS, self._limit + room + 1))
        self._lapses[:, 0] = 1.0, 1.0, 0.0, 1.0
        self.words = np.array(
            [0, self._lapses.shape[1], address_of(self.done), address_of(self._lapses), rows],
            np.int64,
        )

    @property
    def now(self) -> int:
        """The number of steps."""
        return int(self.words[NOW])

    def has_room(self, steps: int) -> bool:
        """Whether so many steps can be counted before the whole table is brought up to date."""
        return self.now < self._limit and self.now + steps < self._lapses.shape[1]

    def of_rows(self, rows: NDArray[np.int64]) -> Clock:
        """A clock for copies of some rows, at the same step; only `done` is its own."""
        part = Clock.__new__(Clock)
        part.rows_key = ()
        part.done = self.done[rows]
        part._limit, part._lapses = self._limit, self._lapses
        part.words = self.words.copy()
        part.words[DONE], part.words[ROWS] = address_of(part.done), len(rows)
        return part
