"""The protocol of a strategy, which shares the steps of an engine with other processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # only a step needs these
    from rmsjit.steps.engine import Engine
    from rmsjit.steps.reduction import Reduction, Request


class Strategy(Protocol):
    """Reduces the gradients of every step.

    It may have two more methods: ``enrol()`` gives every optimizer a number at construction, and
    ``refused(engine, error)`` tells the other processes why this one can't ask for a step.
    """

    def reduced(self, engine: Engine, request: Request) -> Reduction | None:
        """Agree with all ranks and reduce the gradients; None if no rank has any.

        Raises
        ------
        Exception
            On every rank, if one can't take the step or they disagree.
        """
