"""A list of variables as all ranks must have it, and the check of each rank's gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.layout import Key, Layout, layout_of, memory_key
from rmsjit.distributed.agreement import Claim, claim
from rmsjit.distributed.packing import wire_dtype
from rmsjit.kernels import headers
from rmsjit.state.slots import Entry, find_overlap
from rmsjit.steps.headers import HeaderReader
from rmsjit.steps.pairs import (
    check_variable,
    dense_gradient,
    index_error,
    is_sparse,
    naming,
    no_gradient,
    sparse_gradient,
)
from rmsjit.variables import Variable, array_of


class Rows(NamedTuple):
    """A sparse gradient that has been checked."""

    values: NDArray[Any]
    indices: NDArray[np.int64]


class Checked(NamedTuple):
    """The gradients of a step, checked.

    Attributes
    ----------
    gradients : list
        Canonical arrays, `Rows` or None; empty where `addresses` tell all.
    addresses : int64 array, shape (pairs, 1), or None
        Of the gradients where all are dense and lie as their C-contiguous variables do.
    """

    gradients: list[Any]
    addresses: NDArray[np.int64] | None = None


class Incoming:
    """The pairs of one list of variables.

    Parameters
    ----------
    variables : tuple
        As they were given.
    kinds : tuple of type
        The types of their gradients.
    header : str
        What else ranks must agree on.

    Attributes
    ----------
    arrays : list of ndarray
        The variables' memory.
    precisions, layouts, keys : list
        Of each variable; what its gradients are brought to on their way.
    dense, sparse : list of int
        The positions of the pairs with each kind of gradient.
    claim : Claim
    """

    def __init__(self, variables: tuple[Any, ...], kinds: tuple[type, ...], header: str) -> None:
        self.variables = variables
        self.names = [naming(variable, k) for k, variable in enumerate(variables)]
        self.precisions: list[Precision] = [
            check_variable(variable, k) for k, variable in enumerate(variables)
        ]
        self.arrays: list[NDArray[Any]] = [array_of(variable) for variable in variables]
        self.layouts: list[Layout] = [layout_of(array) for array in self.arrays]
        self.keys: list[Key] = [
            memory_key(layout.canonical(array))
            for layout, array in zip(self.layouts, self.arrays, strict=True)
        ]
        self.sparse = [k for k, kind in enumerate(kinds) if is_sparse(kind)]
        absent = [k for k, kind in enumerate(kinds) if kind is type(None)]
        self.dense = [k for k in range(len(kinds)) if k not in {*self.sparse, *absent}]
        self.dropped = [self.names[k] for k in absent]
        self.present = sorted([*self.dense, *self.sparse])
        self._refuse_overlap()
        if variables and not self.present:
            raise no_gradient(self.names)
        own = [None if k in absent else 0 for k in range(len(kinds))]
        self._reader = HeaderReader(variables, kinds, own, np.empty((2, 0), np.int64))
        # Whether MPI takes elements as they are, in the order of the variables' rows.
        self._as_they_lie = not self.sparse and all(
            self.arrays[k].flags.c_contiguous and wire_dtype(self.precisions[k]) == dtype
            for k, dtype in enumerate(array.dtype for array in self.arrays)
        )
        lines = [self._line(k, kind) for k, kind in enumerate(kinds)]
        self.claim: Claim = claim(header, self.names, lines)

    def _line(self, k: int, kind: type) -> str:
        """What ranks must have in common of a pair."""
        array, variable = self.arrays[k], self.variables[k]
        name = f"{variable.name} of " if isinstance(variable, Variable) else ""
        gradient = "a sparse" if is_sparse(kind) else "no" if kind is type(None) else "a dense"
        layout = self.layouts[k]
        flips = "".join("-" if flip.step else "+" for flip in layout.flips)
        order = "" if array.flags.c_contiguous else f" in memory order {layout.axes}{flips}"
        repeated = self.keys.index(self.keys[k])
        again = "" if repeated == k else f", the memory of variable {repeated}"
        return f"{name}shape {array.shape}, {array.dtype}{order}{again}, with {gradient} gradient"

    def _refuse_overlap(self) -> None:
        entries = [Entry(v, p) for v, p in zip(self.variables, self.precisions, strict=True)]
        pair = find_overlap([], list({entry.key: entry for entry in entries}.values()))
        if pair is not None:
            names = " and ".join(self.names[self.keys.index(entry.key)] for entry in pair)
            raise ValueError(f"variables must not overlap in part, but {names} share memory")

    def checked(self, gradients: tuple[Any, ...]) -> Checked:
        """Check every gradient.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError
            See `rmsjit.steps.pairs`.
        """
        addresses = np.empty((len(gradients), 1), np.int64)
        others = self._reader.read(gradients, self.variables, addresses)
        if others == headers.NOT_AS_EXPECTED:
            for k, variable in enumerate(self.variables):
                check_variable(variable, k)  # it may have become read-only
        if others == 0 and self._as_they_lie:
            return Checked([], addresses)
        checked: list[Any] = [None] * len(gradients)
        for k in self.dense:
            gradient = dense_gradient(gradients[k], self.variables[k], k)
            checked[k] = self.layouts[k].canonical(gradient)
        for k in self.sparse:
            checked[k] = self._checked_rows(gradients[k], k)
        return Checked(checked)

    def _checked_rows(self, gradient: Any, k: int) -> Rows:
        from rmsjit.kernels import loader

        values, indices = sparse_gradient(gradient, self.variables[k], k)
        outside = loader.first_outside()(indices, len(self.arrays[k]))
        if outside >= 0:
            raise index_error(gradient, outside, self.variables[k], k)
        return Rows(values, indices)

    def same_memory(self, other: Incoming) -> bool:
        """Whether a plan for these pairs serves others: plain arrays, which carry no constraint."""
        return (
            self.claim.fingerprint == other.claim.fingerprint
            and self.keys == other.keys
            and not any(isinstance(v, Variable) for v in (*self.variables, *other.variables))
        )
