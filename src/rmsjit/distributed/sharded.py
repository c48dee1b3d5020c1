"""Steps of which every rank takes its share: it has slots for a part of each variable only."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmsjit.arrays.layout import Key, is_dense
from rmsjit.autodiff import hooks
from rmsjit.distributed.agreement import Agreed
from rmsjit.distributed.clipping import ShardClipping
from rmsjit.distributed.comm import load_mpi
from rmsjit.distributed.dense import by_precision
from rmsjit.distributed.incoming import Checked, Incoming, Rows
from rmsjit.distributed.packing import Flats, Part
from rmsjit.distributed.settings import Scales, Settings
from rmsjit.distributed.shard_buffer import ShardBuffer
from rmsjit.distributed.sharded_state import Slots, key_of, remove, scatter
from rmsjit.distributed.sharded_table import ShardedTable, splits
from rmsjit.distributed.shards import Cut, Shards
from rmsjit.distributed.sparse import travelling
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.steps.engine import Stepper
from rmsjit.steps.pairs import warn_of_missing
from rmsjit.variables import Variable


class ShardedPlan:
    """The steps of one list of variables whose slots are shared out.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    settings : Settings
    incoming : Incoming

    Attributes
    ----------
    pieces : dict of int to ndarray
        By position, what this rank owns of each variable; left out where that is nothing.
    cuts : dict of int to Cut
    """

    def __init__(self, comm: Any, settings: Settings, incoming: Incoming) -> None:
        self._comm = comm
        self._settings = settings
        self.incoming = incoming
        self.begun = False
        self._scales = Scales(settings, incoming, comm.size)
        self._constrained = [
            variable
            for k, variable in enumerate(incoming.variables)
            if k in incoming.present and isinstance(variable, Variable) and variable.constraint
        ]
        self.cuts: dict[int, Cut] = {}
        self._whole: dict[Key, Slots] = {}
        self._flats: Flats | None = None  # of the variables, once it is known that they can stay

    def lay_out(self, shards: Shards, exact: bool) -> None:
        """Share the variables out, once all ranks have agreed that they have the same.

        Raises
        ------
        ValueError
            If a table can't be shared out.
        """
        if self.cuts:
            return
        incoming = self.incoming
        if exact and incoming.sparse:
            raise ValueError(
                f'{incoming.names[incoming.sparse[0]]} has a sparse gradient, and sparse="exact" '
                f"needs shard_state=False: rows catch up on every rank, which takes their slots"
            )
        self.cuts = shards.assign(incoming)
        self.pieces = {}
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
        self._order = sorted(self.pieces)
        self._views = tuple(self.pieces[k] for k in self._order)
        self._dense_results = {
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

    def prepare(self, stepper: Stepper) -> None:
        """Create the slots of the own part; those of whole variables are set aside."""
        incoming, store = self.incoming, stepper.store
        own = {key_of(piece) for piece in self._views}
        self._whole = {
            key: remove(store, key)
            for key in dict.fromkeys(incoming.keys[k] for k in incoming.present)
            if key not in own
        }
        if self._views:
            stepper.build(self._views)

    def share_slots(self, stepper: Stepper) -> None:
        """Give every rank its part of the slots of whole variables that rank 0 has."""
        incoming, store = self.incoming, stepper.store
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

    def step(
        self,
        stepper: Stepper,
        gradients: tuple[Any, ...],
        checked: Checked,
        agreed: Agreed,
        aggregate: bool,
    ) -> bool:
        """Reduce gradients, which have been checked, update the own part, and share it."""
        del gradients  # as they were given
        if self.incoming.dropped:
            warn_of_missing(self.incoming.dropped)
        rows = self._reduce(checked) if aggregate else self._take(checked)
        if stepper.nonfinite != "propagate" and not self._all_finite(stepper, rows):
            return False
        self._update(stepper, rows, agreed, self._scales.of_step if aggregate else 1.0)
        self._share(rows)
        for variable in self._constrained:
            assert variable.constraint is not None
            variable.assign(variable.constraint(variable.array))
        hooks.wrote(self.incoming.arrays)
        return True

    def _all_finite(self, stepper: Stepper, rows: dict[int, Rows]) -> bool:
        """Whether all gradients are finite on all ranks, which must all do the same."""
        bad = np.zeros(len(self.incoming.variables), np.int64)
        for k, part in [*self._dense_results.items(), *((k, r.values) for k, r in rows.items())]:
            bad[k] |= not np.isfinite(part).all()
        self._comm.Allreduce(load_mpi().IN_PLACE, bad, load_mpi().MAX)
        if bad.any() and stepper.nonfinite == "raise":
            names = ", ".join(self.incoming.names[k] for k in np.flatnonzero(bad))
            raise FloatingPointError(f"the gradient of {names} must be finite, got NaN or infinity")
        return not bad.any()

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

    def _update(
        self, stepper: Stepper, rows: dict[int, Rows], agreed: Agreed, scale: float
    ) -> None:
        numbers = self._scales.numbers(agreed.numbers) if scale != 1.0 else agreed.numbers
        clipping: Any
        positions = np.array(self._order, np.int64)
        count = len(self.incoming.variables)
        clipping = ShardClipping(agreed.clipping, scale, self._comm, positions, count)
        if not self._views:
            if agreed.clipping.by_norm:
                clipping.factors(np.zeros(0))  # the other ranks wait for this one's part
            return
        gradients = tuple(
            IndexedSlices(*self._tables[k].local(rows[k])) if k in rows else self._dense_results[k]
            for k in self._order
        )
        stepper.step(gradients, self._views, clipping, lambda: numbers)

    def _share(self, rows: dict[int, Rows]) -> None:
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
