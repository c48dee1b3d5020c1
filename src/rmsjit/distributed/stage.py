"""The distributed part of a step, and the plan for it for one list of variables."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import kinds_of
from rmsjit.arrays.layout import Key
from rmsjit.distributed.comm import IN_FLIGHT
from rmsjit.distributed.incoming import Checked, Incoming, Rows
from rmsjit.distributed.intent import NO_CLAIM, Claim
from rmsjit.distributed.packing import Flats
from rmsjit.distributed.settings import Settings
from rmsjit.distributed.shards import Shards
from rmsjit.rule.clipping import Clipping, refuse_complex
from rmsjit.rule.form import Form
from rmsjit.rule.hyperparameters import Hyperparameters, Numbers
from rmsjit.rule.numbers import packed
from rmsjit.state.slots import SlotStore
from rmsjit.steps.norms import Norms
from rmsjit.steps.pairs import Pairs

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine


@dataclass
class Stage:
    """One step of all ranks: a `rmsjit.steps.reduction.Reduction`.

    Attributes
    ----------
    combine : callable or None
        Makes norms of whole gradients out of those that each rank has, given whether this rank has
        failed; None if every rank has whole ones, or the step needs none.
    spread : callable or None
        Gives all ranks what this one has updated; None if every rank updates everything.
    completed : callable
        Called after the last exchange.
    rows : int64 array or None
        The group of each whole gradient, if the parts of this rank do not tell.
    are_unmoved : bool
        Whether no array of the pairs has moved since a step with these very pairs.
    """

    pairs: Pairs
    values: Numbers
    clipping: Clipping
    scale: float
    name: Callable[[int], str]
    own: Callable[[NDArray[Any]], NDArray[Any]]
    combine: Callable[[Norms | None], Norms | None] | None
    spread: Callable[[], None] | None
    completed: Callable[[], None]
    rows: NDArray[np.int64] | None = None
    are_unmoved: bool = False

    def whole(self, norms: Norms) -> Norms:
        """Norms of whole gradients.

        Raises
        ------
        RuntimeError
            If another rank has failed after the ranks agreed; nothing has been written yet.
        """
        combine, self.combine = self.combine, None
        whole = norms if combine is None else combine(norms)
        if whole is None:
            self.spread = None
            raise RuntimeError("another rank has failed in the step; no rank has changed anything")
        return whole

    def share(self) -> None:
        """Give all ranks what this one has updated."""
        spread, self.spread = self.spread, None
        if spread is not None:
            spread()
        self.completed()

    def abandon(self) -> None:
        """Take part in the exchanges that are left, so that the others need not wait for them.

        Where norms are still to be exchanged, the others learn of it.  Otherwise they take the
        step, and this rank differs from them, which the header of the next act says.
        """
        combine, self.combine = self.combine, None
        spread, self.spread = self.spread, None
        if combine is not None:
            combine(None)
        elif spread is not None:
            spread()


class Terms(NamedTuple):
    """What a plan depends on besides the variables."""

    form: Form
    aggregate: bool
    sent: tuple[int, ...] = ()  # the positions of gradients sent before the step, in their order


class Step(NamedTuple):
    """What the plan of a step is told about it.

    Attributes
    ----------
    numbers : tuple of StepNumbers
    clipping : Clipping
    needs_norms : bool
        Whether the engine asks for norms, on all ranks.
    completed : callable
        Called after the last exchange.
    rows : int64 array or None
        The group of each variable, if the engine needs it.
    """

    numbers: Numbers
    clipping: Clipping
    needs_norms: bool
    completed: Callable[[], None]
    rows: NDArray[np.int64] | None = None


class Outgoing(NamedTuple):
    """What a rank sends: dense gradients, and sparse ones by position.

    `is_underway` says whether gradients were sent before the step.
    """

    flats: Flats
    rows: dict[int, Rows]
    is_underway: bool = False


class Messages(Protocol):
    """The messages of gradients that are sent before their step."""

    def fill(self, position: int, gradient: NDArray[Any]) -> list[Callable[[], Any]]:
        """Take a flat gradient, in the order of the messages; what starts those it completes."""


def _unchanged(factors: NDArray[Any]) -> NDArray[Any]:
    return factors


Fresh = dict[Key, int]  # the positions of variables that are stepped for the first time


class StagePlan(ABC):
    """Makes the stages of one list of variables.

    Attributes
    ----------
    identity, layouts : tuple
        Keys for `rmsjit.steps.plans.Plans`.
    scale : float
        The factor by which the update must multiply the gradients.
    is_prepared : bool
        Whether its memory has been allocated, on all ranks.
    messages : dict of int to Messages
        Where gradients are put that are sent before the step, by position, in their order.
    most_at_a_time : int
        How many messages of them may travel at a time.
    """

    def __init__(self, comm: Any, settings: Settings, incoming: Incoming, terms: Terms) -> None:
        self._comm = comm
        self._settings = settings
        self._scales = settings.scales(comm.size, incoming.precisions.values())
        self.scale: float = self._scales.of_step if terms.aggregate else 1.0
        self.incoming = incoming
        self.terms = terms
        self.is_prepared = False
        self.messages: Mapping[int, Messages] = {}
        self.most_at_a_time = IN_FLIGHT
        self.claimed: tuple[Any, Claim] = (None, NO_CLAIM)  # the last claim and when it was made
        self._complete_at = -1  # the epoch of the store at which no state was missing
        self._accepted: Numbers | None = None

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
        plan.claimed = (None, NO_CLAIM)
        return plan

    def check_numbers(self, numbers: Numbers, clipping: Clipping) -> None:
        """Raise what the engine would raise for these numbers, on all ranks."""
        if numbers is self._accepted:
            return
        form = self.terms.form
        dtypes = tuple(slot.dtype for slot in form.slots)
        for precision in set(self.incoming.precisions.values()):
            for one in numbers:
                packed(one, clipping.limit, kinds_of(precision, dtypes).computing, form)
            if precision.components == 2:
                refuse_complex(precision.name, clipping, form)
        self._accepted = numbers

    @abstractmethod
    def lay_out(self, shards: Shards, exact: bool) -> None:
        """Allocate memory for messages, and divide the variables among ranks.

        Raises
        ------
        ValueError
            If a table can't be divided.
        """

    @abstractmethod
    def has_state(self, store: SlotStore, shards: Shards, k: int) -> bool:
        """Whether this rank has what it should have of the state of the variable at a position."""

    def notice_lost_state(self, store: SlotStore, shards: Shards) -> None:
        """Have the plan prepared again if a variable was forgotten since.

        Its new state needs a number on which ranks must agree; see `rmsjit.state.numbering`.
        """
        epoch = int(store.epoch[0])
        if self.is_prepared and self._complete_at != epoch:
            present = self.incoming.present
            self.is_prepared = all(self.has_state(store, shards, k) for k in present)
            self._complete_at = epoch

    @abstractmethod
    def prepare(self, engine: Engine, hyperparameters: Hyperparameters, fresh: Fresh) -> None:
        """Create the slots of variables that are stepped for the first time."""

    @abstractmethod
    def share_slots(self, engine: Engine, fresh: Fresh) -> None:
        """Send every rank its slots from rank 0."""

    @abstractmethod
    def flat(self, position: int, gradient: NDArray[Any]) -> NDArray[Any]:
        """The elements of a dense gradient in the order in which they are sent."""

    @abstractmethod
    def outgoing(self, checked: Checked, is_underway: bool) -> Any:
        """What this rank sends of its gradients, converted; this may fail on one rank alone.

        `is_underway` says whether the gradients that were sent before the step travel already.
        Of the others, those that are summed in shared memory are written there.
        """

    @abstractmethod
    def reduced(self, checked: Checked, outgoing: Any, step: Step) -> Stage:
        """Reduce the gradients."""

    def _stage(
        self,
        pairs: Pairs,
        step: Step,
        name: Callable[[int], str] | None = None,
        own: Callable[[NDArray[Any]], NDArray[Any]] = _unchanged,
        combine: Callable[[Norms | None], Norms | None] | None = None,
        spread: Callable[[], None] | None = None,
        are_unmoved: bool = False,
    ) -> Stage:
        return Stage(
            pairs,
            step.numbers,
            step.clipping,
            self.scale,
            self._name if name is None else name,
            own,
            combine if step.needs_norms else None,
            spread,
            step.completed,
            step.rows,
            are_unmoved,
        )

    def _name(self, position: int) -> str:
        """How messages name a variable with a gradient."""
        return self.incoming.names[self.incoming.present[position]]
