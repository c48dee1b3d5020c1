"""One step of an optimizer: check everything, then update everything."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.layout import rows_key
from rmsjit.autodiff import hooks
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.hyperparameters import StepNumbers
from rmsjit.runtime.forks import RenewedLock
from rmsjit.state.clock import Clock
from rmsjit.state.slots import Entry, Member, SlotStore, find_overlap
from rmsjit.steps.pairs import check_is_array, check_variable, naming, no_gradient, warn_of_missing
from rmsjit.variables import array_of

if TYPE_CHECKING:  # these bring Numba along, which is imported at the first step
    from rmsjit.steps.binding import BoundStep
    from rmsjit.steps.norms import Norms
    from rmsjit.steps.plan import Plan

    # Everything that kernels take: the gradients, the numbers in each dtype, and the factors.
    _ReadyStep = tuple[Plan, BoundStep, dict[Precision, NDArray[Any]], NDArray[Any] | None]

_PLANS_KEPT = 16  # lists of variables; a training loop has one, a GAN a few


class Stepper:
    """Applies the rule to lists of variables, whose plans it keeps.

    Parameters
    ----------
    store : SlotStore
        The state that steps read and write.
    num_threads : int, optional
        The most threads to use; by default as many as the process may keep busy.
    exact : bool
        Whether rows that a sparse gradient does not name get a zero gradient, in effect.
    nonfinite : {"propagate", "skip", "raise"}
        What a NaN or an infinity in a gradient does.
    """

    def __init__(
        self,
        store: SlotStore,
        num_threads: int | None = None,
        exact: bool = False,
        nonfinite: str = "propagate",
    ) -> None:
        self.store = store
        self.nonfinite = nonfinite
        self.num_threads = num_threads
        self.exact = exact
        self._last: Plan | None = None
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._by_layout: OrderedDict[Any, Plan] = OrderedDict()
        self._packed: tuple[StepNumbers | None, float, dict[Precision, NDArray[Any]]] = (
            None,
            0.0,
            {},
        )
        self._limit = num_threads or 0  # found out at the first step
        self._lock = RenewedLock()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "store": self.store,
            "num_threads": self.num_threads,
            "exact": self.exact,
            "nonfinite": self.nonfinite,
        }  # plans hold addresses, and are made again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def step(
        self,
        gradients: tuple[Any, ...],
        variables: tuple[Any, ...],
        clipping: Clipping,
        numbers: Callable[[], StepNumbers],
    ) -> bool:
        """Update `variables` by `gradients`, of which some may be None.

        Parameters
        ----------
        gradients, variables : tuple
            Of equal length, not empty.
        clipping : Clipping
        numbers : callable
            Gives the numbers of the step; called once all gradients have been found good.

        Returns
        -------
        bool
            False if the step was skipped, because a gradient was not finite.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError, FloatingPointError
            Before anything has been written; see `rmsjit.steps.pairs`.
        """
        if self.exact:
            with self._lock:
                return self._step(gradients, variables, clipping, numbers)
        return self._step(gradients, variables, clipping, numbers)

    def _step(
        self,
        gradients: tuple[Any, ...],
        variables: tuple[Any, ...],
        clipping: Clipping,
        numbers: Callable[[], StepNumbers],
    ) -> bool:
        ready = self._prepare(gradients, variables, clipping, numbers)
        if ready is None:
            return False
        plan, bound, packed, factors = ready
        for group in plan.groups:
            if self.exact:
                self._settle(group)
            group.update(bound, factors, packed[group.precision], self._limit)
            if plan.constrained:
                plan.constrain(group)
        hooks.wrote(plan.owners)
        return True

    def _prepare(
        self,
        gradients: tuple[Any, ...],
        variables: tuple[Any, ...],
        clipping: Clipping,
        numbers: Callable[[], StepNumbers],
    ) -> _ReadyStep | None:
        """All that a step needs, or None where it must be skipped; nothing written on an error."""
        last = self._last
        if last is not None:
            bound = last.bind(gradients, variables)
            if bound is not None:
                return self._ready(last, bound, clipping, numbers)
        with self._lock:
            plan = self._known_plan(gradients, variables)
            bound = None if plan is None else plan.bind(gradients, variables)
            if plan is not None and bound is not None:
                return self._ready(plan, bound, clipping, numbers)
            if plan is not None:
                self.forget_plans()  # a variable has moved
            plan, entries, fresh = self._draft(gradients, variables)
            bound = plan.bind(gradients, variables)
            assert bound is not None  # the plan was made of these very variables
            ready = self._ready(plan, bound, clipping, numbers)
            if ready is not None:
                self.store.enter(entries, fresh)
                self._keep(plan)
        return ready

    def _ready(
        self, plan: Plan, bound: BoundStep, clipping: Clipping, numbers: Callable[[], StepNumbers]
    ) -> _ReadyStep | None:
        if plan.dropped:
            warn_of_missing(plan.dropped)
        if plan.may_need_threads and self._limit > 1:
            plan.prepare_threads(bound, self._limit)
        factors = clipping.fixed_factors(len(bound.addresses))
        if clipping.by_norm or self.nonfinite != "propagate":
            norms = self._norms(plan, bound, clipping.bound)
            finite = bool(norms.finite.all())
            if not finite and self.nonfinite != "propagate":
                self._raise_nonfinite(plan, norms)
                return None
            if clipping.by_norm:
                factors = clipping.factors(norms.squares, finite)
        return plan, bound, self._pack(numbers(), plan, clipping), factors

    def _norms(self, plan: Plan, bound: BoundStep, clipvalue: float) -> Norms:
        """Norms and finiteness of all gradients of a step; a missing one is zero."""
        from rmsjit.steps.norms import Norms

        count = len(bound.addresses)
        if len(plan.groups) == 1 and len(plan.groups[0].positions) == count:
            return plan.groups[0].norms(bound, clipvalue, self._limit)
        norms = Norms(np.zeros(count), np.ones(count, np.bool_))
        for group in plan.groups:
            found = group.norms(bound, clipvalue, self._limit)
            norms.squares[group.positions] = found.squares
            norms.finite[group.positions] = found.finite
        return norms

    def accepts(self, pairs: Sequence[tuple[Any, Any]]) -> bool:
        """Whether a step by these gradients is taken, before anything changes them."""
        if self.nonfinite == "propagate":
            return True
        bad = [
            naming(variable, k)
            for k, (gradient, variable) in enumerate(pairs)
            if not np.isfinite(getattr(gradient, "values", gradient)).all()
        ]
        if bad and self.nonfinite == "raise":
            raise FloatingPointError(
                f"the gradient of {', '.join(bad)} must be finite, got NaN or infinity"
            )
        return not bad

    def _raise_nonfinite(self, plan: Plan, norms: Norms) -> None:
        """Raise, unless the step is to be skipped."""
        if self.nonfinite == "raise":
            names = ", ".join(plan.name(int(k)) for k in np.flatnonzero(~norms.finite))
            raise FloatingPointError(f"the gradient of {names} must be finite, got NaN or infinity")

    def sync(self, variable: Any = None, indices: Any = None) -> None:
        """Bring rows of a table, all of its rows, or all tables to the last step.

        Raises
        ------
        IndexError
            If an index is no row.
        """
        if not self.exact:
            return
        with self._lock:
            if variable is None:
                for entry in self.store.entries.values():
                    self._catch_up(entry)
                return
            known = self.store.find(variable)
            if known is not None:
                rows = _checked_rows(indices, variable)
                clock = known.clock
                if clock is not None and clock.rows_key != rows_key(array_of(variable)):
                    rows = None  # those of another view of the table
                self._catch_up(known, rows)

    def _catch_up(self, entry: Entry, rows: NDArray[np.int64] | None = None) -> None:
        clock = entry.clock
        if clock is None or clock.now == 0:
            return
        from rmsjit.steps.sparse import SparseGroup

        # A momentum that has just been set has no slot yet.
        form = replace(self.store.form, slots=tuple(entry.slots))
        group = SparseGroup(0, entry.table, Member(entry, entry.slots), form)
        group.catch_up(clock, rows, self._limit)
        if rows is None:
            clock.reset()

    def _settle(self, group: Any) -> None:
        """Start clocks that are needed, and wind up those that are full or would be wrong."""
        for member in group.members:
            entry = member.entry
            fits = entry.clock is not None and entry.clock.rows_key == group.rows_key
            if not fits or entry.clock.full:
                self._catch_up(entry)
            if group.sparse and not fits:
                entry.clock = Clock(group.rows, group.rows_key)
                entry.table = group.variable

    def forget_plans(self) -> None:
        """Make plans anew, as after a change of the slots."""
        with self._lock:
            self._last = None
            self._plans.clear()
            self._by_layout.clear()

    def build(self, variables: Sequence[Any]) -> None:
        """Create the slots of `variables` without a step."""
        with self._lock:
            entries = self._entries(variables, [np.ndarray] * len(variables))
            known = [entry for entry in entries if entry is not None]
            self.store.enter(known, self.store.missing(known))
            self.forget_plans()

    def _known_plan(self, gradients: Sequence[Any], variables: Sequence[Any]) -> Plan | None:
        """The plan for these variables, or for other views of the same memory."""
        from rmsjit.steps.plan import identity_of, layouts_of

        kinds = [type(gradient) for gradient in gradients]
        identity = identity_of(variables, kinds)
        plan = self._plans.get(identity)
        if plan is None:
            for position, variable in enumerate(variables):
                if kinds[position] is not type(None):
                    check_variable(variable, position)
            alike = self._by_layout.get(layouts_of(variables, kinds))
            if alike is None:
                return None
            plan = alike.rebound(variables)
        self._keep(plan)
        return plan

    def _keep(self, plan: Plan) -> None:
        self._last = plan
        self._plans[plan.identity] = plan
        self._plans.move_to_end(plan.identity)
        self._by_layout[plan.layouts] = plan
        while len(self._plans) > _PLANS_KEPT:
            self._plans.popitem(last=False)
        while len(self._by_layout) > _PLANS_KEPT:
            self._by_layout.popitem(last=False)

    def _draft(self, gradients: Sequence[Any], variables: Sequence[Any]) -> Any:
        """A plan for variables that may be new, which have not been entered yet."""
        from rmsjit.runtime.threads import thread_limit
        from rmsjit.steps.plan import Plan

        self._limit = self.num_threads or thread_limit()
        kinds = [type(gradient) for gradient in gradients]
        entries = self._entries(variables, kinds)
        present = [entry for entry in entries if entry is not None]
        fresh = self.store.missing(present)
        slots = {entry.key: dict(entry.slots) for entry in present}
        for entry, slot, value in fresh:
            slots[entry.key][slot] = value
        if not present:
            raise no_gradient([naming(v, k) for k, v in enumerate(variables)])
        members = [None if entry is None else Member(entry, slots[entry.key]) for entry in entries]
        return Plan(variables, kinds, members, self.store.form), present, fresh

    def _entries(self, variables: Sequence[Any], kinds: Sequence[type]) -> list[Entry | None]:
        """The entry of every variable that has a gradient, known or new."""
        entries: list[Entry | None] = []
        new: dict[Any, Entry] = {}
        for position, (variable, kind) in enumerate(zip(variables, kinds, strict=True)):
            if kind is type(None):
                check_is_array(variable, position)
                entries.append(None)
                continue
            precision = check_variable(variable, position)
            entry = Entry(variable, precision)
            entry = self.store.entries.get(entry.key) or new.setdefault(entry.key, entry)
            entries.append(entry)
        self._refuse_overlap(list(new.values()), variables, entries)
        return entries

    def _refuse_overlap(
        self, new: list[Entry], variables: Sequence[Any], entries: Sequence[Entry | None]
    ) -> None:
        pair = find_overlap(self.store.entries.values(), new) if new else None
        if pair is None:
            return
        names = [
            naming(variables[entries.index(entry)], entries.index(entry))
            if entry in entries
            else f"the variable {entry.name} of an earlier step"
            for entry in pair
        ]
        raise ValueError(
            f"variables must not overlap in part, but {names[0]} of shape {pair[0].shape} and "
            f"{names[1]} of shape {pair[1].shape} share memory"
        )

    def _pack(
        self, values: StepNumbers, plan: Plan, clipping: Clipping
    ) -> dict[Precision, NDArray[Any]]:
        """The numbers of the step in every dtype of the plan."""
        packed_values, bound, packed = self._packed
        known = values is packed_values and bound == clipping.bound
        if known and plan.precisions <= packed.keys():
            return packed
        if clipping.clipvalue is not None:
            _refuse_complex(plan)
        clipped = values._replace(clipvalue=clipping.bound)
        packed = {p: clipped.packed(p, self.store.form) for p in plan.precisions}
        self._packed = values, clipping.bound, packed
        return packed


def _refuse_complex(plan: Plan) -> None:
    names = sorted(precision.name for precision in plan.precisions if precision.parts == 2)
    if names:
        raise TypeError(
            f"clipvalue can't be applied to gradients of complex variables ({names[0]})"
        )


def _checked_rows(indices: Any, variable: Any) -> NDArray[np.int64] | None:
    """Different rows of a table, ascending; None for all."""
    if indices is None:
        return None
    rows = np.unique(np.asarray(indices))
    length = len(array_of(variable))
    if rows.size and rows.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {rows.dtype}")
    outside = rows[(rows < 0) | (rows >= length)]
    if outside.size:
        raise IndexError(f"indices must be from 0 to {length - 1}, got {outside[0]}")
    return rows.astype(np.int64)
