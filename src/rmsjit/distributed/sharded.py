"""Steps in which each rank updates its part of each variable and has slots only for that."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.blocks import in_records_of
from rmsjit.arrays.layout import Key, array_key, is_dense
from rmsjit.autodiff import hooks
from rmsjit.distributed.comm import (
    all_reduce,
    broadcast_object,
    exchanged_counts,
    gathered_counts,
)
from rmsjit.distributed.incoming import Checked, Incoming, Rows
from rmsjit.distributed.packing import Flats, Part
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.shard_buffer import ShardBuffer, bundles
from rmsjit.distributed.sharded_state import Slots, move_slots
from rmsjit.distributed.sharded_table import ShardedTable
from rmsjit.distributed.shards import Cut, Shards
from rmsjit.distributed.sparse import travelling
from rmsjit.distributed.stage import Fresh, Outgoing, Stage, StagePlan, Step, Terms
from rmsjit.distributed.wire import Slices, slices_for
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.state.divided import Divided
from rmsjit.state.entries import Entry, entry_of
from rmsjit.state.making import start_from_variable
from rmsjit.state.slots import SlotStore
from rmsjit.steps.entering import build, check_rows
from rmsjit.steps.norms import Norms
from rmsjit.steps.pairs import Pairs
from rmsjit.variables import is_trainable

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine


class ShardedPlan(StagePlan):
    """The plan if each rank has the slots of its parts.

    Attributes
    ----------
    cuts : dict of int to Cut
        The cut of each variable, by position.
    pieces : dict of int to ndarray
        The parts that this rank owns, by position; views of the variables.
    """

    def __init__(self, comm: Any, settings: Settings, incoming: Incoming, terms: Terms) -> None:
        super().__init__(comm, settings, incoming, terms)
        self.cuts: dict[int, Cut] = {}
        self.pieces: dict[int, NDArray[Any]] = {}
        self._buffers: list[ShardBuffer] = []
        self._summed: Pairs | None = None  # of every step, if there are no tables
        self._whole: dict[Key, Slots] = {}
        self._flats: Flats | None = None  # of the variables, if none has to be copied

    def lay_out(self, shards: Shards, exact: bool) -> None:
        incoming = self.incoming
        if exact and incoming.sparse:
            raise ValueError(
                f'{incoming.names[incoming.sparse[0]]} has a sparse gradient, and sparse="exact" '
                f"needs shard_state=False: rows catch up on every rank, which needs their slots"
            )
        for k in incoming.present:
            if not is_trainable(incoming.variables[k]):
                raise ValueError(
                    f"{incoming.names[k]} is not trainable, which needs shard_state=False: "
                    f"leave it out of the step"
                )
        self.cuts = shards.cuts_of(incoming, self.terms.form.is_packed)
        for k in incoming.sparse:
            check_rows(incoming.arrays[k], self.cuts[k].record_length, incoming.names[k])
        self.pieces = {}
        for k, cut in self.cuts.items():
            piece = cut.part(incoming.arrays[k], incoming.layouts[k], self._comm.rank)
            if piece.size:
                self.pieces[k] = piece
        self._tables = {
            k: ShardedTable(self._comm, incoming.arrays[k], self.cuts[k], self._slices(k))
            for k in incoming.sparse
        }
        self._lay_out_messages()
        self._owned = np.array(list(self.pieces), np.int64)
        self._sums = {
            part.position: result.reshape(self.pieces[part.position].shape)
            for buffer in self._buffers
            for part, result in zip(buffer.parts, buffer.results, strict=True)
        }
        self._summed = None if self._tables else self._pairs({})

    def _slices(self, k: int) -> Slices:
        return slices_for(self._settings, self.incoming.precisions[k], self._comm.size)

    def _lay_out_messages(self) -> None:
        incoming = self.incoming
        sent = self.terms.sent if self._comm.size > 1 else ()  # one process waits for nothing
        self._buffers, self.messages = [], {}
        for positions in incoming.by_precision(sent):
            sizes = {k: incoming.arrays[k].nbytes for k in positions}
            buffer = self._add_buffer(bundles(sizes, self._settings.bucket_bytes))
            self.messages = {**self.messages, **dict.fromkeys(positions, buffer)}
        for positions in incoming.by_precision(k for k in incoming.dense if k not in sent):
            self._add_buffer([positions])

    def _add_buffer(self, of_bundles: list[list[int]]) -> ShardBuffer:
        incoming, first = self.incoming, of_bundles[0][0]
        precision, dtype = incoming.precisions[first], incoming.arrays[first].dtype
        buffer = ShardBuffer(self._comm, precision, dtype, of_bundles, self._part, self._settings)
        self._buffers.append(buffer)
        return buffer

    def _part(self, position: int, rank: int) -> Part:
        size = self.incoming.arrays[position].size
        return Part(position, *self.cuts[position].elements(size, rank))

    # --- the first step ---------------------------------------------------------------------

    def has_state(self, store: SlotStore, shards: Shards, k: int) -> bool:
        cut = shards.cuts.get(self.incoming.keys[k])
        if cut is None:
            return False
        piece = cut.part(self.incoming.arrays[k], self.incoming.layouts[k], self._comm.rank)
        return piece.size == 0 or array_key(piece) in store.entries

    def prepare(self, engine: Engine, hyperparameters: Hyperparameters, fresh: Fresh) -> None:
        """Create the slots of this rank's parts; set those of whole variables aside."""
        store, distinct = engine.store, self.incoming.distinct
        new = {key: k for key, k in distinct.items() if key not in store.divided}  # or empty
        wholes = {k: self._whole_entry(store, k) for k in new.values()}
        self._whole = {key: self._removed(store, key, k) for key, k in fresh.items()}
        lengths = [self.cuts[k].record_length for k in self.pieces]
        build(store, list(self.pieces.values()), hyperparameters, lengths)
        for key, k in new.items():
            part = store.entries[array_key(self.pieces[k])] if k in self.pieces else None
            if part is not None:
                part.first = self._part(k, self._comm.rank).start
            divided = Divided(wholes[k], part)
            divided.join(wholes[k].group)
            store.divided = {**store.divided, key: divided}

    def _whole_entry(self, store: SlotStore, k: int) -> Entry:
        """The entry of a whole variable, as it was added to a group, or a new one."""
        entry = store.find(self.incoming.variables[k]) or entry_of(self.incoming.variables[k])
        entry.record_length = self.cuts[k].record_length
        return entry

    def _removed(self, store: SlotStore, key: Key, k: int) -> Slots:
        """The slots of a whole variable, taken out of the store, in the records of its cut."""
        size, length = self.incoming.arrays[k].size, self.cuts[k].record_length
        held = store.remove(key)
        return {name: in_records_of(slot, size, length) for name, slot in held.items()}

    def share_slots(self, engine: Engine, fresh: Fresh) -> None:
        """Send every rank its part of the slots of whole variables on rank 0."""
        incoming, store = self.incoming, engine.store
        names = broadcast_object(self._comm, [sorted(self._whole[key]) for key in fresh])
        for (key, k), slots in zip(fresh.items(), names, strict=True):
            piece = store.entries[array_key(self.pieces[k])] if k in self.pieces else None
            whole, array, cut = self._whole[key], incoming.arrays[k], self.cuts[k]
            move_slots(self._comm, whole, array, cut, piece, slots, gather=False)
            if piece is not None:
                start_from_variable(store, piece, without=slots)
        self._whole = {}

    # --- one step ---------------------------------------------------------------------------

    def outgoing(self, checked: Checked, is_underway: bool) -> Outgoing:
        precisions = self.incoming.precisions
        with np.errstate(all="ignore"):  # what a cast loses, as in a step of one process
            rows = {k: travelling(checked.gradients[k], precisions[k]) for k in self._tables}
        return Outgoing(self._flat_gradients(checked), rows, is_underway)

    def reduced(self, checked: Checked, outgoing: Outgoing, step: Step) -> Stage:
        rows = self._reduce(outgoing) if self.terms.aggregate else self._take(outgoing)
        tables = {k: self._tables[k].local(own) for k, own in rows.items()}
        pairs = self._pairs(tables) if self._summed is None else self._summed
        return self._stage(
            pairs,
            step,
            name=self.incoming.names.__getitem__,
            own=lambda factors: factors[self._owned],
            combine=self._whole_norms,
            spread=partial(self._share, rows),
            are_unmoved=pairs is self._summed,
        )

    def _pairs(self, tables: Mapping[int, Any]) -> Pairs:
        """The parts of this rank with the sums of their gradients, some of them of `tables`."""
        sums = {**self._sums, **tables}
        return tuple((sums[k], piece) for k, piece in self.pieces.items())

    def _whole_norms(self, norms: Norms | None) -> Norms | None:
        """Norms of whole gradients, from the norms of the parts on all ranks."""
        count = len(self.incoming.variables)
        totals = np.zeros((count + 1, 2))  # the last row counts ranks that have failed
        if norms is None:
            totals[count] = 1
        else:
            totals[self._owned, 0], totals[self._owned, 1] = norms.squares, ~norms.finite
        all_reduce(self._comm, totals, "SUM", np.float64, 2 * (count + 1))
        if totals[count, 0]:
            return None
        return Norms.of_totals(totals[:count])

    def _reduce(self, outgoing: Outgoing) -> dict[int, Rows]:
        underway = self.messages.values() if outgoing.is_underway else ()
        for buffer in self._buffers:
            if buffer in underway:
                buffer.finish(self._scales.of_sums)
            else:
                buffer.reduce(outgoing.flats, self._scales.of_sums)
        own = outgoing.rows
        if not own:
            return {}
        gives = np.stack([table.splits(own[k]) for k, table in self._tables.items()], axis=1)
        takes = exchanged_counts(self._comm, gives)
        return {
            k: table.reduce(own[k], gives[:, s], takes[:, s], self._scales.of_sums)
            for s, (k, table) in enumerate(self._tables.items())
        }

    def _take(self, outgoing: Outgoing) -> dict[int, Rows]:
        for buffer in self._buffers:
            buffer.take(outgoing.flats)
        return {k: table.take(outgoing.rows[k]) for k, table in self._tables.items()}

    def _flat_gradients(self, checked: Checked) -> Flats:
        """Dense gradients in the order of the variables' cuts: in memory order, or by rows."""
        if checked.addresses is not None:
            return Flats([], checked.addresses)
        flat: list[Any] = [None] * len(checked.gradients)
        for k in self.incoming.dense:
            gradient = checked.gradients[k]
            if self.cuts[k].by_rows:
                layout, shape = self.incoming.layouts[k], self.incoming.arrays[k].shape
                gradient = layout.logical(gradient, shape)
            flat[k] = gradient.reshape(-1)
        return Flats(flat)

    def flat(self, position: int, gradient: NDArray[Any]) -> NDArray[Any]:
        if not self.cuts[position].by_rows:
            gradient = self.incoming.layouts[position].canonical(gradient)
        return gradient.reshape(-1)

    def _share(self, rows: dict[int, Rows]) -> None:
        """Send the parts that this rank has updated to all ranks, then apply constraints."""
        self._share_dense()
        if rows:
            counts = gathered_counts(self._comm, [len(rows[k].indices) for k in self._tables])
            for s, (k, table) in enumerate(self._tables.items()):
                table.share(rows[k].indices, counts[:, s])
        for variable in self.incoming.constrained:
            assert variable.constraint is not None
            variable.assign(variable.constraint(variable.array))
        hooks.wrote(self.incoming.arrays)

    def _share_dense(self) -> None:
        copies: list[tuple[Any, Any]] = []
        flats = self._flats
        if flats is None:
            copies, flats = self._flat_variables()
            if not copies:
                self._flats = flats
        for buffer in self._buffers:
            buffer.share(flats)
        for array, copy in copies:
            array[...] = copy

    def _flat_variables(self) -> tuple[list[tuple[Any, Any]], Flats]:
        """Dense variables, flat in the order of their cuts, and those that had to be copied."""
        flat: list[Any] = [None] * len(self.incoming.variables)
        copies = []
        for k in self.incoming.dense:
            array, layout = self.incoming.arrays[k], self.incoming.layouts[k]
            ordered = array if self.cuts[k].by_rows else layout.canonical(array)
            if is_dense(ordered):
                flat[k] = ordered.reshape(-1)
            else:
                copies.append((ordered, np.ascontiguousarray(ordered)))
                flat[k] = copies[-1][1].reshape(-1)
        return copies, Flats.of(flat)
