"""Gradients that are sent while others are computed, until their step.

If any other act comes before all of them have started, those that are left are sent as zeros, so
that no rank waits for them, and the step is not taken from these sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rmsjit.distributed.traffic import Traffic
from rmsjit.state.entries import key_of
from rmsjit.steps.pairs import Pairs, checked_pairs, dense_gradient
from rmsjit.variables import Variable, array_of

if TYPE_CHECKING:
    from rmsjit.distributed.stage import StagePlan


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
        """The positions of the gradients that were sent among the pairs of the step.

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
                    f"none, of {_described(variable)} (gradients that are accumulated, given "
                    f"within one_step, or changed by a hook of the optimizer, can't be sent)"
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
    return one is other or key_of(one) == key_of(other)


def _described(variable: Any) -> str:
    if isinstance(variable, Variable):
        return variable.name
    return f"an array of shape {array_of(variable).shape}"
