"""A list of variables that must be alike on all ranks, and the check of each rank's gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.blocks import record_length
from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.layout import Key, Layout, address_of, array_key, layout_of
from rmsjit.arrays.overlap import merged_spans, refuse_overlap
from rmsjit.distributed.packing import wire_dtype
from rmsjit.kernels import headers, loader
from rmsjit.state.entries import Entry
from rmsjit.steps.headers import HeaderReader
from rmsjit.steps.pairs import (
    Pairs,
    check_is_array,
    check_variable,
    dense_gradient,
    index_error,
    is_sparse,
    naming,
    no_gradient,
    sparse_gradient,
)
from rmsjit.steps.plans import identity_of
from rmsjit.variables import Variable, array_of, is_trainable


class Rows(NamedTuple):
    """A sparse gradient that has been checked."""

    values: NDArray[Any]
    indices: NDArray[np.int64]


class Checked(NamedTuple):
    """The gradients of a step, checked.

    Attributes
    ----------
    pairs : tuple of (gradient, variable)
    gradients : list
        Canonical arrays, `Rows` or None; empty if `addresses` are enough.
    addresses : int64 array, shape (pairs,), or None
        The addresses of the gradients, if all are dense and can be packed without a conversion.
    """

    pairs: Pairs
    gradients: list[Any]
    addresses: NDArray[np.int64] | None = None


class Incoming:
    """One list of variables, with gradients of known types (`kinds`).

    Attributes
    ----------
    arrays : list of ndarray
        The variables' arrays.
    layouts, keys : list
        The layout and memory key of each variable; gradients are sent in these layouts.
    dense, sparse, present : list of int
        The positions of dense gradients, of sparse gradients, and of both.
    distinct : dict of Key to int
        The first position of each memory key among those in `present`.
    precisions : dict of int to Precision
        By position; only variables with a gradient.
    missing : list of str
        Names of the variables without a gradient.
    constrained : list of Variable
        Variables with a gradient and a constraint.
    identity : tuple
        The ids of the variables, which are kept alive, and the types of their gradients.
    header : str
        The settings of the step, which must be the same on all ranks.
    lines : list of str
        So must these properties of each variable and its gradient.
    """

    def __init__(self, variables: Sequence[Any], kinds: Sequence[type], header: str) -> None:
        self.variables: tuple[Any, ...] = tuple(variables)
        self.identity: tuple[Any, ...] = identity_of(variables, kinds)
        self.names: list[str] = [naming(variable, k) for k, variable in enumerate(variables)]
        self.sparse: list[int] = [k for k, kind in enumerate(kinds) if is_sparse(kind)]
        self.present: list[int] = [k for k, kind in enumerate(kinds) if kind is not type(None)]
        self.dense: list[int] = [k for k in self.present if not is_sparse(kinds[k])]
        for k, variable in enumerate(variables):
            check_is_array(variable, k)
        self.precisions: dict[int, Precision] = {
            k: check_variable(variables[k], k) for k in self.present
        }
        self.arrays: list[NDArray[Any]] = [array_of(variable) for variable in variables]
        self.layouts: list[Layout] = [layout_of(array) for array in self.arrays]
        self.keys: list[Key] = [array_key(array) for array in self.arrays]
        self.distinct: dict[Key, int] = _firsts((self.keys[k], k) for k in self.present)
        refuse_overlap(
            (),
            [Entry(variables[k], precision) for k, precision in self.precisions.items()],
            lambda entry: self.names[self.keys.index(entry.key)],
        )
        if variables and not self.present:
            raise no_gradient(self.names)
        self.missing: list[str] = [
            self.names[k] for k, kind in enumerate(kinds) if kind is type(None)
        ]
        given = [variables[k] for k in self.present]
        self.constrained: list[Variable] = [
            v for v in given if isinstance(v, Variable) and v.constraint
        ]
        firsts = _firsts((key, k) for k, key in enumerate(self.keys))
        self.header: str = header
        self.lines: list[str] = [
            self._line(k, kind, firsts[self.keys[k]]) for k, kind in enumerate(kinds)
        ]
        self._prepare_reading(kinds)

    def _prepare_reading(self, kinds: Sequence[type]) -> None:
        """Prepare the compiled check of the gradients of a step."""
        # Whether elements can be packed as they are, in the order of the variables' rows.
        self._sent_in_place = not self.sparse and all(
            self.arrays[k].flags.c_contiguous and wire_dtype(p) == self.arrays[k].dtype
            for k, p in self.precisions.items()
        )
        own = [None if kind is type(None) else 0 for kind in kinds]
        self._reader = HeaderReader(self.variables, kinds, own, merged_spans(()))
        self._addresses = np.empty(len(kinds), np.int64)
        self._call = self._reader.call_for(self._addresses)
        self._call_address = address_of(self._call)

    def _line(self, k: int, kind: type, first: int) -> str:
        """The properties of a pair that must be the same on all ranks."""
        array, variable = self.arrays[k], self.variables[k]
        name = f"{variable.name} of " if isinstance(variable, Variable) else ""
        gradient = "a sparse" if is_sparse(kind) else "no" if kind is type(None) else "a dense"
        layout = self.layouts[k]
        flips = "".join("-" if flip.step else "+" for flip in layout.flips)
        order = "" if array.flags.c_contiguous else f" in memory order {layout.axes}{flips}"
        again = "" if first == k or array.size == 0 else f", the memory of variable {first}"
        fixed = "" if is_trainable(variable) else ", not trainable"
        return (
            f"{name}shape {array.shape}, {array.dtype}{order}{again}{fixed}, with {gradient} "
            f"gradient"
        )

    def is_small(self, k: int) -> bool:
        """Whether the variable at a position is too small for slots in 8 bits."""
        return not record_length(self.arrays[k].shape, self.layouts[k])

    @property
    def memory(self) -> tuple[Any, ...]:
        """A key that is equal for other views of the same memory, which can use the same plan."""
        constraints = [id(getattr(variable, "constraint", None)) for variable in self.variables]
        return (self.header, tuple(self.lines), tuple(self.keys), tuple(constraints))

    def by_precision(self, positions: Iterable[int]) -> list[list[int]]:
        """Positions grouped by dtype, in order of first occurrence."""
        groups: dict[Precision, list[int]] = {}
        for k in positions:
            groups.setdefault(self.precisions[k], []).append(k)
        return list(groups.values())

    def checked(self, pairs: Pairs) -> Checked | None:
        """Check every gradient, raising the errors of `rmsjit.steps.pairs`.

        Returns None for other variables or types of gradients, or if a variable has moved or
        become read-only.
        """
        others = self._reader.read(pairs, self._addresses, self._call_address)
        if others == headers.NOT_AS_EXPECTED:
            return None
        if others == 0 and self._sent_in_place:
            return Checked(pairs, [], self._addresses)
        gradients: list[Any] = [None] * len(pairs)
        for k in self.dense:
            gradient = dense_gradient(pairs[k][0], self.variables[k], k)
            gradients[k] = self.layouts[k].canonical(gradient)
        for k in self.sparse:
            gradients[k] = self._checked_rows(pairs[k][0], k)
        return Checked(pairs, gradients)

    def _checked_rows(self, gradient: Any, k: int) -> Rows:
        values, indices = sparse_gradient(gradient, self.variables[k], k)
        rows = len(self.arrays[k])
        outside = loader.first_outside().call(address_of(indices), len(indices), rows)
        if outside >= 0:
            raise index_error(gradient, outside, self.variables[k], k)
        return Rows(values, indices)


def _firsts(keys: Iterable[tuple[Key, int]]) -> dict[Key, int]:
    """The first position of each key."""
    firsts: dict[Key, int] = {}
    for key, position in keys:
        firsts.setdefault(key, position)
    return firsts
