"""A list of variables as all ranks must have it, and the check of each rank's gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Precision
from rmsjit.arrays.layout import Key, Layout, address_of, layout_of, memory_key
from rmsjit.arrays.overlap import merged_spans, refuse_overlap
from rmsjit.distributed.agreement import Claim, claim
from rmsjit.distributed.packing import wire_dtype
from rmsjit.kernels import headers, loader
from rmsjit.state.slots import Entry
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
from rmsjit.variables import Variable, array_of


class Rows(NamedTuple):
    """A sparse gradient that has been checked."""

    values: NDArray[Any]
    indices: NDArray[np.int64]


class Checked(NamedTuple):
    """The gradients of a step, checked.

    Attributes
    ----------
    pairs : tuple of (gradient, variable)
        As they were given.
    gradients : list
        Canonical arrays, `Rows` or None; empty where `addresses` suffice.
    addresses : int64 array, shape (pairs,), or None
        Of the gradients, where all are dense and can be sent from where they are.
    """

    pairs: Pairs
    gradients: list[Any]
    addresses: NDArray[np.int64] | None = None


class Incoming:
    """The pairs of one list of variables.

    Parameters
    ----------
    variables : sequence
        As they were given.
    kinds : sequence of type
        The types of their gradients.
    header : str
        The settings that ranks must agree on.

    Attributes
    ----------
    arrays : list of ndarray
        The variables' memory.
    layouts, keys : list
        Of each variable; gradients are brought to these layouts on their way.
    dense, sparse, present : list of int
        The positions of the pairs with each kind of gradient, and with any.
    precisions : dict of int to Precision
        By position, where there is a gradient.
    missing : list of str
        Names of the variables without a gradient.
    constrained : list of Variable
        To which a constraint applies after each update.
    identity : tuple
        The ids of the variables, which are kept alive, and the types of their gradients.
    claim : Claim
    """

    def __init__(self, variables: Sequence[Any], kinds: Sequence[type], header: str) -> None:
        self.variables = tuple(variables)
        self.identity = identity_of(variables, kinds)
        self.names = [naming(variable, k) for k, variable in enumerate(variables)]
        self.sparse = [k for k, kind in enumerate(kinds) if is_sparse(kind)]
        self.present = [k for k, kind in enumerate(kinds) if kind is not type(None)]
        self.dense = [k for k in self.present if k not in self.sparse]
        for k, variable in enumerate(variables):
            check_is_array(variable, k)
        self.precisions: dict[int, Precision] = {
            k: check_variable(variables[k], k) for k in self.present
        }
        self.arrays: list[NDArray[Any]] = [array_of(variable) for variable in variables]
        self.layouts: list[Layout] = [layout_of(array) for array in self.arrays]
        self.keys: list[Key] = [
            memory_key(layout.canonical(array))
            for layout, array in zip(self.layouts, self.arrays, strict=True)
        ]
        refuse_overlap(
            (),
            [Entry(variables[k], precision) for k, precision in self.precisions.items()],
            lambda entry: self.names[self.keys.index(entry.key)],
        )
        if variables and not self.present:
            raise no_gradient(self.names)
        self.missing = [self.names[k] for k, kind in enumerate(kinds) if kind is type(None)]
        given = [variables[k] for k in self.present]
        self.constrained = [v for v in given if isinstance(v, Variable) and v.constraint]
        # Whether MPI can take elements from where they are, in the order of the variables' rows.
        self._sent_in_place = not self.sparse and all(
            self.arrays[k].flags.c_contiguous and wire_dtype(p) == self.arrays[k].dtype
            for k, p in self.precisions.items()
        )
        own = [0 if k in self.present else None for k in range(len(kinds))]
        self._reader = HeaderReader(variables, kinds, own, merged_spans(()))
        self._addresses = np.empty(len(kinds), np.int64)
        self._call = self._reader.call_for(self._addresses)
        lines = [self._line(k, kind) for k, kind in enumerate(kinds)]
        self.claim: Claim = claim(header, self.names, lines)

    def _line(self, k: int, kind: type) -> str:
        """The properties of a pair that all ranks must share."""
        array, variable = self.arrays[k], self.variables[k]
        name = f"{variable.name} of " if isinstance(variable, Variable) else ""
        gradient = "a sparse" if is_sparse(kind) else "no" if kind is type(None) else "a dense"
        layout = self.layouts[k]
        flips = "".join("-" if flip.step else "+" for flip in layout.flips)
        order = "" if array.flags.c_contiguous else f" in memory order {layout.axes}{flips}"
        repeated = self.keys.index(self.keys[k])
        again = "" if repeated == k else f", the memory of variable {repeated}"
        return f"{name}shape {array.shape}, {array.dtype}{order}{again}, with {gradient} gradient"

    @property
    def memory(self) -> tuple[Any, ...]:
        """Equal for lists of other views of the same memory, for which one plan serves."""
        constraints = [id(getattr(variable, "constraint", None)) for variable in self.variables]
        return (self.claim.fingerprint, tuple(self.keys), tuple(constraints))

    def name(self, position: int) -> str:
        """How messages name a variable."""
        return self.names[position]

    def checked(self, pairs: Pairs) -> Checked | None:
        """Check every gradient.

        Returns
        -------
        Checked or None
            None if variables or types of gradients are others, or if a variable has moved or
            become read-only.

        Raises
        ------
        TypeError, ValueError, RuntimeError, IndexError
            See `rmsjit.steps.pairs`.
        """
        others = self._reader.read(pairs, self._addresses, address_of(self._call))
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
