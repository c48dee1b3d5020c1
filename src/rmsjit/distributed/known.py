"""What ranks compare before a step: its variables, and what each rank knows of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from rmsjit.arrays.layout import Key
from rmsjit.distributed.intent import Claim, claim
from rmsjit.distributed.shards import Shards
from rmsjit.distributed.stage import Fresh, StagePlan
from rmsjit.state.entries import key_of, stem_of
from rmsjit.state.slots import SlotStore
from rmsjit.variables import array_of

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine
    from rmsjit.steps.reduction import Request


class _Variable(NamedTuple):
    """A variable with its number in the order of first steps; it is kept alive."""

    number: int
    variable: Any


class Known:
    """The variables that all ranks have the same values of.

    Parameters
    ----------
    shards : Shards
        How they are divided among ranks.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._variables: dict[Key, _Variable] = {}
        self._epoch = 0  # counts changes

    def lacks(self, plan: StagePlan) -> Fresh:
        """The variables of a plan that are not known yet; empty ones need not be."""
        if plan.is_prepared:
            return {}
        incoming = plan.incoming
        return {
            key: k
            for key, k in incoming.distinct.items()
            if key not in self._variables and incoming.arrays[k].size
        }

    def add(self, plan: StagePlan, fresh: Fresh) -> None:
        """Number variables that all ranks have started from equal values."""
        for key, k in fresh.items():
            self._variables[key] = _Variable(len(self._variables), plan.incoming.variables[k])
        self._epoch += bool(fresh)

    def clear(self) -> None:
        """Make the next step start like the first one."""
        self._variables.clear()
        self._epoch += 1

    def array_at(self, key: Key) -> NDArray[Any] | None:
        """The array of a known variable."""
        known = self._variables.get(key)
        return None if known is None else array_of(known.variable)

    def numbers_of(self, variables: Iterable[Any]) -> list[str]:
        """What is known of variables, in words, for acts other than steps."""
        numbers = (self._number(key_of(variable)) for variable in variables)
        return ["new" if number is None else f"number {number}" for number in numbers]

    def _number(self, key: Key) -> int | None:
        known = self._variables.get(key)
        return None if known is None else known.number

    def claim(self, engine: Engine, request: Request, plan: StagePlan, is_underway: bool) -> Claim:
        """What must be the same on all ranks for a step."""
        store, incoming = engine.store, plan.incoming
        counted = None if request.counter is None else request.counter.dtype
        scale = request.clipping.loss_scale
        value = None if scale is None else scale.value
        now = (self._epoch, int(store.epoch[0]), counted, is_underway, value)
        made_at, made = plan.claimed
        if made_at != now:
            lines = [
                f"{line}, {self._standing(store, plan, k)}" for k, line in enumerate(incoming.lines)
            ]
            header = (
                f"{incoming.header}, counter={counted}, groups={len(store.grouping.groups)}, "
                f"sums={is_underway}, loss_scale={scale}, now {value}"
            )
            made = claim(header, incoming.names, lines)
            plan.claimed = (now, made)
        return made

    def _standing(self, store: SlotStore, plan: StagePlan, k: int) -> str:
        """What ranks compare of a variable, as text."""
        more = _group_of(store, plan, k)
        if k in plan.terms.sent:
            more += f", sent as number {plan.terms.sent.index(k)}"
        number = self._number(plan.incoming.keys[k])
        if number is None:
            return f"new to the optimizer{more}"
        state = "" if plan.has_state(store, self._shards, k) else " without state"
        return f"number {number} of the optimizer{state}{more}"


def _group_of(store: SlotStore, plan: StagePlan, k: int) -> str:
    """The group of a variable, in words; empty if there are no groups."""
    grouping, variable = store.grouping, plan.incoming.variables[k]
    if not grouping.groups:
        return ""
    entry, stem = store.whole(variable), stem_of(variable)
    row = grouping.row_of(entry, stem)
    if row and entry is not None and k in plan.incoming.present:
        grouping.met(row, entry)  # a rank may have no part of it
    return grouping.described(entry, stem)
