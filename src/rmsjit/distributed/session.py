"""The steps of one optimizer under a strategy: agree, start equal, reduce."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, layout_of
from rmsjit.distributed.agreement import Agreed, Agreement, all_well
from rmsjit.distributed.comm import broadcast
from rmsjit.distributed.incoming import Checked, Incoming
from rmsjit.distributed.node import Node, load_kernels
from rmsjit.distributed.replicated import ReplicatedPlan
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.sharded import ShardedPlan
from rmsjit.distributed.sharded_state import key_of
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
    """The knowledge that a strategy has of one engine, to which it must not refer.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    node : Node
    settings : Settings

    Attributes
    ----------
    shards : Shards
        How variables are shared out.
    """

    def __init__(self, comm: Any, node: Node, settings: Settings) -> None:
        self._comm = comm
        self._node = node
        self._settings = settings
        self._agreement = Agreement(comm)
        self._plans: Plans[StagePlan] = Plans()
        self._begun: dict[Key, Any] = {}  # variables that ranks have in common, kept alive
        self.shards = Shards(comm.size)

    def reduced(self, engine: Engine, request: Request) -> Stage | None:
        """The stage of one step; see `rmsjit.steps.reduction.Strategy`."""
        plan, checked, numbers, error = None, None, None, None
        try:
            plan, checked = self._planned(engine, request)
            numbers = request.hyperparameters.at(request.counter)
            check_counter(request.counter)
        except Exception as problem:  # the other ranks must hear of it, whatever it is
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
        """A plan that is known or new, and the gradients as it has checked them."""
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
        """A plan that has been made for other views of the same memory, or a new one."""
        alike = self._plans.of_memory((incoming.memory, terms))
        if alike is not None:
            return alike.rebound(incoming)
        cls = ShardedPlan if self._settings.shard_state else ReplicatedPlan
        return cls(self._comm, self._settings, incoming, terms)

    def _known(self, plan: StagePlan) -> bool:
        incoming = plan.incoming
        plan.begun = plan.begun or all(incoming.keys[k] in self._begun for k in incoming.present)
        return plan.begun

    def forget(self, store: SlotStore) -> None:
        """Have the next step start as the first does, and slots of shares go."""
        for key, cut in self.shards.cuts.items():
            if key in self._begun:
                array = array_of(self._begun[key])
                store.remove(key_of(cut.part(array, layout_of(array), self._comm.rank)))
        self._plans.clear()
        self._begun.clear()
        self.shards.forget()

    # --- the first step ---------------------------------------------------------------------

    def _begin(
        self, engine: Engine, plan: StagePlan, agreed: Agreed, counter: NDArray[Any] | None
    ) -> None:
        """Compile, and give every rank the variables and slots of rank 0."""
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
        error = None
        try:
            engine.sync()
            plan.prepare(engine, Hyperparameters(agreed.numbers._asdict()))
        except Exception as problem:
            error = problem
        all_well(self._comm, error, "create the slots")
        for array in {incoming.keys[k]: incoming.arrays[k] for k in incoming.present}.values():
            broadcast(self._comm, array)
        plan.share_slots(engine)
        if counter is not None:
            broadcast(self._comm, counter)
        for k in incoming.present:
            self._begun[incoming.keys[k]] = incoming.variables[k]
