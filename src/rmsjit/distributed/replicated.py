"""Steps that every rank takes in full, on gradients reduced over all ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.agreement import Agreed
from rmsjit.distributed.clipping import ReducedClipping
from rmsjit.distributed.comm import broadcast
from rmsjit.distributed.dense import DenseBuffer, by_precision
from rmsjit.distributed.incoming import Checked, Incoming
from rmsjit.distributed.packing import Flats
from rmsjit.distributed.settings import Scales, Settings
from rmsjit.distributed.shards import Shards
from rmsjit.distributed.sparse import SparseTable, needs_merging, travelling
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.rule.clipping import Clipping
from rmsjit.state.slots import Entry
from rmsjit.steps.engine import Stepper


class ReplicatedPlan:
    """The steps of one list of variables whose slots every rank has.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    settings : Settings
    incoming : Incoming
    """

    def __init__(self, comm: Any, settings: Settings, incoming: Incoming) -> None:
        self._comm = comm
        self.incoming = incoming
        self.begun = False
        self._scales = Scales(settings, incoming, comm.size)
        self._buffers: list[DenseBuffer] = []
        self._results: dict[int, NDArray[Any]] = {}
        if comm.size > 1:
            for positions in by_precision(incoming.precisions, incoming.dense):
                self._add_buffer(positions, settings.bucket_bytes)
        self._all_results = tuple(self._results[k] for k in sorted(self._results))
        self._tables = {
            k: SparseTable(incoming.arrays[k], incoming.precisions[k], settings.bucket_bytes)
            for k in incoming.sparse
        }

    def _add_buffer(self, positions: list[int], bucket_bytes: int) -> None:
        incoming = self.incoming
        sizes = {k: incoming.arrays[k].size for k in positions}
        first = positions[0]
        buffer = DenseBuffer(
            incoming.precisions[first], incoming.arrays[first].dtype, sizes, bucket_bytes
        )
        self._buffers.append(buffer)
        for k in positions:
            shape = incoming.arrays[k].shape
            self._results[k] = incoming.layouts[k].logical(buffer.result(k), shape)

    def lay_out(self, shards: Shards, exact: bool) -> None:
        """Nothing to share out."""

    def prepare(self, stepper: Stepper) -> None:
        """Create the slots."""
        stepper.build([self.incoming.variables[k] for k in self.incoming.present])

    def share_slots(self, stepper: Stepper) -> None:
        """Give every rank the slots of rank 0."""
        for entry in self._entries(stepper):
            for slot in stepper.store.form.slots:
                broadcast(self._comm, entry.slots[slot])

    def _entries(self, stepper: Stepper) -> list[Entry]:
        keys = dict.fromkeys(self.incoming.keys[k] for k in self.incoming.present)
        return [stepper.store.entries[key] for key in keys]

    def step(
        self,
        stepper: Stepper,
        gradients: tuple[Any, ...],
        checked: Checked,
        agreed: Agreed,
        aggregate: bool,
    ) -> bool:
        """Reduce gradients, which have been checked, and update."""
        variables, clipping = self.incoming.variables, agreed.clipping
        if not aggregate:
            return stepper.step(gradients, variables, clipping, lambda: agreed.numbers)
        reduced = self._reduced(gradients, checked, clipping)
        numbers = self._scales.numbers(agreed.numbers)
        of_sums: Any = ReducedClipping(clipping, self._scales.of_step)
        return stepper.step(reduced, variables, of_sums, lambda: numbers)

    def _reduced(
        self, gradients: tuple[Any, ...], checked: Checked, clipping: Clipping
    ) -> tuple[Any, ...]:
        """The gradients of the step: sums over ranks, but for a factor that rides along."""
        flat = Flats(
            [g.ravel() if type(g) is np.ndarray else None for g in checked.gradients],
            checked.addresses,
        )
        for buffer in self._buffers:
            buffer.start(self._comm, flat)
        tables = self._reduced_tables(checked.gradients, clipping)
        for buffer in self._buffers:
            buffer.finish(self._scales.of_sums)
        if len(self._results) == len(gradients):
            return self._all_results
        reduced = {**self._results, **tables}
        return tuple(reduced.get(k, gradient) for k, gradient in enumerate(gradients))

    def _reduced_tables(self, checked: list[Any], clipping: Clipping) -> dict[int, Any]:
        incoming = self.incoming
        if not self._tables:
            return {}
        own = {k: travelling(checked[k], incoming.precisions[k]) for k in self._tables}
        counts = np.empty((self._comm.size, len(own)), np.int64)
        self._comm.Allgather(np.array([len(o.indices) for o in own.values()], np.int64), counts)
        reduced = {}
        for (k, rows), column in zip(own.items(), counts.T, strict=True):
            merge = needs_merging(clipping, incoming.precisions[k])
            result = self._tables[k].reduce(self._comm, rows, column, self._scales.of_sums, merge)
            reduced[k] = IndexedSlices(*result)
        return reduced
