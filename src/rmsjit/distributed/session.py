"""The steps of one optimizer under a strategy: agree, start from equal values, reduce."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import array_key, layout_of
from rmsjit.distributed.agreement import (
    NO_GROUPS,
    NO_WORDS,
    Agreed,
    NumbersReader,
    NumbersWriter,
    shared_errors,
    words_of_groups,
)
from rmsjit.distributed.comm import broadcast
from rmsjit.distributed.first_step import allocate, load, send_from_rank_0
from rmsjit.distributed.group import Group
from rmsjit.distributed.incoming import Checked, Incoming
from rmsjit.distributed.intent import (
    NO_CLAIM,
    NO_FLAGS,
    Act,
    Claim,
    Flags,
    Intent,
    Place,
    Progress,
)
from rmsjit.distributed.known import Known
from rmsjit.distributed.outbox import Outbox
from rmsjit.distributed.replicated import ReplicatedPlan
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.sharded import ShardedPlan
from rmsjit.distributed.shards import Shards
from rmsjit.distributed.stage import Stage, StagePlan, Step, Terms
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.hyperparameters import Hyperparameters, Numbers
from rmsjit.state.entries import stem_of
from rmsjit.state.numbering import forget_numbers
from rmsjit.state.slots import SlotStore
from rmsjit.steps import nonfinite
from rmsjit.steps.pairs import changed_meanwhile, check_counter, checked_pairs, warn_of_missing
from rmsjit.steps.plans import Plans, identity_of

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine
    from rmsjit.steps.reduction import Request


class Own(NamedTuple):
    """What this rank contributes to a step, or the error that prevents it."""

    plan: StagePlan | None = None
    checked: Checked | None = None
    outgoing: Any = None
    claim: Claim = NO_CLAIM
    words: NDArray[np.int64] = NO_WORDS
    of_groups: NDArray[np.int64] = NO_GROUPS
    error: BaseException | None = None


class Roster:
    """Numbers the sessions of a strategy in the order of their first acts.

    Attributes
    ----------
    met : int
        How many have taken part in an act of all ranks.
    """

    def __init__(self) -> None:
        self.met = 0


class Session:
    """What a strategy knows about one engine; it must not refer to the engine itself.

    Parameters
    ----------
    group : Group
    settings : Settings
    place : Place
        Of the optimizer.
    roster : Roster
    outbox : Outbox
        Of the strategy.

    Attributes
    ----------
    comm : mpi4py.MPI.Comm
    settings : Settings
    shards : Shards
        How variables are divided among ranks.
    known : Known
        The variables that all ranks have the same values of.
    steps : int
        How many this rank has completed since all ranks started from equal values.
    place : Place
        Its session number counts once all ranks have agreed on a first act.
    """

    def __init__(
        self, group: Group, settings: Settings, place: Place, roster: Roster, outbox: Outbox
    ) -> None:
        self._group = group
        self.comm: Any = group.comm
        self.settings: Settings = settings
        self._plans: Plans[StagePlan] = Plans()
        self.steps: int = 0
        self._numbers, self._writer = NumbersReader(), NumbersWriter()
        self._roster = roster
        self._outbox = outbox
        self._has_met = False
        self.place: Place = place
        self.shards: Shards = Shards(group.comm.size)
        self.known: Known = Known(self.shards)

    # --- one step ---------------------------------------------------------------------------

    def reduced(self, engine: Engine, request: Request, joining: bool) -> Stage | None:
        """Make the stage of one step; see `rmsjit.steps.strategy.Strategy`."""
        self._group.memory.begin()
        own = self.own(engine, request)
        self._outbox.clear()
        intent = self._intent(engine, request, own, joining)
        unprepared = own.plan is not None and not own.plan.is_prepared
        flags = Flags(unprepared, not request.finite)
        agreed = self.agree(intent, own.error, flags, own.words)
        if agreed.uneven:
            with shared_errors(self.comm, "be followed by the others"):
                _check_reduces(request)
        return self._exchanged(engine, request, own, agreed)

    def followed(self, engine: Engine, request: Request, own: Own, agreed: Agreed) -> Stage | None:
        """Make the stage of a step that other ranks take, with gradients of zero from this one.

        All ranks know that `check_followed` has passed.
        """
        self._outbox.clear()
        return self._exchanged(engine, request, own, agreed)

    def check_followed(self, engine: Engine, request: Request, own: Own, agreed: Agreed) -> None:
        """Raise `RuntimeError` if this rank can't follow the others in a step."""
        _check_reduces(request)
        intent = self._intent(engine, request, own, False)
        if intent._replace(place=self.place, claim=NO_CLAIM) != agreed.intent:
            raise RuntimeError("this rank has not taken the same steps as the others")

    def agree(
        self,
        intent: Intent,
        error: BaseException | None,
        flags: Flags = NO_FLAGS,
        words: NDArray[np.int64] = NO_WORDS,
    ) -> Agreed:
        """Exchange headers; see `rmsjit.distributed.agreement.Agreement.reach`."""
        if not self._has_met:
            self.place = self.place._replace(session=self._roster.met)
        if intent.place is not self.place:
            intent = intent._replace(place=self.place)
        agreed = self._group.agreement.reach(intent, error, flags, words)
        if not self._has_met:
            self._has_met = True
            self._roster.met += 1
        return agreed

    def refuse(self, error: BaseException) -> None:
        """Let the other ranks know that this one can't take the step, and raise `error`."""
        self._outbox.clear()
        self.agree(Intent(Act.STEP), error)

    def own(self, engine: Engine, request: Request) -> Own:
        """Do all of the step that may fail on one rank alone.

        Gradients that are summed in shared memory are written there.
        """
        plan = None
        try:
            plan, checked = self._planned(engine, request)
            plan.notice_lost_state(engine.store, self.shards)
            is_travelling = plan.is_prepared and bool(plan.terms.sent)
            is_underway = is_travelling and self._outbox.has_sums_of(plan)
            numbers = request.hyperparameters.at(request.counter)
            check_counter(request.counter)
            outgoing = plan.outgoing(checked, is_underway) if plan.is_prepared else None
            own = self.known.claim(engine, request, plan, is_underway)
            words = self._writer.write(numbers[0], request.clipping)
            of_groups = words_of_groups(numbers[1:]) if len(numbers) > 1 else NO_GROUPS
            return Own(plan, checked, outgoing, own, words, of_groups)
        except BaseException as error:  # the other ranks must learn of it, whatever it is
            return Own(error=error)

    def _exchanged(
        self, engine: Engine, request: Request, own: Own, agreed: Agreed
    ) -> Stage | None:
        """What follows the agreement on all ranks."""
        plan, checked, outgoing = own.plan, own.checked, own.outgoing
        assert plan is not None
        assert checked is not None
        if not request.pairs:
            return None
        if agreed.flags.unfit and not nonfinite.accepts(
            engine.nonfinite, np.array([False]), lambda _: "a variable on one of the ranks"
        ):
            return None
        missing = _missing(engine.store, plan) if plan.incoming.missing else []
        if missing:  # on all ranks
            with shared_errors(self.comm, "go on after a warning"):
                warn_of_missing(missing)
        numbers, clipping = self._read(own, agreed)
        plan.check_numbers(numbers, clipping)
        unprepared = agreed.flags.unprepared
        if unprepared:
            self._prepare(engine, request, plan, Hyperparameters(numbers[0]._asdict()), clipping)
        with np.errstate(all="ignore"):  # what a cast loses, as in a step of one process
            if unprepared:
                with shared_errors(self.comm, "convert the gradients"):
                    outgoing = plan.outgoing(checked, False)
            if unprepared or agreed.uneven:  # some write gradients after the headers
                self._group.memory.wait_for_all()
            self._outbox.note(self, plan, own.claim)
            norms = clipping.by_norm or engine.reads_norms
            rows = self._rows(engine.store, plan) if norms else None
            step = Step(numbers, clipping, norms, self._completed, rows)
            return plan.reduced(checked, outgoing, step)

    def _rows(self, store: SlotStore, plan: StagePlan) -> NDArray[np.int64] | None:
        """The group of each whole gradient, None where those of the engine's plan are right."""
        if not store.grouping.groups or not self.settings.shard_state:
            return None
        variables = plan.incoming.variables
        rows = [store.grouping.row_of(store.whole(v), stem_of(v)) for v in variables]
        return np.array(rows, np.int64)

    def _read(self, own: Own, agreed: Agreed) -> tuple[Numbers, Clipping]:
        """The numbers and bounds of rank 0; those of groups need a message of their own."""
        of_groups = own.of_groups
        if len(of_groups):
            of_groups = of_groups.copy()
            broadcast(self.comm, of_groups, np.int64, of_groups.shape)
        return self._numbers.read(self._words(own, agreed), of_groups)

    def _words(self, own: Own, agreed: Agreed) -> NDArray[np.int64]:
        """The numbers of rank 0; it sends them late if it has no more batches."""
        if agreed.words is not None:
            return agreed.words
        words = own.words.copy()
        broadcast(self.comm, words, np.int64, NO_WORDS.shape)
        return words

    def _completed(self) -> None:
        self.steps += 1

    # --- what the header says ---------------------------------------------------------------

    def _intent(self, engine: Engine, request: Request, own: Own, joining: bool) -> Intent:
        progress = Progress()
        if own.plan is not None and request.pairs:
            progress = self._progress(engine, request.counter, own.plan)
        return Intent(Act.STEP, self.place, progress, own.claim, joining)

    def _progress(self, engine: Engine, counter: NDArray[Any] | None, plan: StagePlan) -> Progress:
        if not plan.is_prepared and self.known.lacks(plan):  # all start from rank 0
            return Progress(self.steps)
        behind = 0
        if engine.exact:
            entries = (
                engine.store.entries.get(plan.incoming.keys[k]) for k in plan.incoming.sparse
            )
            behind = sum(e.clock.now for e in entries if e is not None and e.clock is not None)
        iterations = 0 if counter is None else int(counter.astype(np.int64))
        return Progress(self.steps, iterations, behind)

    @property
    def last_plan(self) -> StagePlan | None:
        """The plan of the last step."""
        return self._plans.last

    # --- plans ------------------------------------------------------------------------------

    def _planned(self, engine: Engine, request: Request) -> tuple[StagePlan, Checked]:
        """A known or new plan, and the gradients that it has checked."""
        sent = () if self._outbox.sending is None else self._outbox.positions(request)
        terms, plan = Terms(engine.store.form, request.aggregate, sent), self._plans.last
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
            raise changed_meanwhile()
        self._plans.last = plan
        self._plans.add(plan)
        return plan, checked

    def _header(self, engine: Engine, terms: Terms) -> str:
        return (
            f"{self.settings}, {terms.form}, exact={engine.exact}, "
            f"nonfinite={engine.nonfinite!r}, track_norms={engine.track_norms}, "
            f"seed={engine.seed}, aggregate={terms.aggregate}"
        )

    def _new_plan(self, incoming: Incoming, terms: Terms) -> StagePlan:
        """A plan made from a known one for other views of the same memory, or a new one."""
        alike = self._plans.of_memory((incoming.memory, terms))
        if alike is not None:
            return alike.rebound(incoming)
        if self.settings.shard_state:
            return ShardedPlan(self.comm, self.settings, incoming, terms)
        return ReplicatedPlan(self.comm, self.settings, incoming, terms, self._group.memory)

    # --- the first step ---------------------------------------------------------------------

    def _prepare(
        self,
        engine: Engine,
        request: Request,
        plan: StagePlan,
        numbers: Hyperparameters,
        clipping: Clipping,
    ) -> None:
        """Allocate and compile, and start new variables from rank 0; all ranks or none."""
        fresh = self.known.lacks(plan)
        engine.limit_threads(self._group.node.threads)
        with engine.store.undone_on_error():
            with shared_errors(self.comm, "create the slots"):
                start = allocate(engine, plan, self.shards, numbers, fresh, request.counter)
            self._group.memory.make_room()
            with shared_errors(self.comm, "load kernels"):
                self._group.node.compile_first(lambda: load(engine, plan, clipping))
            send_from_rank_0(self.comm, engine, plan, start, fresh, request.clipping.loss_scale)
        if isinstance(plan, ShardedPlan):
            self.shards.keep({plan.incoming.keys[k]: cut for k, cut in plan.cuts.items()})
        self.known.add(plan, fresh)
        plan.is_prepared = True

    # --- checkpoints ------------------------------------------------------------------------

    def forget(self, store: SlotStore) -> None:
        """Remove the slots of parts, and make the next step start like the first one."""
        self._outbox.forget(self)
        forget_numbers(store)
        for key, cut in self.shards.cuts.items():
            array = self.known.array_at(key)
            if array is not None:
                store.remove(array_key(cut.part(array, layout_of(array), self.comm.rank)))
        store.enter([one.whole for one in store.divided.values() if one.whole.group], [])
        store.divided = {}
        self._plans.clear()
        self.known.clear()
        self.steps = 0
        self.shards.cuts.clear()


def _missing(store: SlotStore, plan: StagePlan) -> list[str]:
    """The names of variables without a gradient that are not frozen."""
    incoming, freezes = plan.incoming, store.grouping.freezes
    return [
        incoming.names[k]
        for k, variable in enumerate(incoming.variables)
        if k not in incoming.present and not freezes(store.whole(variable), stem_of(variable))
    ]


def _check_reduces(request: Request) -> None:
    """Raise `RuntimeError` if ranks without a batch can't know the gradients."""
    if not request.aggregate:
        raise RuntimeError(
            "join() needs gradients that the strategy reduces, but the step is taken with "
            "experimental_aggregate_gradients=False"
        )
