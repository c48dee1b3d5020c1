"""A tape's record: the steps of a computation in execution order, and the backward pass.

autograd differentiates the steps and adds up gradients.  This module only stores the steps and
selects those that the backward pass needs.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import precision_of
from rmsjit.autodiff import hooks
from rmsjit.autodiff.autograd_names import (
    Node,
    VJPNode,
    add_outgrads,
    anp,
    isbox,
    new_box,
    notrace_primitives,
    primitive_vjps,
    sparse_object_types,
    subvals,
)
from rmsjit.autodiff.gather import Rows, conjugate, rows_pulled_back, slices_of, take_rows
from rmsjit.autodiff.rules import check_shape, derivative, name_of, pulled_back
from rmsjit.runtime.forks import RenewedLock
from rmsjit.variables import Variable

# A box's trace says who is tracing it.  All tapes share this one.  autograd numbers its own traces
# from 0, and higher numbers are inner traces, so `autograd.grad` works inside a tape.
TRACE = -0.5


class TapeNode(Node):  # type: ignore[misc]  # autograd has no types
    """A value that tapes may know.

    The steps that led to it are stored in the records, so a box that outlives its tapes keeps
    nothing else alive.

    Attributes
    ----------
    shape : tuple of int
    dtype : np.dtype or None
        None if the value is not an array, such as the pair that ``linalg.eigh`` returns.
    array : np.ndarray or None
        The array that the node represents, if it is a source.
    """

    __slots__ = ("__weakref__", "_writes", "array", "dtype", "shape")

    array: NDArray[Any] | None
    dtype: Any
    shape: tuple[int, ...]
    _writes: dict[int, int]

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
        records = [r for r in hooks.records() if not r.steps.keys().isdisjoint(parents)]
        if records:
            step = Step(function, (positions, value, arguments, keywords), parents)
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

    @property
    def version(self) -> int:
        """How often this thread has reported a write to the array, through `hooks.wrote`."""
        return self._writes.get(threading.get_ident(), 0)

    def written(self) -> None:
        self._writes[threading.get_ident()] = self.version + 1


# Tapes don't record what autograd does not differentiate: comparisons, shapes, rounding.
notrace_primitives[TapeNode] = notrace_primitives[VJPNode]

_making_source = RenewedLock()


def source_of(array: NDArray[Any]) -> TapeNode:
    """The node that represents an array, shared by all live tapes."""
    with _making_source.lock:
        node: TapeNode | None = hooks.sources.get(id(array))
        if node is None:
            node = TapeNode.new_root(array)
            node.array = array
            hooks.sources[id(array)] = node
    return node


def is_differentiable(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype has gradients: real and complex numbers, including bfloat16."""
    return dtype.kind in "fc" or precision_of(dtype) is not None


class Step:
    """A recorded operation: its parents, and its derivative or the call to make it from."""

    __slots__ = ("_call", "_pull", "_versions", "function", "parents")

    def __init__(self, function: Any, call: tuple[Any, ...], parents: tuple[TapeNode, ...]) -> None:
        if function not in primitive_vjps:
            raise NotImplementedError(f"autograd has no derivative of {name_of(function)}")
        self.parents = parents
        self.function = function
        self._call: Any = call  # the arguments of autograd's rules
        self._pull: Any = None
        # `take_rows` copies the rows, so later writes to the table don't matter.
        self._versions = () if function is take_rows else tuple(p.version for p in parents)

    def settle(self) -> None:
        """Make the derivative now: it often needs less memory than the arguments and the value.

        After that, it can't be differentiated again.
        """
        if self.function is not take_rows:  # its derivative depends on `again`
            self._pull = derivative(self.function, self._call)
            self._call = None

    def pull(self, node: TapeNode, gradient: Any, again: bool) -> tuple[Any, ...]:
        """The gradients of the parents, given the gradient of `node`, the result of this step.

        If `again` is true, tapes record the computation.
        """
        if self._versions and self._versions != tuple(p.version for p in self.parents):
            raise RuntimeError(
                "a variable was assigned or updated after the tape had recorded a computation "
                "with it, and the derivative needs its old value: take all gradients before "
                "changing variables, or compute with a copy, v.numpy()"
            )
        return pulled_back(self.function, self._pull or self._derivative(node, again), gradient)

    def _derivative(self, node: TapeNode, again: bool) -> Any:
        if self.function is take_rows and not again:
            return rows_pulled_back(*self._call)
        positions, value, arguments, keywords = self._call
        if again:
            followed = zip(positions, self.parents, strict=True)
            boxes = [(i, new_box(arguments[i], TRACE, parent)) for i, parent in followed]
            arguments = subvals(arguments, boxes)
            value = new_box(value, TRACE, node)
        return derivative(self.function, (positions, value, arguments, keywords))


class Record:
    """What one tape has recorded.

    Attributes
    ----------
    persistent : bool
        Whether the tape may record the backward pass through its own steps.
    watch_accessed : bool
        Whether trainable variables are watched as soon as they are read.
    steps : dict
        Maps each node to the `Step` that computed it, a source to None.  Parents come first.
    variables : dict
        The watched variables by id, in order of first use.
    """

    __slots__ = ("persistent", "steps", "variables", "watch_accessed")

    def __init__(self, persistent: bool, watch_accessed: bool) -> None:
        self.persistent = persistent
        self.watch_accessed = watch_accessed
        self.steps: dict[TapeNode, Step | None] = {}
        self.variables: dict[int, Variable] = {}

    def watch(self, node: TapeNode) -> None:
        self.steps.setdefault(node, None)

    def watch_variable(self, variable: Variable) -> None:
        self.watch(source_of(variable.array))
        self.variables[id(variable)] = variable

    def notices(self, variable: Variable) -> bool:
        """Whether to record what is computed from `variable`, which is now being read."""
        if id(variable) in self.variables:
            return True
        if self.watch_accessed and variable.trainable and is_differentiable(variable.dtype):
            self.watch_variable(variable)
            return True
        return hooks.sources.get(id(variable.array)) in self.steps

    def stand_in(self, array: NDArray[Any]) -> Any:
        """The box to compute with instead of a watched array; they share memory."""
        return new_box(np.asarray(array), TRACE, source_of(array))

    def uses(self, source: TapeNode) -> bool:
        """Whether anything was computed from `source`."""
        return any(step is not None and source in step.parents for step in self.steps.values())

    def pull_back(
        self, seeds: list[tuple[TapeNode, Any]], sources: list[TapeNode | None], again: bool
    ) -> list[Any]:
        """The gradients of the sources: arrays, boxes or `IndexedSlices`, None if unconnected.

        `seeds` are the nodes to start from with their gradients.  If `again` is true, tapes record
        the backward pass, for higher derivatives.
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
                    if parent.dtype is not None:  # else it is a tuple
                        check_shape(part, parent.shape, step.function)
                    sums.add(parent, part)
        return [None if node is None else sums.total(node) for node in sources]

    def _nodes_from(self, sources: set[TapeNode]) -> dict[TapeNode, None]:
        """The sources and all nodes that depend on them, in the order they were recorded."""
        found: dict[TapeNode, None] = {}
        for node, step in self.steps.items():
            if node in sources or (step and any(parent in found for parent in step.parents)):
                found[node] = None
        return found


class _Sums:
    """The gradients of nodes while they are summed."""

    def __init__(self) -> None:
        self._dense: dict[TapeNode, Any] = {}  # pairs: the sum, whether we may write to it
        self._rows: defaultdict[TapeNode, list[Rows]] = defaultdict(list)

    def __contains__(self, node: TapeNode) -> bool:
        return node in self._dense or node in self._rows

    def add(self, node: TapeNode, gradient: Any) -> None:
        if isinstance(gradient, Rows):
            self._rows[node].append(gradient)
        else:
            self._dense[node] = add_outgrads(self._dense.get(node), _fitting(gradient, node))

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
        """The sum as the user gets it, None if there is none."""
        if node in self._dense:
            total = self.dense(node)
            total = total if isbox(total) else np.asarray(total)  # 0-d sums become numbers
        elif node in self._rows:
            parts = self._rows[node][::-1]  # the backward pass added them in reverse
            total = slices_of(parts, node.shape, node.dtype)
        else:
            return None
        return conjugate(total) if node.dtype.kind == "c" else total


def _fitting(gradient: Any, node: TapeNode) -> Any:
    """The gradient in the dtype of its node.

    Some of autograd's rules turn float32 into float64, which would slow down the rest of the pass.
    """
    if node.dtype is None or type(gradient) in sparse_object_types:
        return gradient
    if not isbox(gradient):
        gradient = np.asarray(gradient)
    if gradient.dtype.kind == "c" and node.dtype.kind != "c":
        gradient = anp.real(gradient)
    return gradient if gradient.dtype == node.dtype else gradient.astype(node.dtype)
