"""Records of known variables, as compiled code finds them; see `rmsjit.kernels.following`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of
from rmsjit.kernels import following
from rmsjit.state.entries import Entry

_FEW = 64  # records that the first table has room for
_ROOM = 4  # records that later ones have room for, per known variable


class Records:
    """Records of variables, for steps whose variables have given layouts in a given order.

    They hold no references.  A full table is replaced by an empty one, to which variables are added
    again as they are met.

    Parameters
    ----------
    memory : sequence of (dtype, int)
        The dtype and size of each variable of a step.
    width : int
        How many addresses a record has: of the variable and of its slots.

    Attributes
    ----------
    address : int
        Of the words that compiled code reads (``KNOWN``).
    """

    def __init__(self, memory: Sequence[tuple[np.dtype[Any], int]], width: int) -> None:
        self._width = width
        numbers = {pair: number for number, pair in enumerate(dict.fromkeys(memory))}
        self._layouts = np.zeros((len(memory), following.FIRST_SIZE + width), np.int64)
        self._layouts[:, following.NUMBER] = [numbers[pair] for pair in memory]
        self._words = np.zeros(following.KNOWN_WORDS, np.int64)
        self._words[following.WIDTH] = width
        self._words[following.LAYOUTS] = address_of(self._layouts)
        self.address: int = address_of(self._words)
        # The last two, so the words never lead to memory that is gone, whatever a signal handler
        # does meanwhile.
        self._tables: list[NDArray[np.int64]] = []
        self._count = 0
        self._begin(_FEW)

    def _begin(self, most: int) -> None:
        """Begin an empty table, with room for some records, at most half full."""
        bits = (2 * most - 1).bit_length()
        table = np.zeros((1 << bits, following.ADDRESS + self._width), np.int64)
        self._tables = [*self._tables[-1:], table]
        self._count = 0
        self._words[: following.WIDTH] = address_of(table), bits

    def add(
        self,
        position: int,
        entry: Entry,
        addresses: Sequence[int],
        sizes: Sequence[int],
        known: int,
    ) -> None:
        """Add a variable of the layout at a position of the step.

        Parameters
        ----------
        position : int
        entry : Entry
        addresses : sequence of int
            Of the variable and its slots, 0 for a slot that it does not have.
        sizes : sequence of int
            How many bytes each of them has.
        known : int
            How many variables the store knows.
        """
        if not addresses[0]:
            return  # an empty array
        if 2 * (self._count + 1) > len(self._tables[-1]):
            self._begin(_ROOM * known)
        layout = self._layouts[position]
        layout[following.FIRST_SIZE :] = sizes
        record = (0, int(layout[following.NUMBER]), *_root_of(entry), *addresses)
        self._count += _put(self._tables[-1], record)


def _root_of(entry: Entry) -> tuple[int, int, int]:
    """The id, address and size of the array that owned a variable's memory when it was new.

    Zeros if the owner is no array.
    """
    owner, ground = entry.owner, entry.ground
    base = owner.base
    if type(base) is np.ndarray and base.flags.owndata and base.dtype is owner.dtype:
        return ground.root, ground.address, ground.nbytes // owner.itemsize
    return 0, 0, 0


def _put(table: NDArray[np.int64], record: Sequence[int]) -> bool:
    """Enter a record into a table that is not full; whether the variable had none."""
    columns = [following.ADDRESS, following.LAYOUT]
    address, number = record[following.ADDRESS], record[following.LAYOUT]
    k = following.bucket_of(address, len(table).bit_length() - 1)
    while (there := table[k, columns].tolist())[0] and there != [address, number]:
        k = (k + 1) % len(table)
    table[k] = record
    return not there[0]
