"""The engine: every step of an optimizer, dense or sparse, on one process or many.

A step binds, reduces, clips and updates.  Binding checks every gradient and finds its memory; a
strategy reduces the gradients over processes; clipping finds a factor for each gradient; the update
is one act of compiled code.  Everything that can fail or that runs other Python code comes before
the act, so an error changes nothing, and a signal never sees a step half done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import rows_key
from rmsjit.autodiff import hooks
from rmsjit.rule.clipping import Clipping, check_scale, refuse_complex
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.runtime.threads import ONE_THREAD, Launch
from rmsjit.runtime.trials import TrialsBySize
from rmsjit.state.entries import Entry
from rmsjit.state.slots import SlotStore
from rmsjit.steps import exact, nonfinite
from rmsjit.steps.act import CLOSED, DONE, FULL, Act
from rmsjit.steps.binding import Binding
from rmsjit.steps.groups import constrain
from rmsjit.steps.launching import launch_for
from rmsjit.steps.nonfinite import PROPAGATE
from rmsjit.steps.norms import Judgement
from rmsjit.steps.pairs import Pairs, warn_of_missing
from rmsjit.steps.place import Place
from rmsjit.steps.plan import Plan
from rmsjit.steps.planner import Planner
from rmsjit.steps.reduction import Reduction, Request
from rmsjit.steps.settings import StepSettings
from rmsjit.steps.strategy import Strategy
from rmsjit.variables import array_of


def _full(counter: Any) -> OverflowError:
    return OverflowError(f"the count of steps, {counter}, can't be any higher")


def _check_room(counter: NDArray[Any] | None) -> None:
    if counter is not None and counter == np.iinfo(counter.dtype).max:
        raise _full(counter)


class Engine:
    """Applies the rule to lists of variables, and keeps the plans of the last ones.

    Parameters
    ----------
    store : SlotStore
        The state that steps read and write.
    settings : StepSettings

    Attributes
    ----------
    reads_norms : bool
        Whether every step computes norms, clipped or not.
    last_norm : float or None
        The joint norm of the gradients of the last step that computed it, before it was clipped.
    last_norms : tuple of float or None
        The same, of the variables in no group and of those of each group.
    """

    def __init__(self, store: SlotStore, settings: StepSettings) -> None:
        self.store = store
        self.seed: int = settings.seed
        self.exact: bool = settings.exact
        self.nonfinite: str = settings.nonfinite
        self.track_norms: bool = settings.track_norms
        self.strategy: Strategy | None = settings.strategy
        self.place: int = settings.place
        self.reads_norms: bool = settings.track_norms or settings.nonfinite != PROPAGATE
        self.last_norm: float | None = None
        self.last_norms: tuple[float, ...] | None = None
        self._planner = Planner(store, settings)
        self._plans = self._planner.plans
        self._trials = TrialsBySize()

    def step(
        self,
        pairs: Pairs,
        hyperparameters: Hyperparameters,
        clipping: Clipping,
        counter: NDArray[Any] | None = None,
        aggregate: bool = True,
        finite: bool = True,
    ) -> None:
        """Update the variables of `pairs` by their gradients; None leaves a variable unchanged.

        Parameters
        ----------
        pairs : tuple
            Pairs of a gradient and a variable; may be empty if there is a strategy.
        hyperparameters : Hyperparameters
            Evaluated after all gradients have been checked.
        clipping : Clipping
        counter : integer 0-d array, optional
            Incremented in the same act.
        aggregate : bool
            Whether a strategy reduces the gradients.
        finite : bool
            False if a strategy must be told that a gradient is not finite.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError, FloatingPointError, OverflowError
            Before anything is written; see `rmsjit.steps.pairs`.
        """
        if self.strategy is not None:
            request = Request(pairs, hyperparameters, clipping, counter, aggregate, finite)
            self.complete(request, self.strategy.reduced)
            return
        if self.exact:
            with self.store.lock.lock:
                taken = self._update(pairs, hyperparameters, clipping, counter)
        else:
            taken = self._update(pairs, hyperparameters, clipping, counter)
        if not taken or clipping.loss_scale is not None:
            self._note(taken, clipping)

    def _note(self, taken: bool, clipping: Clipping) -> None:
        """Count a step that was skipped, and let a loss scale learn of it."""
        scale: Any = clipping.loss_scale
        after = None if scale is None else scale.after(taken)
        skipped = self.store.skipped_steps + (not taken)
        # Without a call in between, at which a signal handler might run.
        self.store.skipped_steps = skipped
        if after is not None:
            scale.state = after

    def complete(
        self, request: Request, reduce: Callable[[Engine, Request], Reduction | None]
    ) -> None:
        """Take a step of several processes, whose gradients `reduce` reduces."""
        with self.store.lock.lock:
            stage = reduce(self, request)
            taken = stage is not None and self._completed(request, stage)
        if request.pairs:
            self._note(taken, request.clipping)

    def _completed(self, request: Request, stage: Reduction) -> bool:
        hyperparameters, counter = request.hyperparameters, request.counter
        try:
            return self._update(stage.pairs, hyperparameters, stage.clipping, counter, stage)
        except BaseException:
            stage.abandon()
            raise

    def refuse(self, error: BaseException) -> None:
        """Tell the other processes why this one can't take the step, then raise the error."""
        tell = getattr(self.strategy, "refused", None)
        if tell is not None:
            tell(self, error)
        raise error

    def _update(
        self,
        pairs: Pairs,
        hyperparameters: Hyperparameters,
        clipping: Clipping,
        counter: NDArray[Any] | None,
        stage: Reduction | None = None,
    ) -> bool:
        """Bind, clip and update; start over if other code has changed the store meanwhile.

        Small steps spend their time here, so what they need is written out, not called.
        """
        values = None if stage is None else stage.values
        scale, limit = 1.0, clipping.limit
        if stage is not None or clipping.is_scaled:
            scale = clipping.factor * (1.0 if stage is None else stage.scale)
            limit /= abs(scale)
        must_judge = clipping.by_norm or self.reads_norms or scale != 1.0
        factors, judged = None, None
        may_launch = True
        while True:
            plan, last = None, self._plans.last
            if last is not None:
                plan = last.plan
                bindings = plan.bindings
                are_unmoved = stage is not None and stage.are_unmoved
                binding = bindings.bind_unmoved(pairs) if are_unmoved else bindings.bind(pairs)
            if plan is None or binding is None:
                plan, binding, pairs = self._planner.bound(pairs, hyperparameters)
                if values is not None and len(values) < plan.group_count:
                    values = None  # a function of the user's has added a group
            place, launch = binding.place, ONE_THREAD
            if place.dropped or plan.is_tried or place.draft or self.exact:
                if not self._is_ready(plan, place):
                    continue
                if may_launch:
                    launch = self._launch(plan, binding)
            if plan.layout.complex_dtype:
                refuse_complex(plan.layout.complex_dtype, clipping, plan.form)
            if must_judge:
                judged = self._judged(plan, binding, clipping, launch, stage, scale)
                if not judged.accepted:
                    self._report(judged)
                    plan.bindings.release(binding)
                    return False
                factors = judged.factors
                must_judge = False  # ranks judge a step together, so only once
            if values is None:
                values = hyperparameters.constant or hyperparameters.at(counter)
            if values is not binding.values or limit != binding.limit:
                binding.pack(values, limit, plan.form)
            if plan.is_noisy and counter is not None:
                binding.noise[0] = int(counter)

            # With constraints, the step counts once they have been applied.
            counted = None if place.constrained else counter
            if place.constrained or place.draft is not None:
                _check_room(counter)
            acts = plan.updates.acts(
                binding, factors, clipping.clipvalue is not None, launch, counted
            )
            if place.draft is not None and not self._planner.entered(plan, place):
                continue
            if hooks.live:
                hooks.wrote(place.owners)
            status = acts[0].run()
            if status == DONE:
                break
            if status == FULL:
                raise _full(counter)
            may_launch = may_launch and status != CLOSED

        if judged is not None and judged.norms:
            self._report(judged)
        if place.constrained:
            self._constrain(plan, place, acts[1:], counter)
        binding.alive, binding.occurrences = None, {}
        plan.bindings.free.append(binding)
        if stage is not None:
            stage.share()
        return True

    def count(self, counter: NDArray[Any]) -> None:
        """Take a step without any gradient."""
        _check_room(counter)
        Act([], counter).run()

    def _is_ready(self, plan: Plan, place: Place) -> bool:
        """Warn of missing gradients and start clocks; False if that needs a new plan."""
        if place.dropped:
            warn_of_missing(place.dropped)
        return not self.exact or exact.settled(plan.layout.sparse, self.store, self._planner.limit)

    def _launch(self, plan: Plan, binding: Binding) -> Launch:
        """Permission for the number of threads that has proved fastest for such a step."""
        return launch_for(plan, binding, self._trials, self._planner.limit)

    def _constrain(
        self, plan: Plan, place: Place, later: Sequence[Act], counter: NDArray[Any] | None
    ) -> None:
        """Apply the constraints, and the updates that follow them; then count the step.

        The variables have been updated, so the step counts even if a constraint raises.
        """
        try:
            for groups, act in zip(plan.layout.rounds, [*later, None], strict=True):
                constrain(groups, place.constrained)
                if act is not None:
                    act.run()
        finally:
            Act([], counter).run()

    # --- clip -------------------------------------------------------------------------------

    def _judged(
        self,
        plan: Plan,
        binding: Binding,
        clipping: Clipping,
        launch: Launch,
        stage: Reduction | None,
        scale: float,
    ) -> Judgement:
        """Judge a step by the norms of its gradients, if they are wanted."""
        factors: NDArray[Any] | None = None
        if scale != 1.0:
            check_scale(scale, plan.layout.computing)
            factors = np.full(plan.count, scale)
        if not clipping.by_norm and not self.reads_norms:
            return Judgement(True, factors)
        limit = clipping.limit / abs(scale) if clipping.by_norm else math.inf
        norms, name = plan.updates.norms(binding, limit, launch), binding.place.name
        if stage is not None:
            norms, name = stage.whole(norms), stage.name
        joint = abs(scale) * math.sqrt(norms.squares.sum())
        by_group = (joint,)
        if self.store.grouping.groups:
            rows = plan.rows if stage is None or stage.rows is None else stage.rows
            of_groups = np.bincount(rows, norms.squares, 1 + len(self.store.grouping.groups))
            by_group = tuple((abs(scale) * np.sqrt(of_groups)).tolist())
        if not nonfinite.accepts(self.nonfinite, norms.finite, name):
            return Judgement(False, None, joint, by_group)
        if clipping.by_norm:
            finite = bool(norms.finite.all())
            factors = scale * clipping.factors(scale * (scale * norms.squares), finite)
            if stage is not None:
                factors = stage.own(factors)
        return Judgement(True, factors, joint, by_group)

    def _report(self, judged: Judgement) -> None:
        """Let users read the norms of a step, once it has been taken or skipped."""
        self.last_norm, self.last_norms = judged.norm, judged.norms

    # --- beside steps -----------------------------------------------------------------------

    @property
    def num_threads(self) -> int | None:
        """The maximum number of threads that was asked for."""
        return self._planner.num_threads

    def limit_threads(self, count: int) -> None:
        """Use at most so many threads, unless the optimizer was given a number."""
        if self._planner.num_threads is None:
            self._planner.num_threads = count

    def clear(self) -> None:
        """Forget all plans, which keep the variables of recent steps alive."""
        self._plans.clear()

    def catch_up(self, entry: Entry) -> None:
        """Bring all rows of a table to the last step."""
        exact.catch_up(entry, self.store.form, None, self._planner.limit)

    def sync(self, variable: Any = None, indices: Any = None) -> None:
        """Bring some rows of a table, all of its rows, or all tables to the last step.

        Raises
        ------
        TypeError, ValueError, IndexError
            See `rmsjit.steps.exact.checked_rows`.
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
                    rows = None  # the indices belong to another view of the table
                exact.catch_up(known, self.store.form, rows, self._planner.limit)
