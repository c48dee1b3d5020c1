"""A step that an engine shares with other processes: the request for it, and its reduction.

Before the update, all ranks agree to take the same step and reduce their gradients; after it, they
share what each has updated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rmsjit.rule.clipping import Clipping
from rmsjit.rule.hyperparameters import Hyperparameters, Numbers
from rmsjit.steps.pairs import Pairs

if TYPE_CHECKING:  # it imports Numba
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
    finite : bool
        False if a gradient of this process is known not to be finite, and that must not be ignored.
    """

    pairs: Pairs
    hyperparameters: Hyperparameters
    clipping: Clipping
    counter: NDArray[Any] | None = None
    aggregate: bool = True
    finite: bool = True


class Reduction(Protocol):
    """One step of all ranks, from their agreement to the sharing of results."""

    pairs: Pairs
    values: Numbers
    clipping: Clipping
    scale: float  # the gradients must still be multiplied by this
    rows: NDArray[np.int64] | None  # the group of each whole gradient; None for those of the pairs
    are_unmoved: bool  # whether no array of the pairs has moved since a step with these very pairs

    def whole(self, norms: Norms) -> Norms:
        """The norms of whole gradients, from those of the parts that this rank has."""

    def own(self, factors: NDArray[Any]) -> NDArray[Any]:
        """The factors of the parts that this rank has, from those of whole gradients."""

    def name(self, position: int) -> str:
        """How messages name the variable of a whole gradient."""

    def share(self) -> None:
        """Send all ranks what this one has updated."""

    def abandon(self) -> None:
        """Take part in what is left of the step, which has failed on this rank."""
