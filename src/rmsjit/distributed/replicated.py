"""Steps in which every rank updates all variables, with gradients reduced over all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.distributed.agreement import Agreed
from rmsjit.distributed.comm import all_reduce, broadcast, gathered_counts
from rmsjit.distributed.dense import DenseBuffer
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
    """The plan if every rank has all slots."""

    def __init__(self, comm: Any, settings: Settings, incoming: Incoming, terms: Terms) -> None:
        super().__init__(comm, settings, incoming, terms)
        self._buffers: list[DenseBuffer] = []
        self._sums: dict[int, NDArray[Any]] = {}  # views of the buffers
        if comm.size > 1 and terms.aggregate:
            for positions in incoming.by_precision(incoming.dense):
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
        for k, result in buffer.results.items():
            self._sums[k] = incoming.layouts[k].logical(result, incoming.arrays[k].shape)

    def lay_out(self, shards: Shards, exact: bool) -> None:
        """Do nothing: every rank has all variables."""

    def prepare(self, engine: Engine, hyperparameters: Hyperparameters) -> None:
        variables = [self.incoming.variables[k] for k in self.incoming.present]
        build(engine.store, variables, hyperparameters)

    def share_slots(self, engine: Engine) -> None:
        for key in self.incoming.distinct:
            slots = engine.store.entries[key].slots
            for name in engine.store.form.slot_names:
                broadcast(self._comm, slots[name])

    # --- one step ---------------------------------------------------------------------------

    def reduced(self, checked: Checked, agreed: Agreed) -> Stage:
        if not self.terms.aggregate:
            return self._stage(checked.pairs, agreed, whole=self._agreed_norms)
        flats = Flats(
            [np.ravel(g) if isinstance(g, np.ndarray) else None for g in checked.gradients],
            checked.addresses,
        )
        for buffer in self._buffers:
            buffer.start(self._comm, flats)
        tables = self._reduced_tables(checked.gradients, agreed.clipping)
        for buffer in self._buffers:
            buffer.finish(self._scales.of_sums)
        sums = {**self._sums, **tables}
        pairs = enumerate(checked.pairs)
        return self._stage(tuple((sums.get(k, own), var) for k, (own, var) in pairs), agreed)

    def _reduced_tables(self, gradients: list[Any], clipping: Clipping) -> dict[int, IndexedSlices]:
        if not self._tables:
            return {}
        precisions = self.incoming.precisions
        own = {k: travelling(gradients[k], precisions[k]) for k in self._tables}
        counts = gathered_counts(self._comm, [len(rows.indices) for rows in own.values()])
        reduced = {}
        for (k, rows), column in zip(own.items(), counts.T, strict=True):
            merge = needs_merging(clipping, precisions[k])
            result = self._tables[k].reduce(self._comm, rows, column, self._scales.of_sums, merge)
            reduced[k] = IndexedSlices(*result)
        return reduced

    def _agreed_norms(self, norms: Norms) -> Norms:
        """Norms that call a gradient finite only if it is finite on all ranks."""
        finite = norms.finite.copy()
        all_reduce(self._comm, finite, "LAND")
        return norms._replace(finite=finite)
