"""The clock of a table in ``sparse="exact"``: the last step of each row, and what it missed since.

With a zero gradient the rule multiplies ``rms`` and ``mg`` by rho and ``momentum`` by its factor,
and subtracts the new momentum from the variable.  Over several missed steps, that is for each row::

    rms, mg   <-  decay * rms, decay * mg               decay = product of the rhos
    variable  <-  kept * variable - drift * momentum    drift = sum of the products of factors
    momentum  <-  carry * momentum                      carry = product of the factors

so a row needs only these numbers, for the missed steps since its last one.  They are kept for
every possible last step, and each step updates them by one multiplication each.  (``kept`` is 1
except for forms whose weight decay shrinks a variable at every step.)

Kernels read and advance the clock in the same act as the rows (`rmsjit.kernels.rows`), so no other
code sees one ahead of the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, address_of

NOW, CAPACITY, DONE, LAPSES, ROWS = range(5)  # the words, as `rmsjit.kernels.rows` reads them
LAPSE_ROWS = 4
LONGEST = 1 << 14  # steps, after which the whole table catches up
_SHORTEST = 1 << 8  # the same for a table with few rows, for which that is cheaper than long lapses


class Clock:
    """The steps of a table since all of its rows were up to date.

    Parameters
    ----------
    rows : int
        The number of rows of the table.
    rows_key : tuple
        Identifies the rows (`rmsjit.arrays.layout.rows_key`).
    room : int
        How many steps may be counted between two checks of `has_room`.

    Attributes
    ----------
    words : int64 array
        What kernels read: counts, and the addresses of the arrays.
    done : uint16 array, shape (rows,)
        The last step of each row.
    """

    def __init__(self, rows: int, rows_key: Key = (), room: int = 1) -> None:
        self.rows_key = rows_key
        self.done: NDArray[np.uint16] = np.zeros(rows, np.uint16)
        self._limit = min(LONGEST, max(_SHORTEST, rows))
        # Allocated in full at once, since an array that grows could be seen half copied.
        self._lapses = np.zeros((LAPSE_ROWS, self._limit + room + 1))
        self._lapses[:, 0] = 1.0, 1.0, 0.0, 1.0
        self.words: NDArray[np.int64] = np.array(
            [0, self._lapses.shape[1], address_of(self.done), address_of(self._lapses), rows],
            np.int64,
        )

    @property
    def now(self) -> int:
        """The number of steps."""
        return int(self.words[NOW])

    def has_room(self, steps: int) -> bool:
        """Whether this many steps can be counted before the whole table must catch up."""
        return self.now < self._limit and self.now + steps < self._lapses.shape[1]

    def of_rows(self, rows: NDArray[np.int64]) -> Clock:
        """A clock for copies of some rows, at the same step; it shares all but `done`."""
        return self._of(self.done[rows])

    def resized(self, count: int) -> Clock:
        """A clock for so many rows: known ones as they are, new ones at the last step."""
        done = np.full(count, self.now, self.done.dtype)
        known = min(count, len(self.done))
        done[:known] = self.done[:known]
        return self._of(done)

    def _of(self, done: NDArray[Any]) -> Clock:
        part = Clock.__new__(Clock)
        part.rows_key = ()
        part.done = done
        part._limit, part._lapses = self._limit, self._lapses
        part.words = self.words.copy()
        part.words[DONE], part.words[ROWS] = address_of(done), len(done)
        return part
