"""Steps that every rank takes in full, on gradients reduced over all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.agreement import Agreed
from rmsjit.distributed.comm import broadcast, load_mpi
from rmsjit.distributed.dense import DenseBuffer, by_precision
from rmsjit.distributed.incoming import Checked, Incoming
from rmsjit.distributed.packing import Flats
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.shards import Shards
from rmsjit.distributed.sparse import SparseTable, needs_merging, travelling
from rmsjit.distributed.stage import Stage, StagePlan, Terms
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.steps.entering import build
from rmsjit.steps.norms import Norms

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine


class ReplicatedPlan(StagePlan):
    """The stages of one list of variables whose slots every rank has."""

    def __init__(self, comm: Any, settings: Settings, incoming: Incoming, terms: Terms) -> None:
        super().__init__(comm, settings, incoming, terms)
        self._buffers: list[DenseBuffer] = []
        self._sums: dict[int, NDArray[Any]] = {}  # of dense gradients, in buffers
        if comm.size > 1 and terms.aggregate:
            for positions in by_precision(incoming.precisions, incoming.dense):
                self._add_buffer(positions)
        self._tables = {
            k: SparseTable(incoming.arrays[k], incoming.precisions[k], settings.bucket_bytes)
            for k in incoming.sparse
        }

    def _add_buffer(self, positions: list[int]) -> None:
        incoming, first = self.incoming, positions[0]
        buffer = DenseBuffer(
            incoming.precisions[first],
            incoming.arrays[first].dtype,
            {k: incoming.arrays[k].size for k in positions},
            self._settings.bucket_bytes,
        )
        self._buffers.append(buffer)
        for k in positions:
            shape = incoming.arrays[k].shape
            self._sums[k] = incoming.layouts[k].logical(buffer.result(k), shape)

    def lay_out(self, shards: Shards, exact: bool) -> None:
        """Nothing to share out."""

    def prepare(self, engine: Engine, hyperparameters: Hyperparameters) -> None:
        variables = [self.incoming.variables[k] for k in self.incoming.present]
        build(engine.store, variables, hyperparameters)

    def share_slots(self, engine: Engine) -> None:
        for key in dict.fromkeys(self.incoming.keys[k] for k in self.incoming.present):
            slots = engine.store.entries[key].slots
            for name in engine.store.form.slot_names:
                broadcast(self._comm, slots[name])

    # --- one step ---------------------------------------------------------------------------

    def reduced(self, checked: Checked, agreed: Agreed) -> Stage:
        if not self.terms.aggregate:
            return self._stage(checked.pairs, agreed, whole=self._agreed_norms)
        self._start(checked)
        tables = self._reduced_tables(checked.gradients, agreed.clipping)
        for buffer in self._buffers:
            buffer.finish(self._scales.of_sums)
        sums = {**self._sums, **tables}
        pairs = enumerate(checked.pairs)
        return self._stage(tuple((sums.get(k, own), var) for k, (own, var) in pairs), agreed)

    def _start(self, checked: Checked) -> None:
        """Set off the reduction of dense gradients."""
        flats = Flats(
            [np.ravel(g) if isinstance(g, np.ndarray) else None for g in checked.gradients],
            checked.addresses,
        )
        for buffer in self._buffers:
            buffer.start(self._comm, flats)

    def _reduced_tables(self, gradients: list[Any], clipping: Clipping) -> dict[int, IndexedSlices]:
        incoming = self.incoming
        if not self._tables:
            return {}
        own = {k: travelling(gradients[k], incoming.precisions[k]) for k in self._tables}
        counts = np.empty((self._comm.size, len(own)), np.int64)
        self._comm.Allgather(np.array([len(o.indices) for o in own.values()], np.int64), counts)
        reduced = {}
        for (k, rows), column in zip(own.items(), counts.T, strict=True):
            merge = needs_merging(clipping, incoming.precisions[k])
            result = self._tables[k].reduce(self._comm, rows, column, self._scales.of_sums, merge)
            reduced[k] = IndexedSlices(*result)
        return reduced

    def _agreed_norms(self, norms: Norms) -> Norms:
        """The same verdict on all ranks about gradients that may differ."""
        finite = norms.finite.astype(np.float64)
        self._comm.Allreduce(load_mpi().IN_PLACE, finite, load_mpi().MIN)
        return norms._replace(finite=finite == 1.0)
