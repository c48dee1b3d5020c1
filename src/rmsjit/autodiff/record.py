"""A tape's record: the steps of a computation in the order they were done, and the way back.

The derivatives of the steps and the sums of gradients are autograd's.  This module only keeps the
steps and says which of them to go back through.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.core import VJPNode, add_outgrads, primitive_vjps, sparse_object_types
from autograd.tracer import Node, isbox, new_box, notrace_primitives
from autograd.util import subvals
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import precision_of
from rmsjit.autodiff import hooks
from rmsjit.autodiff.gather import Rows, conjugate, rows_pulled_back, slices_of, take_rows
from rmsjit.runtime.forks import RenewedLock
from rmsjit.variables import Variable

# A trace says who follows a box.  All tapes share one; autograd numbers its own from 0 up, and a
# higher number is an inner trace, so that `autograd.grad` works within a tape.
TRACE = -0.5


class TapeNode(Node):  # type: ignore[misc]  # autograd has no types
    """A value that tapes may know of; what led to it is in their records.

    Boxes that outlive their tapes therefore keep nothing else alive.

    Attributes
    ----------
    shape : tuple of int
    dtype : np.dtype or None
        None where the value is no array, such as the pair that ``linalg.eigh`` gives.
    array : np.ndarray or None
        The memory that the node represents, where it is a source.
    version : int
        How often that memory was written to since, as far as `hooks.wrote` was told.
    """

    __slots__ = ("__weakref__", "_writes", "array", "dtype", "shape")

    array: NDArray[Any] | None
    dtype: Any
    shape: tuple[int, ...]
    _writes: dict[int, int]

    @property
    def version(self) -> int:
        return self._writes.get(threading.get_ident(), 0)

    def written(self) -> None:
        thread = threading.get_ident()
        self._writes[thread] = self._writes.get(thread, 0) + 1

    def __init__(
        self,
        value: Any,
        function: Any,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        positions: tuple[int, ...],
        parents: tuple[TapeNode, ...],
    ) -> None:
        self.initialize_root(value)
        if self.dtype is not None and not is_differentiable(self.dtype):
            return  # autograd would differentiate `astype(int)` as if it did not round
        records = [record for record in hooks.records() if record.knows_any(parents)]
        if records:
            step = Step(value, function, arguments, keywords, positions, parents)
            if len(records) == 1 and not records[0].persistent:
                step.settle()
            for record in records:
                record.steps[self] = step

    def initialize_root(self, value: Any) -> None:
        dtype = getattr(value, "dtype", None)
        self.dtype = np.dtype(type(value)) if isinstance(value, (float, complex)) else dtype
        self.shape = np.shape(value) if self.dtype is not None else ()
        self.array = None
        self._writes = {}


# What autograd does not differentiate (comparisons, shapes, rounding) no tape records either.
notrace_primitives[TapeNode] = notrace_primitives[VJPNode]

_making_source = RenewedLock()


def source_of(array: NDArray[Any]) -> TapeNode:
    """The node that represents an array; all tapes that live at a time share it."""
    with _making_source.lock:
        node: TapeNode | None = hooks.sources.get(id(array))
        if node is None:
            node = TapeNode.new_root(array)
            node.array = array
            hooks.sources[id(array)] = node
    return node


def is_differentiable(dtype: np.dtype[Any]) -> bool:
    """Whether gradients make sense: for real and complex numbers, bfloat16 included."""
    return dtype.kind in "fc" or precision_of(dtype) is not None


class Step:
    """One operation that was recorded: its parents, and its derivative or the means to make it."""

    __slots__ = ("_call", "_pull", "_versions", "parents")

    def __init__(
        self,
        value: Any,
        function: Any,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        positions: tuple[int, ...],
        parents: tuple[TapeNode, ...],
    ) -> None:
        if function not in primitive_vjps:
            name = getattr(function, "__name__", function)
            raise NotImplementedError(f"autograd has no derivative of {name}")
        self.parents = parents
        self._call: Any = (function, positions, value, arguments, keywords)
        self._pull: Any = None
        # Rows are copied when they are taken: what the table becomes later does not matter.
        self._versions = () if function is take_rows else tuple(p.version for p in parents)

    def settle(self) -> None:
        """Make the derivative now, for it often needs less memory than the arguments and value.

        It can't be differentiated again then.
        """
        if self._call[0] is not take_rows:  # which needs no more than the ids
            self._pull = self._derivative(*self._call)
            self._call = None

    def pull(self, node: TapeNode, gradient: Any, again: bool) -> Any:
        """The gradients of the parents, from that of `node`, which is this step's result.

        Where `again` is true, a tape records how they come about.
        """
        if self._versions and self._versions != tuple(p.version for p in self.parents):
            raise RuntimeError(
                "a variable was assigned or updated after the tape had recorded a computation "
                "with it, and its old value, which the derivative needs, is gone: take all "
                "gradients before changing variables, or compute with a copy, v.numpy()"
            )
        if self._pull is not None:
            return self._pull(gradient)
        if not again:
            return self._derivative(*self._call)(gradient)
        function, positions, value, arguments, keywords = self._call
        followed = zip(positions, self.parents, strict=True)
        boxes = [(i, new_box(arguments[i], TRACE, parent)) for i, parent in followed]
        box = new_box(value, TRACE, node)
        derivative = primitive_vjps[function]
        return derivative(positions, box, subvals(arguments, boxes), keywords)(gradient)

    @staticmethod
    def _derivative(function: Any, *call: Any) -> Any:
        rule = rows_pulled_back if function is take_rows else primitive_vjps[function]
        return rule(*call)


class Record:
    """What one tape has seen.

    Attributes
    ----------
    persistent : bool
        Whether the tape may record the way back through its own steps.
    watch_accessed : bool
        Whether trainable variables are watched as soon as they are read.
    steps : dict
        The `Step` that led to each node, None for a source; a step comes after its parents.
    variables : dict
        The variables that are watched, by their identity, in order of first use.
    """

    __slots__ = ("persistent", "steps", "variables", "watch_accessed")

    def __init__(self, persistent: bool, watch_accessed: bool) -> None:
        self.persistent = persistent
        self.watch_accessed = watch_accessed
        self.steps: dict[TapeNode, Step | None] = {}
        self.variables: dict[int, Variable] = {}

    def knows_any(self, nodes: Iterable[TapeNode]) -> bool:
        return not self.steps.keys().isdisjoint(nodes)

    def watch(self, node: TapeNode) -> None:
        self.steps.setdefault(node, None)

    def watch_variable(self, variable: Variable) -> None:
        self.watch(source_of(variable.array))
        self.variables[id(variable)] = variable

    def notices(self, variable: Variable) -> bool:
        """Whether what is computed from `variable`, which is being read, gets recorded."""
        if id(variable) in self.variables:
            return True
        if self.watch_accessed and variable.trainable and is_differentiable(variable.dtype):
            self.watch_variable(variable)
            return True
        return hooks.sources.get(id(variable.array)) in self.steps

    def stand_in(self, array: NDArray[Any]) -> Any:
        """The box to compute with in place of a watched array, whose memory it shares."""
        return new_box(np.asarray(array), TRACE, source_of(array))

    def uses(self, source: TapeNode) -> bool:
        """Whether anything was computed from `source`."""
        return any(step is not None and source in step.parents for step in self.steps.values())

    def pull_back(
        self, seeds: list[tuple[TapeNode, Any]], sources: list[TapeNode | None], again: bool
    ) -> list[Any]:
        """The gradients of the sources: arrays, boxes or `IndexedSlices`, None where unconnected.

        Parameters
        ----------
        seeds : list of (node, gradient) pairs
            Where to start from.
        sources : list of TapeNode or None
        again : bool
            Whether tapes record the way back, for derivatives of the gradients.
        """
        # autograd's gradients of complex numbers are the conjugates of TensorFlow's.
        asked = {node for node in sources if node is not None}
        useful = self._nodes_from(asked)
        sums = _Sums()
        for node, gradient in seeds:
            if node in useful:
                sums.add(node, anp.conj(gradient) if node.dtype.kind == "c" else gradient)
        for node in reversed(list(useful)):
            step = self.steps[node]
            if step is None or node not in sums:
                continue
            gradient = sums.dense(node)
            if node not in asked:
                sums.drop(node)
            parts = step.pull(node, gradient, again)
            for parent, part in zip(step.parents, parts, strict=True):
                if parent in useful:
                    sums.add(parent, part)
        return [None if node is None else sums.total(node) for node in sources]

    def _nodes_from(self, sources: set[TapeNode]) -> dict[TapeNode, None]:
        """The sources and what depends on them, in the order in which it was recorded."""
        found: dict[TapeNode, None] = {}
        for node, step in self.steps.items():
            if node in sources or (step and any(parent in found for parent in step.parents)):
                found[node] = None
        return found


class _Sums:
    """The gradients of nodes while they add up."""

    def __init__(self) -> None:
        self._dense: dict[TapeNode, Any] = {}  # pairs of a sum and whether we may write to it
        self._rows: defaultdict[TapeNode, list[Rows]] = defaultdict(list)

    def __contains__(self, node: TapeNode) -> bool:
        return node in self._dense or node in self._rows

    def add(self, node: TapeNode, gradient: Any) -> None:
        if isinstance(gradient, Rows):
            self._rows[node].append(gradient)
        else:
            fitting = _fitting(gradient, node)
            self._dense[node] = add_outgrads(self._dense.get(node), fitting)

    def drop(self, node: TapeNode) -> None:
        self._dense.pop(node, None)
        self._rows.pop(node, None)

    def dense(self, node: TapeNode) -> Any:
        """The sum as one array (or box)."""
        if node not in self._rows:
            return self._dense[node][0]
        total = np.zeros(node.shape, node.dtype)
        if node in self._dense:
            total += self._dense[node][0]
        for part in reversed(self._rows[node]):
            np.add.at(total, part.ids, part.values)
        return total

    def total(self, node: TapeNode) -> Any:
        """The sum as the user gets it, None where there is nothing."""
        if node in self._dense:
            total = self.dense(node)
            total = total if isbox(total) else np.asarray(total)  # 0-d sums become numbers
        elif node in self._rows:
            parts = self._rows[node][::-1]  # they came in the order of the way back
            total = slices_of(parts, node.shape, node.dtype)
        else:
            return None
        return conjugate(total) if node.dtype.kind == "c" else total


def _fitting(gradient: Any, node: TapeNode) -> Any:
    """The gradient in the dtype of what it belongs to.

    Some of autograd's rules turn float32 into float64, which would slow down all that follows.
    """
    if node.dtype is None or type(gradient) in sparse_object_types:
        return gradient
    if not isbox(gradient):
        gradient = np.asarray(gradient)
    if gradient.dtype.kind == "c" and node.dtype.kind != "c":
        gradient = anp.real(gradient)
    return gradient if gradient.dtype == node.dtype else gradient.astype(node.dtype)
