"""Steps that ranks share: each has slots for its part of each variable only."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, is_dense
from rmsjit.autodiff import hooks
from rmsjit.distributed.agreement import Agreed
from rmsjit.distributed.comm import load_mpi
from rmsjit.distributed.dense import by_precision
from rmsjit.distributed.incoming import Checked, Incoming, Rows
from rmsjit.distributed.packing import Flats, Part
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.shard_buffer import ShardBuffer
from rmsjit.distributed.sharded_state import Slots, key_of, scatter
from rmsjit.distributed.sharded_table import ShardedTable, splits
from rmsjit.distributed.shards import Cut, Shards
from rmsjit.distributed.sparse import travelling
from rmsjit.distributed.stage import Stage, StagePlan, Terms
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.steps.entering import build
from rmsjit.steps.norms import Norms
from rmsjit.steps.pairs import warn_of_missing

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine


class ShardedPlan(StagePlan):
    """The stages of one list of variables whose slots are shared out.

    Attributes
    ----------
    pieces : dict of int to ndarray
        By position, the part of each variable that this rank owns, if there is any.
    cuts : dict of int to Cut
    """

    def __init__(self, comm: Any, settings: Settings, incoming: Incoming, terms: Terms) -> None:
        super().__init__(comm, settings, incoming, terms)
        self.cuts: dict[int, Cut] = {}
        self.pieces: dict[int, NDArray[Any]] = {}
        self._whole: dict[Key, Slots] = {}
        self._flats: Flats | None = None  # of the variables, once it is known that they can stay

    def lay_out(self, shards: Shards, exact: bool) -> None:
        if self.cuts:
            return
        incoming = self.incoming
        if exact and incoming.sparse:
            raise ValueError(
                f'{incoming.names[incoming.sparse[0]]} has a sparse gradient, and sparse="exact" '
                f"needs shard_state=False: rows catch up on every rank, which takes their slots"
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
            self._buffer(positions)
            for positions in by_precision(incoming.precisions, incoming.dense)
        ]
        self._owned = np.array(list(self.pieces), np.int64)
        self._sums = {
            part.position: result.reshape(self.pieces[part.position].shape)
            for buffer in self._buffers
            for part, result in zip(buffer.parts, buffer.results, strict=True)
        }

    def _buffer(self, positions: list[int]) -> ShardBuffer:
        incoming = self.incoming
        parts = []
        for rank in range(self._comm.size):
            shard = [
                Part(k, *self.cuts[k].elements(incoming.arrays[k].size, rank)) for k in positions
            ]
            parts.append([part for part in shard if part.stop > part.start])
        first = positions[0]
        return ShardBuffer(
            self._comm,
            incoming.precisions[first],
            incoming.arrays[first].dtype,
            parts,
            {k: incoming.arrays[k].size for k in positions},
            self._settings.bucket_bytes,
        )

    # --- the first step ---------------------------------------------------------------------

    def prepare(self, engine: Engine, hyperparameters: Hyperparameters) -> None:
        """Create the slots of the own part; those of whole variables are set aside."""
        incoming, store = self.incoming, engine.store
        own = {key_of(piece) for piece in self.pieces.values()}
        self._whole = {
            key: store.remove(key)
            for key in dict.fromkeys(incoming.keys[k] for k in incoming.present)
            if key not in own
        }
        build(engine.store, list(self.pieces.values()), hyperparameters)

    def share_slots(self, engine: Engine) -> None:
        """Give every rank its part of the slots of whole variables that rank 0 has."""
        incoming, store = self.incoming, engine.store
        seen: dict[Key, int] = {}
        for k in incoming.present:
            seen.setdefault(incoming.keys[k], k)
        names = [sorted(self._whole.get(key, {})) for key in seen]
        names = self._comm.bcast(names, 0)  # a short list, once
        for (key, k), slots in zip(seen.items(), names, strict=True):
            piece = store.entries[key_of(self.pieces[k])] if k in self.pieces else None
            whole = self._whole.get(key, {})
            scatter(self._comm, whole, incoming.arrays[k], self.cuts[k], piece, slots)
        self._whole = {}

    # --- one step ---------------------------------------------------------------------------

    def reduced(self, checked: Checked, agreed: Agreed) -> Stage:
        if self.incoming.missing:
            warn_of_missing(self.incoming.missing)
        rows = self._reduce(checked) if self.terms.aggregate else self._take(checked)
        tables = {k: IndexedSlices(*self._tables[k].local(own)) for k, own in rows.items()}
        sums = {**self._sums, **tables}
        pairs = tuple((sums[k], piece) for k, piece in self.pieces.items())
        return self._stage(
            pairs,
            agreed,
            whole=self._whole_norms,
            own=self._own_factors,
            share=partial(self._share, rows),
        )

    def _whole_norms(self, norms: Norms) -> Norms:
        """Norms of whole gradients, by those of the parts that ranks own."""
        totals = np.zeros((len(self.incoming.variables), 2))
        totals[self._owned, 0], totals[self._owned, 1] = norms.squares, ~norms.finite
        self._comm.Allreduce(load_mpi().IN_PLACE, totals)
        return Norms.of_totals(totals)

    def _own_factors(self, factors: NDArray[Any]) -> NDArray[Any]:
        own: NDArray[Any] = factors[self._owned]
        return own

    def _reduce(self, checked: Checked) -> dict[int, Rows]:
        gradients = checked.gradients
        flat = self._flat_gradients(checked)
        for buffer in self._buffers:
            buffer.reduce(flat, self._scales.of_sums)
        if not self._tables:
            return {}
        own = {k: travelling(gradients[k], self.incoming.precisions[k]) for k in self._tables}
        gives = np.stack([splits(own[k].indices, t.cut) for k, t in self._tables.items()], axis=1)
        takes = np.empty_like(gives)
        gives = np.ascontiguousarray(gives)
        self._comm.Alltoall(gives, takes)
        return {
            k: table.reduce(own[k], gives[:, s], takes[:, s], self._scales.of_sums)
            for s, (k, table) in enumerate(self._tables.items())
        }

    def _take(self, checked: Checked) -> dict[int, Rows]:
        flat = self._flat_gradients(checked)
        for buffer in self._buffers:
            buffer.take(flat)
        return {
            k: table.take(travelling(checked.gradients[k], self.incoming.precisions[k]))
            for k, table in self._tables.items()
        }

    def _flat_gradients(self, checked: Checked) -> Flats:
        """Dense gradients as their variables are shared out: in memory order, or by rows."""
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
        """Give all ranks the parts that this one has updated, then apply constraints."""
        self._share_dense()
        self._share_rows(rows)
        for variable in self.incoming.constrained:
            assert variable.constraint is not None
            variable.assign(variable.constraint(variable.array))
        hooks.wrote(self.incoming.arrays)

    def _share_dense(self) -> None:
        copies: list[tuple[Any, Any]] = []
        flats = self._flats
        if flats is None:
            copies, flats = self._flat_variables()
            if not copies:  # then they stay where they are
                self._flats = flats
        for buffer in self._buffers:
            buffer.share(flats)
        for array, copy in copies:
            array[...] = copy

    def _share_rows(self, rows: dict[int, Rows]) -> None:
        if rows:
            own = np.array([len(rows[k].indices) for k in self._tables], np.int64)
            counts = np.empty((self._comm.size, len(own)), np.int64)
            self._comm.Allgather(own, counts)
            for s, (k, table) in enumerate(self._tables.items()):
                table.share(rows[k].indices, counts[:, s])

    def _flat_variables(self) -> tuple[list[tuple[Any, Any]], Flats]:
        """Dense variables as they are shared out, and those that had to be copied for that."""
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
