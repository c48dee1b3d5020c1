"""The steps of one optimizer under a strategy: agree, start equal, reduce, update."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from operator import is_
from typing import Any

from numpy.typing import NDArray

from rmsjit.arrays.layout import Key, layout_of
from rmsjit.distributed.agreement import Agreed, Agreement, all_well
from rmsjit.distributed.comm import broadcast
from rmsjit.distributed.incoming import Checked, Incoming
from rmsjit.distributed.node import Node, kernels_of
from rmsjit.distributed.replicated import ReplicatedPlan
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.sharded import ShardedPlan
from rmsjit.distributed.sharded_state import key_of, remove
from rmsjit.distributed.shards import Shards
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.hyperparameters import StepNumbers
from rmsjit.steps.engine import Stepper
from rmsjit.variables import array_of

_PLANS_KEPT = 16  # lists of variables, as `Stepper` keeps


class Session:
    """What a strategy knows of one optimizer.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    node : Node
    settings : Settings
    stepper : Stepper

    Attributes
    ----------
    shards : Shards
        How variables are shared out.
    """

    def __init__(self, comm: Any, node: Node, settings: Settings, stepper: Stepper) -> None:
        self._comm = comm
        self._node = node
        self._settings = settings
        self._stepper = stepper
        self._agreement = Agreement(comm)
        self._plans: OrderedDict[Any, Any] = OrderedDict()
        self._last: tuple[Any, tuple[Any, ...], tuple[type, ...], bool] = (None, (), (), False)
        self._begun: dict[Key, Any] = {}  # variables that ranks have in common, kept alive
        self.shards = Shards(comm.size)

    def step(
        self,
        gradients: tuple[Any, ...],
        variables: tuple[Any, ...],
        clipping: Clipping,
        numbers: Callable[[], StepNumbers],
        aggregate: bool,
        counter: NDArray[Any] | None,
    ) -> bool:
        """One step, as `rmsjit.distributed.MPIStrategy.step` describes it."""
        plan, checked, error, own = None, Checked([]), None, None
        try:
            plan = self._plan(gradients, variables, aggregate)
            checked = plan.incoming.checked(gradients)
            own = numbers()
        except Exception as problem:  # the other ranks must hear of it, whatever it is
            error = problem
        claim = None if plan is None else plan.incoming.claim
        fresh = plan is not None and not self._known(plan)
        agreed = self._agreement.reach(claim, error, fresh, own, clipping)
        assert plan is not None
        if not variables:
            return False
        self._check_numbers(plan, agreed)
        plan.lay_out(self.shards, self._stepper.exact)
        if agreed.fresh:
            self._begin(plan, agreed, counter)
        taken: bool = plan.step(self._stepper, gradients, checked, agreed, aggregate)
        return taken

    def _plan(self, gradients: tuple[Any, ...], variables: tuple[Any, ...], aggregate: bool) -> Any:
        kinds = tuple(map(type, gradients))
        last, known, last_kinds, last_aggregate = self._last
        if (
            last is not None
            and len(known) == len(variables)
            and all(map(is_, known, variables))
            and (last_kinds, last_aggregate) == (kinds, aggregate)
        ):
            return last
        identity = (tuple(map(id, variables)), kinds, aggregate)
        plan, _ = self._plans.get(identity, (None, None))
        if plan is None:
            plan = self._plan_of_memory(gradients, variables, aggregate)
        self._plans[identity] = plan, variables  # kept alive, so that no id becomes another's
        self._plans.move_to_end(identity)
        while len(self._plans) > _PLANS_KEPT:
            self._plans.popitem(last=False)
        self._last = plan, variables, kinds, aggregate
        return plan

    def _plan_of_memory(
        self, gradients: tuple[Any, ...], variables: tuple[Any, ...], aggregate: bool
    ) -> Any:
        """A plan for new objects: one that has been made for the same memory, or a new one."""
        form, exact = self._stepper.store.form, self._stepper.exact
        header = (
            f"{self._settings}, {form}, exact={exact}, nonfinite={self._stepper.nonfinite!r}, "
            f"aggregate={aggregate}"
        )
        incoming = Incoming(variables, tuple(map(type, gradients)), header)
        for plan, _ in self._plans.values():
            if plan.incoming.same_memory(incoming):
                return plan
        if self._settings.shard_state:
            return ShardedPlan(self._comm, self._settings, incoming)
        return ReplicatedPlan(self._comm, self._settings, incoming)

    def _known(self, plan: Any) -> bool:
        incoming = plan.incoming
        if not plan.begun:
            plan.begun = all(incoming.keys[k] in self._begun for k in incoming.present)
        return bool(plan.begun)

    def _check_numbers(self, plan: Any, agreed: Agreed) -> None:
        """Raise on every rank alike what the stepper would raise where it has work to do."""
        for precision in {plan.incoming.precisions[k] for k in plan.incoming.present}:
            agreed.numbers.packed(precision, self._stepper.store.form)
            if precision.parts == 2 and agreed.clipping.clipvalue is not None:
                raise TypeError(
                    f"clipvalue can't be applied to gradients of complex variables "
                    f"({precision.name})"
                )

    def forget(self) -> None:
        """Have the next step start as the first does, and slots of shares go."""
        for key, cut in self.shards.cuts.items():
            array = array_of(self._begun[key])
            piece = cut.part(array, layout_of(array), self._comm.rank)
            remove(self._stepper.store, key_of(piece))
        self._stepper.forget_plans()
        self._plans.clear()
        self._last = (None, (), (), False)
        self._begun.clear()
        self.shards.forget()

    # --- the first step ---------------------------------------------------------------------

    def _begin(self, plan: Any, agreed: Agreed, counter: NDArray[Any] | None) -> None:
        """Compile, and give every rank the variables and slots of rank 0."""
        stepper, incoming = self._stepper, plan.incoming
        if stepper.num_threads is None:
            stepper.num_threads = self._node.threads
        norms = agreed.clipping.by_norm or stepper.nonfinite != "propagate"
        kernels = kernels_of(
            incoming, stepper.store.form, stepper.exact, norms, stepper.num_threads
        )
        self._node.compile_first(kernels.load)
        error = None
        try:
            stepper.sync()
            plan.prepare(stepper)
        except Exception as problem:
            error = problem
        all_well(self._comm, error, "create the slots")
        for array in _once(incoming.keys, incoming.arrays):
            broadcast(self._comm, array)
        plan.share_slots(stepper)
        if counter is not None:
            broadcast(self._comm, counter)
        for k in incoming.present:
            self._begun[incoming.keys[k]] = incoming.variables[k]


def _once(keys: list[Key], arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Each memory once, in order."""
    return list(dict(zip(keys, arrays, strict=True)).values())
