"""`GradientTape`: which variables to watch, and which gradients to return.

The ``autograd`` package computes the derivatives.  While a tape records, ordinary NumPy code treats
a `Variable` as one of autograd's boxes, and the tape records what is computed from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import uncastable
from rmsjit.arrays.owners import anchor_of
from rmsjit.autodiff import hooks
from rmsjit.autodiff.autograd_names import isbox
from rmsjit.autodiff.record import Record, TapeNode, is_differentiable, source_of
from rmsjit.autodiff.traced import Traced, register_variable_types
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.nest import flatten, matches, pack_like
from rmsjit.text import brief
from rmsjit.variables import Variable, array_of

Source = Variable | NDArray[Any] | Traced
Gradient = NDArray[Any] | IndexedSlices | Traced | None

Unconnected = Literal["none", "zero"]

S = TypeVar("S", bound=Source)
K = TypeVar("K")


class GradientTape:
    """Records what is computed from variables, and differentiates it.

    The computation is ordinary code with operators, NumPy functions and ``autograd.numpy``.  While
    the tape records, its results behave like arrays (``result.numpy()`` is the plain array).

    Tapes work like ``tf.GradientTape``: they can be nested, all tapes that are active record
    everything, and an active tape also records the gradients that another tape computes, which
    gives second derivatives.

    Parameters
    ----------
    persistent : bool, default False
        Whether `gradient` may be called more than once.
    watch_accessed_variables : bool, default True
        Whether to watch trainable variables when they are read.  If False, the tape only watches
        what is passed to `watch`.

    Notes
    -----
    - The tape notices the use of a `Variable`, but not of a plain array: compute with what `watch`
      returns for it.
    - ``v.numpy()``, ``v.array``, ``float(v)`` and the like are constants.  If the target depends on
      a variable only through these, the gradient is None.  Everything else that would convert a
      watched variable or a result to a plain array raises `TypeError`: ``np.asarray``,
      ``array.dot(v)``, ``np.array([v, w])`` (not ``anp.array``), C code, linear operators.  So does
      ``array[i] = v``, where NumPy turns it into a `ValueError`.  What calls ``float(v)`` itself,
      such as ``array.fill(v)``, ``np.fromiter`` and ``math.exp(v)``, gets a constant.
    - Where autograd's derivatives are known to be wrong, NumPy functions and methods have corrected
      ones, or raise a `TypeError` that names the argument.  ``autograd.numpy`` functions have only
      autograd's: `gradient` raises `ValueError` if the shape is wrong, but can't notice wrong
      numbers.  If a derivative fails, the error is `NotImplementedError` and names the function.
    - ``A @ v`` and ``v @ A`` are recorded for ``scipy.sparse`` matrices and arrays in all formats.
      The matrix is a constant; the gradients for ``v`` are ``A.T @ g`` and ``g @ A.T``.
    - Values are stored without copying.  `gradient` raises `RuntimeError` if a `Variable` was
      assigned or updated since a step that must be differentiated, also through another view of
      its memory.  The tape does not notice when the array of a variable is changed directly, or
      when an unwatched variable changes.
    - A tape belongs to the thread that entered it.

    Examples
    --------
    >>> v = Variable([1.0, 2.0])
    >>> with GradientTape() as tape:
    ...     loss = (v**3).sum()
    >>> tape.gradient(loss, v)
    array([ 3., 12.], dtype=float32)

    Second derivatives:

    >>> with GradientTape() as outer:
    ...     with GradientTape() as inner:
    ...         loss = (v**3).sum()
    ...     slope = inner.gradient(loss, v)
    >>> outer.gradient(slope, v)
    array([ 6., 12.], dtype=float32)

    Plain arrays:

    >>> tape = GradientTape()
    >>> x = tape.watch(np.array([1.0, 2.0]))
    >>> with tape:
    ...     y = np.exp(x)
    >>> tape.gradient(y, x)
    array([2.71828183, 7.3890561 ])
    """

    def __init__(self, persistent: bool = False, watch_accessed_variables: bool = True) -> None:
        self._persistent = bool(persistent)
        self._watch_accessed = bool(watch_accessed_variables)
        self._record: Record | None = self._new_record()
        register_variable_types()

    def _new_record(self) -> Record:
        return Record(self._persistent, self._watch_accessed)

    @property
    def _recording(self) -> bool:
        return self._record in hooks.records()

    def __enter__(self) -> GradientTape:
        if self._recording:
            raise ValueError("the tape is already recording")
        if self._record is None:  # a call of gradient has used it up
            self._record = self._new_record()
        hooks.records().append(self._record)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def _stop(self) -> None:
        records = hooks.records()
        if self._record in records:
            records.remove(self._record)

    @contextmanager
    def stop_recording(self) -> Iterator[None]:
        """A context manager that pauses this tape.

        Raises
        ------
        RuntimeError
            If the tape is not recording.
        """
        if not self._recording:
            raise RuntimeError("the tape is not recording")
        self._stop()
        try:
            yield
        finally:
            if self._record is not None:  # else a call of gradient has used it up
                hooks.records().append(self._record)

    def reset(self) -> None:
        """Forget everything recorded and watched.  A tape that is recording continues to record."""
        was_recording = self._recording
        self._stop()
        self._record = self._new_record()
        if was_recording:
            hooks.records().append(self._record)

    def watch(self, tensor: Any) -> Any:
        """Record what is computed from `tensor` from now on.

        Parameters
        ----------
        tensor : Variable, array, number or result, or a nested structure of these
            Of a real or complex dtype.

        Returns
        -------
        Variable or Traced, or a structure like `tensor`
            What to compute with.  For a plain array (or number), this is a stand-in that shares its
            memory, because the tape can't notice uses of the array itself.  A variable or result is
            returned as it is.

        Raises
        ------
        TypeError
            If `tensor` has another type or dtype.
        """
        record = self._usable_record()
        return pack_like(tensor, [_watch(record, leaf) for leaf in flatten(tensor)])

    def watched_variables(self) -> tuple[Variable, ...]:
        """The watched variables, in the order in which the tape first saw them."""
        return tuple(self._record.variables.values()) if self._record else ()

    @overload
    def gradient(
        self,
        target: Any,
        sources: Source,
        output_gradients: Any = None,
        unconnected_gradients: Unconnected = "none",
    ) -> Gradient: ...

    @overload
    def gradient(
        self,
        target: Any,
        sources: list[S],
        output_gradients: Any = None,
        unconnected_gradients: Unconnected = "none",
    ) -> list[Gradient]: ...

    @overload
    def gradient(
        self,
        target: Any,
        sources: tuple[S, ...],
        output_gradients: Any = None,
        unconnected_gradients: Unconnected = "none",
    ) -> tuple[Gradient, ...]: ...

    @overload
    def gradient(
        self,
        target: Any,
        sources: dict[K, S],
        output_gradients: Any = None,
        unconnected_gradients: Unconnected = "none",
    ) -> dict[K, Gradient]: ...

    @overload
    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: Unconnected = "none",
    ) -> Any: ...

    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: Unconnected = "none",
    ) -> Any:
        """The gradient of `target` with respect to `sources`.

        If called while the tape records, a non-persistent tape stops recording, and a persistent
        tape records the computation of the gradient.

        Parameters
        ----------
        target : result, Variable, or a nested structure of these
            The sum of its elements is differentiated; several targets are added up.
        sources : Variable, watched array or result, or a nested structure of these
            What to differentiate with respect to.
        output_gradients : array_like, optional
            Weights for the elements of `target`, with its shape.  For several targets, a structure
            like `target`, in which None means ones.
        unconnected_gradients : {"none", "zero"}
            Whether a source that the target does not depend on gets None or zeros.

        Returns
        -------
        array, IndexedSlices, Traced or None, or a structure like `sources`
            Of the shape and dtype of the source.  `IndexedSlices` if the source was only used
            through `gather`.  `Traced` (and dense) if a tape that is recording can differentiate
            the gradient.  Complex gradients follow TensorFlow's convention: for a real target, the
            partial derivative for the real part plus i times the one for the imaginary part.

        Raises
        ------
        RuntimeError
            On the second call for a tape that is not persistent, or if a variable was changed
            since the target was computed from it.
        TypeError
            If the tape can't know a target or source, such as a plain array that is not watched,
            or whose stand-in was never used.
        ValueError
            If `output_gradients` does not match the target, or `unconnected_gradients` is invalid,
            or the derivative of a function has a wrong shape.
        NotImplementedError
            If autograd can't differentiate a function for the arguments that it had.
        """
        if unconnected_gradients not in ("none", "zero"):
            raise ValueError(
                f'unconnected_gradients must be "none" or "zero", got {unconnected_gradients!r}'
            )
        record = self._usable_record()
        if not self._persistent:
            self._stop()
        seeds = _seeds(target, output_gradients)
        leaves = flatten(sources)
        nodes = [_source_node(leaf, record, position) for position, leaf in enumerate(leaves)]
        gradients = record.pull_back(seeds, nodes, again=bool(hooks.records()))
        if not self._persistent:
            self._record = None
        if unconnected_gradients == "zero":
            gradients = [
                np.zeros(leaf.shape, leaf.dtype) if gradient is None else gradient
                for gradient, leaf in zip(gradients, leaves, strict=True)
            ]
        return pack_like(sources, _handed_out(gradients, output_gradients))

    def _usable_record(self) -> Record:
        if self._record is None:
            raise RuntimeError(
                "the tape was used up by its first gradient: GradientTape(persistent=True) can "
                "compute several"
            )
        return self._record


def _watch(record: Record, leaf: Any) -> Any:
    if not isinstance(leaf, (Traced, Variable, np.ndarray, np.generic, float, complex)):
        raise TypeError(f"a tape can watch variables, arrays and results, got {brief(leaf)}")
    memory = array_of(leaf)
    if not isinstance(memory, np.ndarray):
        memory = np.asarray(memory)
    if not is_differentiable(memory.dtype):
        raise TypeError(
            f"a tape can watch only real and complex dtypes, got {memory.dtype} in {brief(leaf)}"
        )
    if isinstance(leaf, Traced):
        record.watch(leaf._node)
        return leaf
    if isinstance(leaf, Variable):
        record.watch_variable(leaf)
        return leaf
    record.watch(source_of(memory))
    return record.stand_in(memory)


def _seeds(target: Any, output_gradients: Any) -> list[tuple[TapeNode, Any]]:
    """The nodes of the targets, each with the gradient to start from."""
    seeds = []
    for _, leaf, weights in matches(target, output_gradients, "target", "output_gradients"):
        value = _target_value(leaf)
        weights = np.ones(value.shape, value.dtype) if weights is None else _read(weights)
        if weights.shape != value.shape:
            raise ValueError(
                f"output_gradients must have the target's shape {value.shape}, got {weights.shape}"
            )
        if not np.can_cast(weights.dtype, value.dtype, "same_kind"):
            raise uncastable("output_gradients", weights.dtype, value.dtype)
        node = _node_of(leaf)
        if node is not None:
            seeds.append((node, weights))
    return seeds


def _target_value(leaf: Any) -> NDArray[Any]:
    value = array_of(leaf)
    if isbox(value):
        raise TypeError(
            "a tape can't differentiate a value that an outer autograd.grad traces: use a tape for "
            "both"
        )
    value = np.asarray(value)
    if value.dtype.kind not in "biufc" and not is_differentiable(value.dtype):
        raise TypeError(
            f"a target must be a number or array computed under the tape, got {brief(leaf)}"
        )
    return value


def _read(weights: Any) -> Any:
    if isinstance(weights, Variable):
        return hooks.read(weights)
    followed = isinstance(weights, Traced) and weights.is_recorded
    return weights if followed else np.asarray(weights)


def _node_of(leaf: Any) -> TapeNode | None:
    if isinstance(leaf, Traced):
        return leaf._node  # type: ignore[no-any-return]
    if isinstance(leaf, (Variable, np.ndarray)):
        return hooks.sources.get(id(array_of(leaf)))
    return None


def _source_node(source: Any, record: Record, position: int) -> TapeNode | None:
    """The node of a source, or None if the record does not know it."""
    if not isinstance(source, (Traced, Variable, np.ndarray)):
        raise TypeError(
            f"source {position} must be a variable, a watched array or a recorded result, "
            f"got {brief(source)}"
        )
    node = _node_of(source)
    if node not in record.steps:
        node = None
    if isinstance(source, np.ndarray) and (node is None or not record.uses(node)):
        raise TypeError(
            f"source {position} is a plain array, whose use the tape did not notice: compute with "
            f"`v = rmsjit.Variable(array)`, which shares the array's memory, or with what "
            f"`tape.watch(array)` returns"
        )
    return node


def _handed_out(gradients: list[Any], output_gradients: Any) -> list[Any]:
    """Gradients for the user: plain unless a tape records them, and none sharing memory."""
    given = map(array_of, flatten(output_gradients))
    taken = {id(anchor_of(array)) for array in given if isinstance(array, np.ndarray)}
    handed = []
    for gradient in gradients:
        if isinstance(gradient, Traced) and not gradient.is_recorded:
            gradient = gradient.array
        if isinstance(gradient, np.ndarray):
            gradient = _own(gradient, taken)
        elif isinstance(gradient, IndexedSlices):
            values = _own(gradient.values, taken)
            gradient = IndexedSlices(values, gradient.indices, gradient.dense_shape)
        handed.append(gradient)
    return handed


def _own(array: NDArray[Any], taken: set[int]) -> NDArray[Any]:
    """The array, or a copy if it is read-only or its memory is `taken`, as by ``d(a + b)``."""
    owner = id(anchor_of(array))
    if owner in taken or not array.flags.writeable:
        return array.copy()
    taken.add(owner)
    return array
