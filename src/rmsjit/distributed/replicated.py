"""Steps in which every rank updates all variables, with gradients reduced over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.blocks import as_bytes, has_records
from rmsjit.distributed.comm import IN_FLIGHT, all_reduce, gathered_counts
from rmsjit.distributed.dense import DenseBuffer
from rmsjit.distributed.incoming import Checked, Incoming, Rows
from rmsjit.distributed.packing import Flats
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.shards import Shards
from rmsjit.distributed.shared import Layout, SharedMemory
from rmsjit.distributed.sparse import SparseTable, finished, needs_merging, travelling
from rmsjit.distributed.stage import Fresh, Outgoing, Stage, StagePlan, Step, Terms
from rmsjit.distributed.starting import Overwriting
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.state.slots import SlotStore
from rmsjit.steps.entering import build
from rmsjit.steps.norms import Norms
from rmsjit.steps.pairs import Pairs

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine


class ReplicatedPlan(StagePlan):
    """The plan if every rank has all slots.

    What is sent as bfloat16 takes two collectives, whose order must not depend on when the first
    one ends.  So only one piece of such gradients travels at a time before a step.
    """

    def __init__(
        self,
        comm: Any,
        settings: Settings,
        incoming: Incoming,
        terms: Terms,
        memory: SharedMemory,
    ) -> None:
        super().__init__(comm, settings, incoming, terms)
        self._memory = memory
        self.most_at_a_time = IN_FLIGHT if settings.wire_dtype is None else 1
        self._buffers: list[DenseBuffer] = []
        self._waiting: list[DenseBuffer] = []  # those of gradients that are not sent before
        self._sums: dict[int, NDArray[Any]] = {}  # views of the buffers
        self._summed: Pairs | None = None  # of all sums with their variables
        self._tables = {
            k: SparseTable(incoming.arrays[k], incoming.precisions[k], settings, comm.size)
            for k in incoming.sparse
        }

    def _add_buffer(self, positions: list[int], layout: Layout | None) -> DenseBuffer:
        incoming, first = self.incoming, positions[0]
        buffer = DenseBuffer(
            self._comm,
            incoming.precisions[first],
            incoming.arrays[first].dtype,
            {k: incoming.arrays[k].size for k in positions},
            self._settings,
            layout,
        )
        self._buffers.append(buffer)
        for k, result in buffer.results.items():
            self._sums[k] = incoming.layouts[k].logical(result, incoming.arrays[k].shape)
        return buffer

    def lay_out(self, shards: Shards, exact: bool) -> None:
        """Allocate the buffers; every rank has all variables."""
        self._buffers, self._sums, self._summed, self.messages = [], {}, None, {}
        self._waiting = []
        if self._comm.size == 1 or not self.terms.aggregate:
            return
        incoming, sent = self.incoming, self.terms.sent
        layout = self._memory.new_layout()
        for positions in incoming.by_precision(sent):
            buffer = self._add_buffer(positions, layout)
            self.messages = {**self.messages, **dict.fromkeys(positions, buffer)}
        others = incoming.by_precision(k for k in incoming.dense if k not in sent)
        self._waiting = [self._add_buffer(positions, layout) for positions in others]

    def has_state(self, store: SlotStore, shards: Shards, k: int) -> bool:
        return self.incoming.keys[k] in store.entries

    def prepare(self, engine: Engine, hyperparameters: Hyperparameters, fresh: Fresh) -> None:
        variables = [self.incoming.variables[k] for k in self.incoming.present]
        build(engine.store, variables, hyperparameters)

    def share_slots(self, engine: Engine, fresh: Fresh) -> None:
        store = engine.store
        entries = [store.entries[key] for key in fresh]
        slots = [entry.slots[slot.name] for entry in entries for slot in store.slots_of(entry)]
        held = [as_bytes(slot) if has_records(slot) else slot for slot in slots]
        Overwriting(held).run(self._comm)

    def rebound(self, incoming: Incoming) -> Self:
        plan = super().rebound(incoming)
        plan._summed = None
        return plan

    # --- one step ---------------------------------------------------------------------------

    def flat(self, position: int, gradient: NDArray[Any]) -> NDArray[Any]:
        return self.incoming.layouts[position].canonical(gradient).reshape(-1)

    def outgoing(self, checked: Checked, is_underway: bool) -> Outgoing:
        if checked.addresses is not None:  # nothing is converted
            return self._put(Outgoing(Flats([], checked.addresses), {}, is_underway))
        with np.errstate(all="ignore"):  # what a cast loses, as in a step of one process
            precisions = self.incoming.precisions
            flats = [np.ravel(g) if isinstance(g, np.ndarray) else None for g in checked.gradients]
            rows = {k: travelling(checked.gradients[k], precisions[k]) for k in self._tables}
            return self._put(Outgoing(Flats(flats), rows, is_underway))

    def _put(self, outgoing: Outgoing) -> Outgoing:
        """Write gradients to shared memory, as far as they are summed there."""
        for buffer in self._waiting if outgoing.is_underway else self._buffers:
            buffer.put(outgoing.flats)
        return outgoing

    def reduced(self, checked: Checked, outgoing: Outgoing, step: Step) -> Stage:
        if not self.terms.aggregate:
            merges = step.needs_norms or not step.clipping.is_none
            own = self._combined_rows(outgoing.rows) if merges else {}
            return self._stage(self._pairs(checked, own), step, combine=self._agreed_norms)
        for buffer in self._waiting if outgoing.is_underway else self._buffers:
            buffer.start(outgoing.flats)
        tables = self._reduced_tables(outgoing.rows, step) if self._tables else {}
        for buffer in self._buffers:
            buffer.finish(self._scales.of_sums)
        pairs = self._pairs(checked, tables)
        return self._stage(pairs, step, are_unmoved=pairs is self._summed)

    def _pairs(self, checked: Checked, tables: Mapping[int, Any]) -> Pairs:
        """Pairs with sums instead of gradients, as far as there are sums, and with `tables`.

        Without tables they are the same at every step, and the check of the gradients has found
        the variables where they were.  To make pairs takes as long as to update as many small
        variables.
        """
        if not tables and not self._sums and not self.incoming.missing:
            return checked.pairs
        if tables or not self._sums:
            return _with_sums(checked.pairs, {**self._sums, **tables})
        if self._summed is None:
            self._summed = _with_sums(checked.pairs, self._sums)
        return self._summed

    def _combined_rows(self, rows: dict[int, Rows]) -> dict[int, IndexedSlices]:
        """Sparse gradients in which each row is named once, as clipping expects after a sum."""
        arrays = self.incoming.arrays
        return {k: IndexedSlices(*finished(own, 1.0, arrays[k].dtype)) for k, own in rows.items()}

    def _reduced_tables(self, own: dict[int, Rows], step: Step) -> dict[int, IndexedSlices]:
        precisions = self.incoming.precisions
        counts = gathered_counts(self._comm, [len(rows.indices) for rows in own.values()])
        reduced = {}
        for (k, rows), column in zip(own.items(), counts.T, strict=True):
            merge = needs_merging(step.clipping, step.needs_norms, precisions[k])
            result = self._tables[k].reduce(self._comm, rows, column, self._scales.of_sums, merge)
            reduced[k] = IndexedSlices(*result)
        return reduced

    def _agreed_norms(self, norms: Norms | None) -> Norms | None:
        """Norms that call a gradient finite only if it is finite on all ranks."""
        count = len(self.incoming.present)
        finite = np.zeros(count + 1, np.bool_)  # the last says that the rank has not failed
        if norms is not None:
            finite[:count], finite[count] = norms.finite, True
        all_reduce(self._comm, finite, "LAND", np.bool_, count + 1)
        if norms is None or not finite[count]:
            return None
        return norms._replace(finite=finite[:count])


def _with_sums(pairs: Pairs, sums: Mapping[int, Any]) -> Pairs:
    """The pairs that have a gradient, with other gradients where there are `sums`."""
    return tuple(
        (sums.get(k, gradient), variable)
        for k, (gradient, variable) in enumerate(pairs)
        if gradient is not None
    )
