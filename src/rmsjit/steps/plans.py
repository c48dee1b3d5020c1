"""The plans of lists of variables that were stepped last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from rmsjit.arrays.layout import address_of, layout_of, memory_key
from rmsjit.variables import Variable, array_of

MOST = 16  # lists of variables; a training loop has one, a GAN a few


class _Keyed(Protocol):
    @property
    def identity(self) -> Any: ...
    @property
    def layouts(self) -> Any: ...
    @property
    def structure(self) -> Any: ...


P = TypeVar("P", bound=_Keyed)


class Plans(Generic[P]):
    """Plans by the objects they were made of, and by what they can serve for besides.

    Attributes
    ----------
    last : plan or None
        The one that was used last.
    """

    def __init__(self) -> None:
        self.last: P | None = None
        self._by_identity: OrderedDict[Any, P] = OrderedDict()
        self._by_layouts: OrderedDict[Any, P] = OrderedDict()
        self._by_structure: OrderedDict[Any, P] = OrderedDict()

    def of_objects(self, identity: Any) -> P | None:
        """The plan that was made of these very objects."""
        return self._by_identity.get(identity)

    def of_memory(self, layouts: Any) -> P | None:
        """A plan that was made of other views of the same memory."""
        return self._by_layouts.get(layouts)

    def of_structure(self, structure: Any) -> P | None:
        """The last plan for arrays of these shapes and dtypes, whatever their memory."""
        return None if structure is None else self._by_structure.get(structure)

    def keep(self, plan: P) -> None:
        """Make a plan the last one, which is tried before all others."""
        self.last = plan
        self.add(plan)

    def add(self, plan: P) -> None:
        """Keep a plan; the oldest goes where there are too many."""
        _put(self._by_identity, plan.identity, plan)
        if plan.structure is None:
            _put(self._by_layouts, plan.layouts, plan)
        else:
            _put(self._by_structure, plan.structure, plan)

    def clear(self) -> None:
        """Forget all plans."""
        self.last = None
        self._by_identity.clear()
        self._by_layouts.clear()
        self._by_structure.clear()


def _put(plans: OrderedDict[Any, P], key: Any, plan: P) -> None:
    plans[key] = plan
    plans.move_to_end(key)
    while len(plans) > MOST:
        plans.popitem(last=False)


def layouts_of(variables: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...]:
    """What must be the same for a plan to serve for other views of the same memory."""
    return (tuple(map(_view_of, variables)), tuple(kinds))


def _view_of(variable: Any) -> tuple[Any, ...]:
    array = array_of(variable)
    constrained = isinstance(variable, Variable) and variable.constraint is not None
    key = memory_key(layout_of(array).canonical(array))
    return (key, array.shape, array.strides, constrained)


def identity_of(variables: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...]:
    """What must be the same for a plan to serve again."""
    return (tuple(map(id, variables)), tuple(kinds))


def structure_of(variables: Sequence[Any], kinds: Sequence[type]) -> tuple[Any, ...] | None:
    """What must be the same for a plan to be moved to other memory.

    None unless all variables and gradients are plain arrays, no variable comes twice, and kernels
    can run on them in place.
    """
    for array, kind in zip(variables, kinds, strict=True):
        if kind is not np.ndarray or type(array) is not np.ndarray or not array.flags.carray:
            return None
    if len(set(map(address_of, variables))) < len(variables):
        return None
    return tuple((array.dtype, array.shape) for array in variables)
