"""The protocol of a strategy, which shares the steps of an engine with other processes.

Before the update, all ranks agree to take the same step and reduce their gradients; after it, they
share what each has updated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from numpy.typing import NDArray

from rmsjit.rule.clipping import Clipping
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.rule.numbers import StepNumbers
from rmsjit.steps.pairs import Pairs

if TYPE_CHECKING:  # these import Numba
    from rmsjit.steps.engine import Engine
    from rmsjit.steps.norms import Norms


class Request(NamedTuple):
    """The arguments of a step.

    Attributes
    ----------
    pairs : tuple of (gradient, variable)
    hyperparameters : Hyperparameters
    clipping : Clipping
    counter : integer 0-d array or None
        Counts the steps.
    aggregate : bool
        Whether gradients are reduced over processes.
    """

    pairs: Pairs
    hyperparameters: Hyperparameters
    clipping: Clipping
    counter: NDArray[Any] | None = None
    aggregate: bool = True


class Reduction(Protocol):
    """One step of all ranks, from their agreement to the sharing of results."""

    pairs: Pairs
    values: StepNumbers
    clipping: Clipping
    scale: float  # the gradients must still be multiplied by this

    def whole(self, norms: Norms) -> Norms:
        """The norms of whole gradients, from those of the parts that this rank has."""

    def own(self, factors: NDArray[Any]) -> NDArray[Any]:
        """The factors of the parts that this rank has, from those of whole gradients."""

    def name(self, position: int) -> str:
        """How messages name the variable of a whole gradient."""

    def share(self) -> None:
        """Send all ranks what this one has updated."""


class Strategy(Protocol):
    """Reduces the gradients of every step."""

    def reduced(self, engine: Engine, request: Request) -> Reduction | None:
        """Agree with all ranks and reduce the gradients; None if no rank has any.

        Raises
        ------
        Exception
            On every rank, if one can't take the step or they disagree.
        """
