"""A cache of the plans that recent steps used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from rmsjit.arrays.layout import address_of, array_key
from rmsjit.variables import Variable, array_of, is_trainable

MOST = 16  # plans of each sort; a training loop has one list of variables, a GAN a few


class _Keyed(Protocol):
    @property
    def identity(self) -> Any: ...
    @property
    def layouts(self) -> Any: ...
    @property
    def structure(self) -> Any: ...


P = TypeVar("P", bound=_Keyed)


class Plans(Generic[P]):
    """Plans, found by the objects they were made for or by what else they can be adapted to.

    Attributes
    ----------
    last : plan or None
        The one that was used last; tried before all others.
    """

    def __init__(self) -> None:
        self.last: P | None = None
        self._by_identity: OrderedDict[Any, P] = OrderedDict()
        self._by_layouts: OrderedDict[Any, P] = OrderedDict()
        self._by_structure: OrderedDict[Any, P] = OrderedDict()

    def of_objects(self, identity: Any) -> P | None:
        """The plan that was made for these very objects."""
        return _used(self._by_identity, identity)

    def of_memory(self, layouts: Any) -> P | None:
        """A plan that was made for other views of the same memory."""
        return _used(self._by_layouts, layouts)

    def of_structure(self, structure: Any) -> P | None:
        """The last plan for arrays of these shapes and dtypes, whatever their memory."""
        return None if structure is None else _used(self._by_structure, structure)

    @property
    def has_room(self) -> bool:
        """Whether a plan can be added without dropping another one's objects."""
        return len(self._by_identity) < MOST

    def add(self, plan: P) -> None:
        """Add a plan; drop the oldest if there are too many."""
        _put(self._by_identity, plan.identity, plan)
        structure = plan.structure
        if structure is None:
            _put(self._by_layouts, plan.layouts, plan)
        else:
            _put(self._by_structure, structure, plan)

    def clear(self) -> None:
        """Forget all plans."""
        self.last = None
        self._by_identity.clear()
        self._by_layouts.clear()
        self._by_structure.clear()


def _used(plans: OrderedDict[Any, P], key: Any) -> P | None:
    """The plan with this key, which is then dropped last, or None."""
    plan = plans.get(key)
    if plan is not None:
        with suppress(KeyError):  # another thread or a signal handler has forgotten it meanwhile
            plans.move_to_end(key)
    return plan


def _put(plans: OrderedDict[Any, P], key: Any, plan: P) -> None:
    with suppress(KeyError):
        plans[key] = plan
        plans.move_to_end(key)
        if len(plans) > MOST:
            plans.popitem(last=False)


def layouts_of(variables: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...]:
    """What must be equal for a plan to be rebound to other views of the same memory."""
    return (tuple(map(_view_of, variables)), tuple(kinds))


def _view_of(variable: Any) -> tuple[Any, ...]:
    array = array_of(variable)
    constrained = isinstance(variable, Variable) and variable.constraint is not None
    return (array_key(array), array.shape, array.strides, constrained, is_trainable(variable))


def identity_of(variables: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...]:
    """What must be equal for a plan to be used again as it is."""
    return (tuple(map(id, variables)), tuple(kinds))


def structure_of(variables: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...] | None:
    """What must be equal for a plan to be moved to other memory.

    None unless all variables and gradients are plain arrays, no variable occurs twice, and kernels
    can run on them in place.
    """
    for array, kind in zip(variables, kinds, strict=True):
        if kind is not np.ndarray or type(array) is not np.ndarray or not array.flags.carray:
            return None
    if len(variables) > 1 and len(set(map(address_of, variables))) < len(variables):
        return None
    return tuple([(array.dtype, array.shape) for array in variables])
