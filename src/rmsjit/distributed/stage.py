"""The distributed part of a step, and the plan for it for one list of variables."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from numpy.typing import NDArray

from rmsjit.arrays.dtypes import kinds_of
from rmsjit.distributed.agreement import Agreed
from rmsjit.distributed.incoming import Checked, Incoming
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.shards import Shards
from rmsjit.rule.clipping import Clipping, refuse_complex
from rmsjit.rule.form import Form
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.rule.numbers import StepNumbers, packed
from rmsjit.steps.norms import Norms
from rmsjit.steps.pairs import Pairs

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine


@dataclass
class Stage:
    """One step of all ranks: a `rmsjit.steps.reduction.Reduction`."""

    pairs: Pairs
    values: StepNumbers
    clipping: Clipping
    scale: float
    name: Callable[[int], str]
    whole: Callable[[Norms], Norms] = lambda norms: norms
    own: Callable[[NDArray[Any]], NDArray[Any]] = lambda factors: factors
    share: Callable[[], None] = lambda: None


class Terms(NamedTuple):
    """What a plan depends on besides the variables."""

    form: Form
    aggregate: bool


class StagePlan(ABC):
    """Makes the stages of one list of variables.

    Attributes
    ----------
    identity, layouts : tuple
        Keys for `rmsjit.steps.plans.Plans`.
    scale : float
        The factor by which the update must multiply the gradients.
    begun : bool
        Whether all variables are known to have been broadcast.
    """

    def __init__(self, comm: Any, settings: Settings, incoming: Incoming, terms: Terms) -> None:
        self._comm = comm
        self._settings = settings
        self._scales = settings.scales(comm.size, incoming.precisions.values())
        self.scale = self._scales.of_step if terms.aggregate else 1.0
        self.incoming = incoming
        self.terms = terms
        self.begun = False
        self._accepted: StepNumbers | None = None

    structure = None  # messages are laid out for the memory of the variables

    @property
    def identity(self) -> tuple[Any, ...]:
        return (self.incoming.identity, self.terms)

    @property
    def layouts(self) -> tuple[Any, ...]:
        return (self.incoming.memory, self.terms)

    def rebound(self, incoming: Incoming) -> Self:
        """A copy of this plan for other views of the same memory."""
        plan = copy.copy(self)
        plan.incoming = incoming
        return plan

    def check_numbers(self, agreed: Agreed) -> None:
        """Raise what the engine would raise for these numbers, on all ranks."""
        if agreed.numbers is self._accepted:
            return
        form, limit = self.terms.form, agreed.clipping.limit
        dtypes = tuple(slot.dtype for slot in form.slots)
        for precision in set(self.incoming.precisions.values()):
            packed(agreed.numbers, limit, kinds_of(precision, dtypes).computing, form)
            if precision.components == 2:
                refuse_complex(precision.name, agreed.clipping, form)
        self._accepted = agreed.numbers

    @abstractmethod
    def lay_out(self, shards: Shards, exact: bool) -> None:
        """Divide the variables among ranks, once all agree that they have the same.

        Raises
        ------
        ValueError
            If a table can't be divided.
        """

    @abstractmethod
    def prepare(self, engine: Engine, hyperparameters: Hyperparameters) -> None:
        """Create the slots before the first step."""

    @abstractmethod
    def share_slots(self, engine: Engine) -> None:
        """Send every rank its slots from rank 0."""

    @abstractmethod
    def reduced(self, checked: Checked, agreed: Agreed) -> Stage:
        """Reduce the gradients."""

    def _stage(self, pairs: Pairs, agreed: Agreed, **calls: Any) -> Stage:
        name = self.incoming.names.__getitem__
        return Stage(pairs, agreed.numbers, agreed.clipping, self.scale, name, **calls)
