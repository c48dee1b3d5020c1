"""The part that ranks have in a step, and a plan of it for one list of variables."""

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
    """Where a plan serves besides the same variables."""

    form: Form
    aggregate: bool


class StagePlan(ABC):
    """The stages of one list of variables.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    settings : Settings
    incoming : Incoming
    terms : Terms

    Attributes
    ----------
    identity, layouts : tuple
        For `rmsjit.steps.plans.Plans`.
    scale : float
        The factor of gradients that is left to the update.
    begun : bool
        Whether ranks are known to have all of the variables in common.
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

    @property
    def identity(self) -> tuple[Any, ...]:
        return (self.incoming.identity, self.terms)

    @property
    def layouts(self) -> tuple[Any, ...]:
        return (self.incoming.memory, self.terms)

    def rebound(self, incoming: Incoming) -> Self:
        """This plan for other views of the same memory."""
        plan = copy.copy(self)
        plan.incoming = incoming
        return plan

    def check_numbers(self, agreed: Agreed) -> None:
        """Raise on every rank alike the errors of those that have something to update."""
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
        """Share the variables out, once all ranks have agreed that they have the same.

        Raises
        ------
        ValueError
            If a table can't be shared out.
        """

    @abstractmethod
    def prepare(self, engine: Engine, hyperparameters: Hyperparameters) -> None:
        """Create the slots before the first step."""

    @abstractmethod
    def share_slots(self, engine: Engine) -> None:
        """Give every rank its slots from rank 0."""

    @abstractmethod
    def reduced(self, checked: Checked, agreed: Agreed) -> Stage:
        """Reduce gradients, which have been checked."""

    def _stage(self, pairs: Pairs, agreed: Agreed, **calls: Any) -> Stage:
        return Stage(
            pairs,
            agreed.numbers,
            agreed.clipping,
            self.scale,
            self.incoming.name,
            **calls,
        )
