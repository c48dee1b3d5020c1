"""What an engine asks of a strategy that shares its steps with other processes.

A strategy is a stage of the step, between its gradients and the update: ranks agree that they take
the same step, reduce their gradients, and afterwards share what each has updated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from numpy.typing import NDArray

from rmsjit.rule.clipping import Clipping
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.rule.numbers import StepNumbers
from rmsjit.steps.pairs import Pairs

if TYPE_CHECKING:  # these bring Numba along
    from rmsjit.steps.engine import Engine
    from rmsjit.steps.norms import Norms


class Request(NamedTuple):
    """A step that is asked for.

    Attributes
    ----------
    pairs : tuple of (gradient, variable)
    hyperparameters : Hyperparameters
    clipping : Clipping
    counter : integer 0-d array or None
        What counts the steps.
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
    scale: float  # what gradients are still to be multiplied by

    def whole(self, norms: Norms) -> Norms:
        """Norms of whole gradients, where this rank has parts of them."""

    def own(self, factors: NDArray[Any]) -> NDArray[Any]:
        """Those of the parts of this rank, of factors for whole gradients."""

    def name(self, position: int) -> str:
        """How messages name the variable of a whole gradient."""

    def share(self) -> None:
        """Give all ranks what this one has updated."""


class Strategy(Protocol):
    """Makes the stage of every step."""

    def reduced(self, engine: Engine, request: Request) -> Reduction | None:
        """Agree with all ranks and reduce the gradients; None where nobody has any.

        Raises
        ------
        Exception
            On every rank, where one can't take the step or they disagree.
        """
