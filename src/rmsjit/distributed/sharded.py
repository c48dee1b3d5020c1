"""Steps in which each rank updates its part of each variable and has slots only for that."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, array_key, is_dense
from rmsjit.autodiff import hooks
from rmsjit.distributed.agreement import Agreed
from rmsjit.distributed.comm import all_reduce, exchanged_counts, gathered_counts
from rmsjit.distributed.incoming import Checked, Incoming, Rows
from rmsjit.distributed.packing import Flats, Part
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.shard_buffer import ShardBuffer
from rmsjit.distributed.sharded_state import Slots, move_slots
from rmsjit.distributed.sharded_table import ShardedTable
from rmsjit.distributed.shards import Cut, Shards
from rmsjit.distributed.sparse import travelling
from rmsjit.distributed.stage import Stage, StagePlan, Terms
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.steps.entering import build
from rmsjit.steps.norms import Norms
from rmsjit.steps.pairs import warn_of_missing

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
        self._whole: dict[Key, Slots] = {}
        self._flats: Flats | None = None  # of the variables, if none has to be copied

    def lay_out(self, shards: Shards, exact: bool) -> None:
        if self.cuts:
            return
        incoming = self.incoming
        if exact and incoming.sparse:
            raise ValueError(
                f'{incoming.names[incoming.sparse[0]]} has a sparse gradient, and sparse="exact" '
                f"needs shard_state=False: rows catch up on every rank, which needs their slots"
            )
        self.cuts = shards.assign(incoming)
        for k, cut in self.cuts.items():
            piece = cut.part(incoming.arrays[k], incoming.layouts[k], self._comm.rank)
            if piece.size:
                self.pieces[k] = piece
        self._tables = {
            k: ShardedTable(self._comm, incoming.arrays[k], self.cuts[k]) for k in incoming.sparse
        }
        self._buffers = [
            self._buffer(positions) for positions in incoming.by_precision(incoming.dense)
        ]
        self._owned = np.array(list(self.pieces), np.int64)
        self._sums = {
            part.position: result.reshape(self.pieces[part.position].shape)
            for buffer in self._buffers
            for part, result in zip(buffer.parts, buffer.results, strict=True)
        }

    def _buffer(self, positions: list[int]) -> ShardBuffer:
        arrays, first = self.incoming.arrays, positions[0]
        shards = [
            [Part(k, *self.cuts[k].elements(arrays[k].size, rank)) for k in positions]
            for rank in range(self._comm.size)
        ]
        return ShardBuffer(
            self._comm,
            self.incoming.precisions[first],
            arrays[first].dtype,
            [[part for part in shard if part.stop > part.start] for shard in shards],
            self._settings.bucket_bytes,
        )

    # --- the first step ---------------------------------------------------------------------

    def prepare(self, engine: Engine, hyperparameters: Hyperparameters) -> None:
        """Create the slots of this rank's parts; set those of whole variables aside."""
        incoming, store = self.incoming, engine.store
        own = {array_key(piece) for piece in self.pieces.values()}
        self._whole = {key: store.remove(key) for key in incoming.distinct if key not in own}
        build(store, list(self.pieces.values()), hyperparameters)

    def share_slots(self, engine: Engine) -> None:
        """Send every rank its part of the slots of whole variables on rank 0."""
        incoming, store = self.incoming, engine.store
        names = [sorted(self._whole.get(key, {})) for key in incoming.distinct]
        names = self._comm.bcast(names, 0)  # a short list, once
        for (key, k), slots in zip(incoming.distinct.items(), names, strict=True):
            piece = store.entries[array_key(self.pieces[k])] if k in self.pieces else None
            whole, array, cut = self._whole.get(key, {}), incoming.arrays[k], self.cuts[k]
            move_slots(self._comm, whole, array, cut, piece, slots, gather=False)
        self._whole = {}

    # --- one step ---------------------------------------------------------------------------

    def reduced(self, checked: Checked, agreed: Agreed) -> Stage:
        if self.incoming.missing:
            warn_of_missing(self.incoming.missing)
        rows = self._reduce(checked) if self.terms.aggregate else self._take(checked)
        tables = {k: self._tables[k].local(own) for k, own in rows.items()}
        sums = {**self._sums, **tables}
        pairs = tuple((sums[k], piece) for k, piece in self.pieces.items())
        return self._stage(
            pairs,
            agreed,
            whole=self._whole_norms,
            own=lambda factors: factors[self._owned],
            share=partial(self._share, rows),
        )

    def _whole_norms(self, norms: Norms) -> Norms:
        """Norms of whole gradients, from the norms of the parts on all ranks."""
        totals = np.zeros((len(self.incoming.variables), 2))
        totals[self._owned, 0], totals[self._owned, 1] = norms.squares, ~norms.finite
        all_reduce(self._comm, totals, "SUM")
        return Norms.of_totals(totals)

    def _reduce(self, checked: Checked) -> dict[int, Rows]:
        flat = self._flat_gradients(checked)
        for buffer in self._buffers:
            buffer.reduce(flat, self._scales.of_sums)
        if not self._tables:
            return {}
        own = self._travelling_rows(checked)
        gives = np.stack([table.splits(own[k]) for k, table in self._tables.items()], axis=1)
        takes = exchanged_counts(self._comm, gives)
        return {
            k: table.reduce(own[k], gives[:, s], takes[:, s], self._scales.of_sums)
            for s, (k, table) in enumerate(self._tables.items())
        }

    def _take(self, checked: Checked) -> dict[int, Rows]:
        flat = self._flat_gradients(checked)
        for buffer in self._buffers:
            buffer.take(flat)
        own = self._travelling_rows(checked)
        return {k: table.take(own[k]) for k, table in self._tables.items()}

    def _travelling_rows(self, checked: Checked) -> dict[int, Rows]:
        precisions = self.incoming.precisions
        return {k: travelling(checked.gradients[k], precisions[k]) for k in self._tables}

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
