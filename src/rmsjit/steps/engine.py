"""The engine: every step of an optimizer, dense or sparse, on one process or many.

A step is bind, reduce, clip, update.  To bind is to check every gradient and find its memory; a
strategy reduces gradients over processes; clipping finds the factors of gradients; and the update
is one act of compiled code.  All that can fail or that runs other Python code comes before the act,
so an error leaves everything as it was, and a signal finds a step either not begun or done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import rows_key
from rmsjit.autodiff import hooks
from rmsjit.rule.clipping import Clipping, refuse_complex
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.rule.numbers import StepNumbers
from rmsjit.runtime import threads
from rmsjit.runtime.processors import thread_limit
from rmsjit.runtime.threads import ONE_THREAD, Launch
from rmsjit.runtime.trials import Trials
from rmsjit.state.entries import Entry
from rmsjit.state.slots import Member, SlotStore
from rmsjit.steps import exact, nonfinite
from rmsjit.steps.act import CLOSED, DONE, FULL, Act
from rmsjit.steps.binding import Binding
from rmsjit.steps.entering import entries_of, first_epsilon, known_members
from rmsjit.steps.pairs import (
    Pairs,
    check_is_array,
    check_variable,
    checked_pairs,
    naming,
    no_gradient,
    warn_of_missing,
)
from rmsjit.steps.plan import Draft, Plan
from rmsjit.steps.plans import Plans, identity_of, layouts_of, structure_of
from rmsjit.steps.reduction import Reduction, Request, Strategy
from rmsjit.variables import array_of


def _full(counter: Any) -> OverflowError:
    return OverflowError(f"the count of steps, {counter}, can't be any higher")


_ATTEMPTS = 3  # to plan a step while other threads or handlers change what is known


class Engine:
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
    strategy : Strategy, optional
        Shares the steps with other processes.
    """

    def __init__(
        self,
        store: SlotStore,
        num_threads: int | None = None,
        exact: bool = False,
        nonfinite: str = nonfinite.PROPAGATE,
        strategy: Strategy | None = None,
    ) -> None:
        self.store = store
        self.num_threads = num_threads
        self.exact = exact
        self.nonfinite = nonfinite
        self.strategy = strategy
        self._plans: Plans[Plan] = Plans()
        self._limit = num_threads or 0  # found out at the first step

    def step(
        self,
        pairs: Pairs,
        hyperparameters: Hyperparameters,
        clipping: Clipping,
        counter: NDArray[Any] | None = None,
        aggregate: bool = True,
    ) -> bool:
        """Update the variables of `pairs` by their gradients, some of which may be None.

        Parameters
        ----------
        pairs : tuple
            Pairs of a gradient and a variable; it may be empty where there is a strategy.
        hyperparameters : Hyperparameters
            Asked for its numbers once all gradients have been found good.
        clipping : Clipping
        counter : integer 0-d array, optional
            Counts the step, in the same act.
        aggregate : bool
            Whether a strategy reduces the gradients.

        Returns
        -------
        bool
            False if the step was skipped, because a gradient was not finite.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError, FloatingPointError, OverflowError
            Before anything has been written; see `rmsjit.steps.pairs`.
        """
        if self.strategy is not None:
            request = Request(pairs, hyperparameters, clipping, counter, aggregate)
            return self._reduced_step(self.strategy, request)
        if self.exact:
            with self.store.lock.lock:
                return self._update(pairs, hyperparameters, None, clipping, counter, None)
        return self._update(pairs, hyperparameters, None, clipping, counter, None)

    def _reduced_step(self, strategy: Strategy, request: Request) -> bool:
        with self.store.lock.lock:
            stage = strategy.reduced(self, request)
            if stage is None:
                return False
            return self._update(
                stage.pairs,
                request.hyperparameters,
                stage.values,
                stage.clipping,
                request.counter,
                stage,
            )

    def _update(
        self,
        pairs: Pairs,
        hyperparameters: Hyperparameters,
        values: StepNumbers | None,
        clipping: Clipping,
        counter: NDArray[Any] | None,
        stage: Reduction | None,
    ) -> bool:
        """Bind, clip and update, until no other code has come in between."""
        scale = 1.0 if stage is None else stage.scale
        limit = clipping.limit / scale
        may_launch = True
        accepted, factors = None, None  # found once: ranks find them together
        while True:
            plan = self._plans.last
            binding = None if plan is None else plan.bind(pairs)
            if binding is None or plan is None:
                plan, binding, pairs = self._bound(pairs, hyperparameters)
            launch = ONE_THREAD
            if plan.dropped or plan.may_need_threads or plan.draft or self.exact:
                if not self._is_ready(plan):
                    continue
                launch = self._launch(plan) if may_launch else ONE_THREAD
            if plan.complex_dtype:
                refuse_complex(plan.complex_dtype, clipping, plan.form)
            if accepted is None and (
                clipping.by_norm or self.nonfinite != nonfinite.PROPAGATE or scale != 1.0
            ):
                accepted, factors = self._factors(plan, binding, clipping, launch, stage, scale)
                if not accepted:
                    return False
            if values is None:
                values = hyperparameters.constant or hyperparameters.at(counter)
            if values is not binding.values or limit != binding.limit:
                binding.pack(values, limit, plan.form)
            counted = counter
            if plan.constrained:  # the step is counted after the constraints
                if counter is not None and counter == np.iinfo(counter.dtype).max:
                    raise _full(counter)
                counted = None
            acts = plan.acts(binding, factors, clipping.clipvalue is not None, launch, counted)
            if plan.draft is not None and not self._entered(plan):
                continue
            if hooks.live:
                hooks.wrote(plan.owners)
            status = acts[0].run()
            if status == DONE:
                break
            if status == FULL:
                raise _full(counter)
            may_launch = may_launch and status != CLOSED
        if plan.constrained:
            self._constrain(plan, acts[1:], counter)
        binding.alive = None
        if binding.occurrences:
            binding.occurrences = {}
        plan.free.append(binding)
        if stage is not None:
            stage.share()
        return True

    def _constrain(self, plan: Plan, later: Sequence[Act], counter: NDArray[Any] | None) -> None:
        """Apply constraints, and the updates that come after them; then count the step.

        It has been taken, and so is counted, even where a constraint raises.
        """
        try:
            for groups, act in zip(plan.rounds, [*later, None], strict=True):
                plan.constrain(groups)
                if act is not None:
                    act.run()
        finally:
            Act([], counter).run()

    # --- bind -------------------------------------------------------------------------------

    def _bound(self, pairs: Pairs, hyperparameters: Hyperparameters) -> tuple[Plan, Binding, Pairs]:
        """A plan that is known or new, its binding, and the pairs as they were bound."""
        pairs = checked_pairs(pairs)
        variables = [variable for _, variable in pairs]
        kinds = [type(gradient) for gradient, _ in pairs]
        with self.store.lock.lock:
            plan = self._known_plan(variables, kinds)
            binding = None if plan is None else plan.bind(pairs)
            if binding is not None and plan is not None:
                plan.was_met_again()
                self._plans.keep(plan)
                return plan, binding, pairs
            for _ in range(_ATTEMPTS):
                plan = self._drafted(variables, kinds, hyperparameters)
                binding = plan.bind(pairs)
                if binding is not None:
                    return plan, binding, pairs
        raise RuntimeError("variables must not be changed by others while a step reads them")

    def _known_plan(self, variables: Sequence[Any], kinds: Sequence[type]) -> Plan | None:
        """The plan for these variables, or one that can be made to serve for them."""
        plan = self._plans.of_objects(identity_of(variables, kinds))
        if plan is not None:
            return plan if plan.is_valid else None
        alike = self._plan_alike(variables, kinds)
        members = None if alike is None else known_members(self.store, variables)
        if alike is not None and members is not None:
            return alike.moved(variables, members)
        for position, variable in enumerate(variables):
            if kinds[position] is not type(None):
                check_variable(variable, position)
            else:
                check_is_array(variable, position)
        alike = self._plans.of_memory(layouts_of(variables, kinds))
        if alike is None or not alike.is_valid or alike.has_gone:
            return None
        return alike.rebound(variables)

    def _plan_alike(self, variables: Sequence[Any], kinds: Sequence[type]) -> Plan | None:
        """A plan that can be moved to the memory of these variables."""
        alike = self._plans.of_structure(structure_of(variables, kinds))
        return alike if alike is not None and alike.is_valid else None

    def _drafted(
        self, variables: Sequence[Any], kinds: Sequence[type], hyperparameters: Hyperparameters
    ) -> Plan:
        """A plan for variables that may be new, which have not been entered yet."""
        if self.store.is_due_for_a_sweep:
            self._plans.clear()  # they hold variables, as the store does
            self.store.sweep()
        entries = entries_of(self.store, variables, kinds)
        present = [entry for entry in entries if entry is not None]
        if variables and not present:
            raise no_gradient([naming(v, k) for k, v in enumerate(variables)])
        fresh = self.store.missing(present, first_epsilon(self.store.form, hyperparameters))
        slots = {entry.key: dict(entry.slots) for entry in present}
        for entry, slot, value in fresh:
            slots[entry.key][slot] = value
        members = [None if entry is None else Member(entry, slots[entry.key]) for entry in entries]
        store = self.store
        alike = self._plan_alike(variables, kinds)
        if alike is None:
            plan = Plan(variables, kinds, members, store.form, self.exact, store.epoch)
        else:
            plan = alike.moved(variables, members)
        plan.draft = Draft(present, fresh, len(store.entries))
        if plan.may_need_threads or self.exact or not self._limit:
            self._limit = self.num_threads or thread_limit()  # which reads several files
        if plan.may_need_threads and self._limit > 1:
            plan.trials = Trials(self._limit)
        return plan

    def _entered(self, plan: Plan) -> bool:
        """Make new variables known; False if others have become known meanwhile."""
        assert plan.draft is not None
        entries, slots, known = plan.draft
        with self.store.lock.lock:
            unchanged = plan.is_valid and len(self.store.entries) == known
            entered = unchanged and self.store.enter(entries, slots)
            if entered:
                plan.draft = None
                self._plans.add(plan)
        return entered

    def _is_ready(self, plan: Plan) -> bool:
        """Warn of what must be said; False if clocks had to be started, so that plans are new."""
        if plan.dropped:
            warn_of_missing(plan.dropped)
        return not self.exact or exact.settled(plan.sparse, self.store, self._limit)

    def _launch(self, plan: Plan) -> Launch:
        """Permission for the number of threads that has proved fastest."""
        wanted = 1 if plan.trials is None else plan.trials.choose()
        if wanted == 1:
            return ONE_THREAD
        threads.prepare()
        return threads.launch(wanted)

    # --- clip -------------------------------------------------------------------------------

    def _factors(
        self,
        plan: Plan,
        binding: Binding,
        clipping: Clipping,
        launch: Launch,
        stage: Reduction | None,
        scale: float,
    ) -> tuple[bool, NDArray[Any] | None]:
        """Whether the step is taken, and what to multiply each gradient by."""
        if not clipping.by_norm and self.nonfinite == nonfinite.PROPAGATE:
            return True, np.full(plan.count, scale)
        norms = plan.norms(binding, clipping.limit / scale, launch)
        name = plan.name
        if stage is not None:
            norms, name = stage.whole(norms), stage.name
        if not nonfinite.accepts(self.nonfinite, norms.finite, name):
            return False, None
        factors: NDArray[Any] | None = None
        if clipping.by_norm:
            finite = bool(norms.finite.all())
            factors = scale * clipping.factors(scale**2 * norms.squares, finite)
        elif scale != 1.0:
            factors = np.full(len(norms.squares), scale)
        return True, factors if factors is None or stage is None else stage.own(factors)

    # --- beside steps -----------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all plans, which keep the variables of the last steps alive."""
        self._plans.clear()

    def catch_up(self, entry: Entry) -> None:
        """Bring all rows of a table to the last step."""
        exact.catch_up(entry, self.store.form, None, self._limit)

    def sync(self, variable: Any = None, indices: Any = None) -> None:
        """Bring rows of a table, all of its rows, or all tables to the last step.

        Raises
        ------
        IndexError
            If an index is no row.
        """
        if not self.exact:
            return
        with self.store.lock.lock:
            if variable is None:
                for entry in list(self.store.entries.values()):
                    if not entry.is_gone:
                        self.catch_up(entry)
                return
            known = self.store.find(variable)
            if known is not None:
                rows = exact.checked_rows(indices, variable)
                clock = known.clock
                if clock is not None and clock.rows_key != rows_key(array_of(variable)):
                    rows = None  # those of another view of the table
                exact.catch_up(known, self.store.form, rows, self._limit)
