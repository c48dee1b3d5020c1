"""When gradients that are sent travel, and with which step.

In the first step of an optimizer, gradients that were sent travel with the step; their order is
part of what ranks agree on.  From then on each of them travels at once: ranks agree at the first
one that they send the gradients of this step, and so know which messages there will be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from rmsjit.distributed.agreement import Agreed, Agreement, shared_errors
from rmsjit.distributed.intent import Act, Claim, Intent, Progress
from rmsjit.distributed.sending import Sending
from rmsjit.state.entries import key_of

if TYPE_CHECKING:
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
        self._has_routes = False  # whether there ever was one

    @property
    def sending(self) -> Sending | None:
        """The gradients that were sent since the last step, or the last act that was refused."""
        if self._refusals != self._agreement.refusals:
            self._sending = None
        return self._sending

    def begin(self, variable: Any, joining: bool) -> Sending:
        """Gather the gradients of a step, of which that of `variable` is the first.

        They travel at once if the last step of an optimizer began with it, too: then this rank
        agrees with all others to send them.

        Raises
        ------
        RuntimeError
            On all ranks, if another one does something else.
        """
        session = self._session_for(variable)
        if session is None:
            return self._expect(Sending())
        route = self._route_of(session)
        intent = Intent(Act.SEND, session.place, Progress(session.steps), route.claim, joining)
        if session.agree(intent, None).uneven:
            with shared_errors(session.comm, "be followed by the others"):
                pass
        return self._start(Sending(route.plan))

    def follow(self, session: Session, agreed: Agreed) -> None:
        """Send zeros instead of the gradients that other ranks send.

        Raises
        ------
        RuntimeError
            If the last step of this rank was another one.
        """
        route = self._route_of(session)
        intent = Intent(Act.SEND, session.place, Progress(session.steps))
        if agreed.intent != intent or agreed.fingerprint != route.claim.fingerprint:
            raise RuntimeError("this rank has not taken the same steps as the others")
        self._start(Sending(route.plan, follows=True))

    def _start(self, sending: Sending) -> Sending:
        self._agreement.begin(sending)
        return self._expect(sending)

    def _expect(self, sending: Sending) -> Sending:
        self._sending, self._refusals = sending, self._agreement.refusals
        return sending

    def clear(self) -> None:
        """Expect the gradients of another step."""
        self._sending = None

    def note(self, session: Session, plan: StagePlan, claim: Claim) -> None:
        """Remember the step on which all ranks have agreed; the next one may be like it."""
        if self._has_routes:
            self.forget(session)
        if plan.terms.sent and plan.messages:
            self._routes[session], self._has_routes = Route(plan, claim), True

    def forget(self, session: Session) -> None:
        """Have the gradients of the next step of an optimizer wait for it."""
        self._routes.pop(session, None)

    def _route_of(self, session: Session) -> Route:
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

    def _session_for(self, variable: Any) -> Session | None:
        """The optimizer whose last step sent the gradient of a variable first."""
        key = key_of(variable)
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
        sending = self.sending
        found = () if sending is None else sending.positions(request.pairs)
        if found and not request.aggregate:
            raise RuntimeError(
                "gradients were sent, which the strategy sums, but the step is taken with "
                "experimental_aggregate_gradients=False"
            )
        return found

    def has_sums_of(self, plan: Any) -> bool:
        """Whether the gradients of a step are on their way, in the messages of its plan."""
        return self.sending is not None and self.sending.has_sums_of(plan)
