"""The clock of a table in ``sparse="exact"``: the step each row is done to, and what it missed.

With a zero gradient the rule multiplies ``rms`` and ``mg`` by rho and ``momentum`` by its factor,
and moves the variable by minus the new momentum.  Over several missed steps that is, for each row::

    rms, mg   <-  decay * rms, decay * mg           decay = product of the rhos
    variable  <-  variable - drift * momentum       drift = sum of the running products of factors
    momentum  <-  carry * momentum                  carry = product of the factors

so all that a row needs is the three numbers for the step that it was last brought to.  They are
kept for every such step and carried on by one multiplication each per step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import Key

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

    Attributes
    ----------
    done : uint16 array, shape (rows,)
        The step that each row has been brought to.
    now : int
        The number of steps.
    """

    def __init__(self, rows: int, rows_key: Key = ()) -> None:
        self.rows_key = rows_key
        self.done = np.zeros(rows, np.uint16)
        self.now = 0
        self._lapses = np.zeros((3, 64))
        self.reset()

    def reset(self) -> None:
        """Start again with every row up to date."""
        if self.now:
            self.done[:] = 0
        self.now = 0
        self._lapses[:, 0] = 1.0, 1.0, 0.0

    @property
    def full(self) -> bool:
        """Whether the whole table must be brought up to date before the next step."""
        return self.now >= min(LONGEST, max(_SHORTEST, len(self.done)))

    def tick(self, rho: float, momentum: float) -> None:
        """Count a step with these factors."""
        if self.now + 1 == self._lapses.shape[1]:
            self._lapses = np.concatenate([self._lapses, np.zeros_like(self._lapses)], axis=1)
        decay, carry, drift = self._lapses[:, : self.now + 1]
        with np.errstate(under="ignore"):
            decay *= rho
            carry *= momentum
            drift += carry
        decay[decay < 1e-300] = 0.0  # denormal numbers would slow every later step down
        carry[carry < 1e-300] = 0.0
        self.now += 1
        self._lapses[:, self.now] = 1.0, 1.0, 0.0

    def lapses(self, dtype: Any) -> NDArray[Any]:
        """`decay`, `carry` and `drift` from each step until now, in a dtype."""
        with np.errstate(under="ignore"):
            return self._lapses[:, : self.now + 1].astype(dtype, order="C")

    def of_rows(self, rows: NDArray[np.int64]) -> Clock:
        """A clock for copies of some rows, at the same step; only `done` is its own."""
        part = Clock.__new__(Clock)
        part.rows_key = ()
        part.done = self.done[rows]
        part.now = self.now
        part._lapses = self._lapses
        return part
