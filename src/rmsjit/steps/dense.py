"""Updating all dense variables of one dtype in one call of a kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Kinds, Precision
from rmsjit.arrays.layout import address_of
from rmsjit.kernels import dense, loader
from rmsjit.rule.form import Form
from rmsjit.runtime.threads import Launch
from rmsjit.state.entries import Member
from rmsjit.steps.act import Call
from rmsjit.steps.binding import Binding
from rmsjit.steps.copies import copy_call
from rmsjit.steps.partition import (
    Partition,
    backwards,
    cut_evenly,
    on_blocks,
    pieces_of,
)

BACKWARD_PIECE = 1 << 15  # elements; much smaller than a cache for which running backwards pays


class DenseGroup:
    """Different variables of one dtype, which one call updates.

    Parameters
    ----------
    positions : sequence of int
        The positions of their pairs in the list.
    members : sequence of Member
        Their memory and slots.
    form : Form
    rows : int64 array
        The row of each variable in the numbers of a step.

    Attributes
    ----------
    kinds : Kinds
    nbytes : int
        How many bytes an update writes.
    """

    def __init__(
        self,
        positions: Sequence[int],
        members: Sequence[Member],
        form: Form,
        rows: NDArray[np.int64],
    ) -> None:
        self.positions = np.array(positions)
        self._rows = rows
        self.members = tuple(members)
        self.precision: Precision = members[0].entry.precision
        self.sizes = np.array([member.entry.canonical.size for member in members], np.int64)
        self.kinds: Kinds
        small = members[0].entry.is_small  # as all are if that makes a difference
        self._form, self.kinds = form.compiled_for(self.precision, small)
        self._lengths = np.array([member.entry.record_length for member in members], np.int64)
        self._lengths_at = np.zeros(self.positions.max() + 1, np.int64)  # by position
        self._lengths_at[self.positions] = self._lengths
        self._itemsize = members[0].entry.canonical.itemsize
        self._starts = np.array([address_of(m.entry.canonical) for m in members], np.int64)
        written = (sum(slot.nbytes for slot in member.slots.values()) for member in members)
        self.nbytes = int(self.sizes.sum()) * self._itemsize + sum(written)
        self.copied = [
            (position, member.entry)
            for position, member in zip(positions, members, strict=True)
            if not member.entry.dense
        ]
        self._partitions: dict[tuple[int, bool], Partition] = {}

    def calls(
        self, binding: Binding, launch: Launch, clipped: bool, after_norms: bool
    ) -> list[Call]:
        """The calls that apply the rule to every variable of the group.

        Parameters
        ----------
        binding : Binding
            The gradients, numbers and scales of the step.
        launch : Launch
        clipped : bool
            Whether gradients are clipped or scaled.
        after_norms : bool
            Whether a pass has just read the gradients: then the update runs backwards, to begin
            with what that pass left in the cache.
        """
        bins = launch.threads
        part = self._partitioned(bins, after_norms)
        kernel = loader.update_dense(self._form, self.kinds, clipped)
        addresses, before, after = binding.addresses, [], []
        if self.copied:
            addresses = addresses.copy()
        for position, entry in self.copied:
            copy = np.empty(entry.canonical.shape, entry.canonical.dtype)
            addresses[position, 0] = address_of(copy)
            before.append(copy_call(entry.canonical, copy, outwards=False, bins=bins))
            after.append(copy_call(entry.canonical, copy, outwards=True, bins=bins))
        numbers, scales = binding.numbers[self.kinds.computing], binding.scales_of(self.kinds)
        words = np.zeros(dense.WORDS, np.int64)
        words[dense.BINS] = bins
        words[dense.CUTS] = address_of(part.bins)
        words[dense.PIECES] = address_of(part.pieces)
        words[dense.ADDRESSES], words[dense.COLUMNS] = address_of(addresses), addresses.shape[1]
        words[dense.GRADIENTS] = address_of(binding.gradients)
        words[dense.NUMBERS] = address_of(numbers)
        words[dense.SCALES] = address_of(scales)
        words[dense.NOISE] = address_of(binding.noise)
        words[dense.LENGTHS] = address_of(self._lengths_at)
        words[dense.PREFETCHES] = launch.prefetches
        alive = part, addresses, numbers, scales, binding.gradients, binding.noise
        update = Call(kernel, words, alive)
        return [*before, update, *after]

    def _partitioned(self, bins: int, after_norms: bool) -> Partition:
        """The pieces for a number of threads."""
        known = self._partitions.get((bins, after_norms))
        if known is not None:
            return known
        part = cut_evenly(self.sizes, self._starts, self._itemsize, bins)
        if after_norms:
            part = backwards(part, BACKWARD_PIECE)
        if self._form.is_packed:
            part = on_blocks(part, self.sizes, self._lengths)
        part = pieces_of(part, self.positions, self._rows)
        self._partitions[bins, after_norms] = part
        return part
