"""Gradients that are sent while others are computed.

In the first step of an optimizer, gradients that were sent travel with the step; their order is
part of what ranks agree on.  From then on each of them travels at once: ranks agree at the first
one that they send the gradients of this step, and so know which messages there will be.  If any
other act comes before all of them have started, those that are left are sent as zeros, so that no
rank waits for them, and the step is not taken from these sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from rmsjit.arrays.layout import array_key
from rmsjit.distributed.intent import Claim
from rmsjit.distributed.traffic import Traffic
from rmsjit.steps.pairs import Pairs, checked_pairs, dense_gradient
from rmsjit.variables import Variable, array_of

if TYPE_CHECKING:
    from rmsjit.distributed.agreement import Agreement
    from rmsjit.distributed.session import Session
    from rmsjit.distributed.stage import StagePlan
    from rmsjit.steps.reduction import Request


class Route(NamedTuple):
    """How the gradients of the next step of an optimizer will travel if they are sent."""

    plan: StagePlan
    claim: Claim  # what ranks have agreed on in its last step


class Outbox:
    """What a strategy knows of gradients that are sent before their step.

    Parameters
    ----------
    agreement : Agreement
        Of the ranks.
    """

    def __init__(self, agreement: Agreement) -> None:
        self._agreement = agreement
        self._sending: Sending | None = None
        self._refusals = 0  # of the agreement, when the first gradient was sent
        self._routes: WeakKeyDictionary[Session, Route] = WeakKeyDictionary()

    @property
    def sending(self) -> Sending | None:
        """The gradients that were sent since the last step, or the last act that was refused."""
        if self._refusals != self._agreement.refusals:
            self._sending = None
        return self._sending

    def begin(self, sending: Sending) -> Sending:
        """Gather the gradients of the next step in `sending`."""
        self._sending, self._refusals = sending, self._agreement.refusals
        return sending

    def clear(self) -> None:
        """Expect the gradients of another step."""
        self._sending = None

    def note(self, session: Session, plan: StagePlan, claim: Claim) -> None:
        """Remember the step on which all ranks have agreed; the next one may be like it."""
        if self._routes:
            self.forget(session)
        if plan.terms.sent and plan.messages:
            self._routes[session] = Route(plan, claim)

    def forget(self, session: Session) -> None:
        """Have the gradients of the next step of an optimizer wait for it."""
        self._routes.pop(session, None)

    def route_of(self, session: Session) -> Route:
        """How the gradients of an optimizer travel.

        Raises
        ------
        RuntimeError
            If they do not travel before its step.
        """
        route = self._routes.get(session)
        if route is None:
            raise RuntimeError("the last step of this rank had no gradients that were sent")
        return route

    def session_for(self, variable: Any) -> Session | None:
        """The optimizer whose last step sent the gradient of a variable first."""
        key = array_key(array_of(variable))
        for session, route in reversed(list(self._routes.items())):
            incoming = route.plan.incoming
            if incoming.keys[route.plan.terms.sent[0]] == key:
                return session
        return None

    def positions(self, request: Request) -> tuple[int, ...]:
        """Where the gradients that were sent are among the pairs of a step, in their order.

        Raises
        ------
        RuntimeError
            If the step is not about them.
        """
        found = () if self.sending is None else self.sending.positions(request.pairs)
        if found and not request.aggregate:
            raise RuntimeError(
                "gradients were sent, which the strategy sums, but the step is taken with "
                "experimental_aggregate_gradients=False"
            )
        return found

    def has_sums_of(self, plan: Any) -> bool:
        """Whether the gradients of a step are on their way, in the messages of its plan."""
        return self.sending is not None and self.sending.has_sums_of(plan)


class Sending:
    """The gradients that one rank has sent for its next step.

    Parameters
    ----------
    plan : StagePlan, optional
        Of the messages in which they travel; by default they wait for the step.
    follows : bool
        Whether this rank has no batch, and so sends zeros.
    """

    def __init__(self, plan: StagePlan | None = None, follows: bool = False) -> None:
        self._plan = plan
        self._follows = follows
        self._pairs: list[tuple[Any, Any]] = []
        self._known: set[int] = set()  # the ids of the variables
        self._travelling = 0  # of the plan's gradients, how many have been put on their way
        self._keeps_order = True
        self._is_finished = False
        self._traffic = Traffic(1 if plan is None else plan.most_at_a_time)

    def add(self, gradient: Any, variable: Any) -> None:
        """Send a dense gradient, or keep it for the step if another one was expected.

        Raises
        ------
        TypeError, ValueError
            If it does not fit its variable, or is the second one of it.
        """
        if id(variable) in self._known:
            raise ValueError(
                f"each gradient must be sent once before its step, got a second one of "
                f"{_described(variable)} (gradients that are accumulated can't be sent)"
            )
        gives = self._plan is not None and not self._is_finished and self._keeps_order
        if gives and self._is_next(variable):
            self._put(self._flat(gradient, variable))
        else:
            self._keeps_order = False
        self._pairs.append((gradient, variable))
        self._known.add(id(variable))

    def _is_next(self, variable: Any) -> bool:
        assert self._plan is not None
        sent = self._plan.terms.sent[self._travelling : self._travelling + 1]
        return any(_is_same(variable, self._plan.incoming.variables[k]) for k in sent)

    def _flat(self, gradient: Any, variable: Any) -> Any:
        """The elements of a gradient in the order in which they are sent."""
        assert self._plan is not None
        position = self._plan.terms.sent[self._travelling]
        return self._plan.flat(position, dense_gradient(gradient, variable, position))

    def _put(self, flat: Any) -> None:
        """Put the next gradient into its messages, and start those that are full with it."""
        assert self._plan is not None
        position = self._plan.terms.sent[self._travelling]
        for start in self._plan.messages[position].fill(position, flat):
            self._traffic.add(start)
        self._travelling += 1

    def finish(self) -> None:
        """Send what all ranks expect as zeros if it is missing, and wait for all sums."""
        self._is_finished = True
        if self._plan is not None:
            while self._travelling < len(self._plan.terms.sent):
                self._put(self._zeros())
            self._traffic.finish()

    def _zeros(self) -> Any:
        """A flat gradient of zeros in place of the next one."""
        assert self._plan is not None
        array = self._plan.incoming.arrays[self._plan.terms.sent[self._travelling]]
        return np.broadcast_to(np.zeros((), array.dtype), array.size)

    def has_sums_of(self, plan: Any) -> bool:
        """Whether the messages of a plan will have the sums of its gradients at its step."""
        if self._plan is None or self._plan.messages is not getattr(plan, "messages", None):
            return False
        complete = self._keeps_order and self._travelling == len(self._plan.terms.sent)
        return self._follows or (complete and not self._is_finished)

    def positions(self, pairs: Pairs) -> tuple[int, ...]:
        """Where among the pairs of the step the gradients are that were sent, in their order.

        Raises
        ------
        RuntimeError
            If one of them is not among the pairs.
        """
        pairs = checked_pairs(pairs)
        if self._follows:
            return self._positions_to_follow(pairs)
        places: dict[int, list[int]] = {}
        for k, (gradient, _) in enumerate(pairs):
            places.setdefault(id(gradient), []).append(k)
        found: dict[int, None] = {}
        for gradient, variable in self._pairs:
            alike = [k for k in places.get(id(gradient), ()) if _is_same(pairs[k][1], variable)]
            position = next((k for k in alike if k not in found), None)
            if position is None:
                raise RuntimeError(
                    f"gradients that were sent must be those of the next step, got another one, or "
                    f"none, of {_described(variable)} (gradients that are accumulated, or changed "
                    f"by a hook of the optimizer, can't be sent)"
                )
            found[position] = None
        return tuple(found)

    def _positions_to_follow(self, pairs: Pairs) -> tuple[int, ...]:
        assert self._plan is not None
        ours = self._plan.incoming.variables
        given = [variable for _, variable in pairs]
        is_alike = len(given) == len(ours) and all(map(_is_same, given, ours))
        return self._plan.terms.sent if is_alike else ()


def _is_same(one: Any, other: Any) -> bool:
    """Whether two objects are the same variable."""
    return one is other or array_key(array_of(one)) == array_key(array_of(other))


def _described(variable: Any) -> str:
    if isinstance(variable, Variable):
        return variable.name
    return f"an array of shape {array_of(variable).shape}"
