"""The steps of one optimizer under a strategy: agree, start from equal values, reduce."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, array_key, layout_of
from rmsjit.distributed.agreement import Agreed, Agreement, shared_errors
from rmsjit.distributed.comm import broadcast
from rmsjit.distributed.incoming import Checked, Incoming
from rmsjit.distributed.node import Node, load_kernels
from rmsjit.distributed.replicated import ReplicatedPlan
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.sharded import ShardedPlan
from rmsjit.distributed.shards import Shards
from rmsjit.distributed.stage import Stage, StagePlan, Terms
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.state.slots import SlotStore
from rmsjit.steps import nonfinite
from rmsjit.steps.pairs import check_counter, checked_pairs
from rmsjit.steps.plans import Plans, identity_of
from rmsjit.variables import array_of

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine
    from rmsjit.steps.reduction import Request


class Session:
    """What a strategy knows about one engine; it must not refer to the engine itself.

    Attributes
    ----------
    shards : Shards
        How variables are divided among ranks.
    """

    def __init__(self, comm: Any, node: Node, settings: Settings) -> None:
        self._comm = comm
        self._node = node
        self._settings = settings
        self._agreement = Agreement(comm)
        self._plans: Plans[StagePlan] = Plans()
        self._begun: dict[Key, Any] = {}  # variables that have been broadcast, kept alive
        self.shards = Shards(comm.size)

    def reduced(self, engine: Engine, request: Request) -> Stage | None:
        """Make the stage of one step; see `rmsjit.steps.reduction.Strategy`."""
        plan, checked, numbers, error = None, None, None, None
        try:
            plan, checked = self._planned(engine, request)
            numbers = request.hyperparameters.at(request.counter)
            check_counter(request.counter)
        except Exception as problem:  # the other ranks must learn of it, whatever it is
            error = problem
        claim = None if plan is None else plan.incoming.claim
        fresh = plan is not None and not self._known(plan)
        agreed = self._agreement.reach(claim, error, fresh, numbers, request.clipping)
        assert plan is not None
        assert checked is not None
        if not request.pairs:
            return None
        plan.check_numbers(agreed)
        plan.lay_out(self.shards, engine.exact)
        if agreed.fresh:
            self._begin(engine, plan, agreed, request.counter)
        return plan.reduced(checked, agreed)

    def _planned(self, engine: Engine, request: Request) -> tuple[StagePlan, Checked]:
        """A known or new plan, and the gradients that it has checked."""
        terms, plan = Terms(engine.store.form, request.aggregate), self._plans.last
        if plan is not None and plan.terms == terms:
            checked = plan.incoming.checked(request.pairs)
            if checked is not None:
                return plan, checked
        pairs = checked_pairs(request.pairs)
        variables = [variable for _, variable in pairs]
        kinds = [type(gradient) for gradient, _ in pairs]
        plan = self._plans.of_objects((identity_of(variables, kinds), terms))
        checked = None if plan is None else plan.incoming.checked(pairs)
        if plan is None or checked is None:
            plan = self._new_plan(Incoming(variables, kinds, self._header(engine, terms)), terms)
            checked = plan.incoming.checked(pairs)
        if checked is None:
            raise RuntimeError("variables must not be changed by others while a step reads them")
        self._plans.keep(plan)
        return plan, checked

    def _header(self, engine: Engine, terms: Terms) -> str:
        return (
            f"{self._settings}, {terms.form}, exact={engine.exact}, "
            f"nonfinite={engine.nonfinite!r}, aggregate={terms.aggregate}"
        )

    def _new_plan(self, incoming: Incoming, terms: Terms) -> StagePlan:
        """A plan made from a known one for other views of the same memory, or a new one."""
        alike = self._plans.of_memory((incoming.memory, terms))
        if alike is not None:
            return alike.rebound(incoming)
        cls = ShardedPlan if self._settings.shard_state else ReplicatedPlan
        return cls(self._comm, self._settings, incoming, terms)

    def _known(self, plan: StagePlan) -> bool:
        plan.begun = plan.begun or plan.incoming.distinct.keys() <= self._begun.keys()
        return plan.begun

    def forget(self, store: SlotStore) -> None:
        """Remove the slots of parts, and make the next step start like the first one."""
        for key, cut in self.shards.cuts.items():
            if key in self._begun:
                array = array_of(self._begun[key])
                store.remove(array_key(cut.part(array, layout_of(array), self._comm.rank)))
        self._plans.clear()
        self._begun.clear()
        self.shards.cuts.clear()

    # --- the first step ---------------------------------------------------------------------

    def _begin(
        self, engine: Engine, plan: StagePlan, agreed: Agreed, counter: NDArray[Any] | None
    ) -> None:
        """Compile, and send the variables and slots of rank 0 to all ranks."""
        incoming, clipping = plan.incoming, agreed.clipping
        if engine.num_threads is None:
            engine.num_threads = self._node.threads
        load = partial(
            load_kernels,
            incoming,
            engine.store.form,
            exact=engine.exact,
            norms=clipping.by_norm or engine.nonfinite != nonfinite.PROPAGATE,
            clipped=not clipping.is_none or plan.scale != 1.0,
            threads=engine.num_threads,
        )
        self._node.compile_first(load)
        with shared_errors(self._comm, "create the slots"):
            engine.sync()
            plan.prepare(engine, Hyperparameters(agreed.numbers._asdict()))
        for k in incoming.distinct.values():
            broadcast(self._comm, incoming.arrays[k])
        plan.share_slots(engine)
        if counter is not None:
            broadcast(self._comm, counter)
        for key, k in incoming.distinct.items():
            self._begun[key] = incoming.variables[k]
