"""`GradientTape`: which variables to follow, and which gradients to hand out.

The derivatives are those of the ``autograd`` package.  While a tape records, a `Variable` stands
for one of autograd's boxes in ordinary NumPy code, and the tape notes what is computed from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from autograd.tracer import isbox
from numpy.typing import NDArray

from rmsjit.autodiff import hooks
from rmsjit.autodiff.nested import flatten, pack_like, zip_leaves
from rmsjit.autodiff.record import Record, TapeNode, is_differentiable, source_of
from rmsjit.autodiff.traced import Traced, register_variable_types
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.variables import Variable, array_of


class GradientTape:
    """Records what is computed from variables, and differentiates it.

    The computation is ordinary code with operators, NumPy functions and ``autograd.numpy``; what
    it gives while the tape records are results that behave like arrays (``result.numpy()`` is the
    plain array).  Follows ``tf.GradientTape``: tapes nest, all that record at a time record
    everything, and a tape that records also records how another one makes gradients, which is how
    second derivatives come about.

    Parameters
    ----------
    persistent : bool, default False
        Whether `gradient` may be called more than once.
    watch_accessed_variables : bool, default True
        Whether trainable variables are watched by themselves; else only what `watch` is given.

    Notes
    -----
    - Only a `Variable` notices that it is used.  A plain array does not: compute with what `watch`
      returns for it.
    - ``v.numpy()``, ``v.array``, ``float(v)`` and the like are constants.  The gradient of a
      variable that the target depends on in no other way is None.  Whatever else would make a
      plain array of a variable that is watched, or of a result, raises `TypeError`: ``np.asarray``,
      ``array.dot(v)``, ``np.array([v, w])`` (not ``anp.array``), code in C, linear operators.
    - ``A @ v`` and ``v @ A`` are recorded for matrices and arrays of ``scipy.sparse`` in all their
      formats.  They are constants; the gradient by ``v`` is ``A.T @ g`` and ``g @ A.T``.
    - Values are held, not copied.  `gradient` raises `RuntimeError` when a `Variable` was assigned
      or updated since a step that it must differentiate.  Changes of arrays behind the back of
      their variable, and of variables that are not watched, go unnoticed.
    - Tapes belong to the thread that entered them.

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
        return any(record is self._record for record in hooks.records())

    def __enter__(self) -> GradientTape:
        if self._recording:
            raise ValueError("the tape records already")
        if self._record is None:  # a gradient has used it up
            self._record = self._new_record()
        hooks.records().append(self._record)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._recording:
            hooks.records().remove(self._record)

    @contextmanager
    def stop_recording(self) -> Iterator[None]:
        """A context in which this tape does not record, though it does around it.

        Raises
        ------
        RuntimeError
            If it does not record.
        """
        if not self._recording:
            raise RuntimeError("the tape does not record, so that it can't stop")
        self._stop()
        try:
            yield
        finally:
            if self._record is not None:  # as it is once a gradient has used it up
                hooks.records().append(self._record)

    def reset(self) -> None:
        """Forget everything that was recorded and watched; a tape that records goes on."""
        was_recording = self._recording
        self._stop()
        self._record = self._new_record()
        if was_recording:
            hooks.records().append(self._record)

    def watch(self, tensor: Any) -> Any:
        """Follow what is computed from `tensor` from now on.

        Parameters
        ----------
        tensor : Variable, array, number or result, or a nested structure of these
            Of a real or complex dtype.

        Returns
        -------
        Variable or Traced, or a structure like `tensor`
            What to compute with.  For a plain array (or number) this is its stand-in, which shares
            its memory: the array itself does not notice that it is used.  For a variable or result
            it is that itself.

        Raises
        ------
        TypeError
            If `tensor` is nothing that can be differentiated by.
        """
        record = self._usable_record()
        return pack_like(tensor, [_watch(record, leaf) for leaf in flatten(tensor)])

    def watched_variables(self) -> tuple[Variable, ...]:
        """The variables that are watched, in the order in which they came up."""
        return tuple(self._record.variables.values()) if self._record else ()

    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: str = "none",
    ) -> Any:
        """The gradient of `target` with respect to `sources`.

        Within the context of the tape, this ends the recording unless the tape is persistent; a
        persistent tape records how the gradient comes about.

        Parameters
        ----------
        target : result, Variable, or a nested structure of these
            Differentiated as the sum of its elements; several targets are added up.
        sources : Variable, watched array or result, or a nested structure of these
            What to differentiate by.
        output_gradients : array_like, optional
            Of the shape of `target`: weighs its elements.  For several targets a structure like
            `target`, in which None means ones.
        unconnected_gradients : {"none", "zero"}
            What a source gets that the target does not depend on: None or zeros.

        Returns
        -------
        array, IndexedSlices, Traced or None, or a structure like `sources`
            Of the shape and dtype of the source.  `IndexedSlices` where all uses of the source
            were a `gather`.  `Traced` (and dense) where a tape that records can differentiate the
            gradient.  For complex numbers TensorFlow's convention: of a real target, the partial
            derivative by the real part plus i times the one by the imaginary part.

        Raises
        ------
        RuntimeError
            On the second call for a tape that is not persistent, or when a variable was changed
            since the target was computed from it.
        TypeError
            If a target or source is nothing that a tape can know, such as a plain array that is
            not watched, or whose stand-in was never used.
        ValueError
            If `output_gradients` do not fit the target, or `unconnected_gradients` is neither word.
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
                "the tape has given its gradient: GradientTape(persistent=True) gives several"
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
            f"a tape can watch what has a real or complex dtype, got {memory.dtype} in "
            f"{brief(leaf)}"
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
    """The nodes that the targets have, each with the gradient to start from."""
    seeds = []
    for leaf, weights in zip_leaves(target, output_gradients):
        value = _target_value(leaf)
        weights = np.ones(value.shape, value.dtype) if weights is None else _read(weights)
        if weights.shape != value.shape:
            raise ValueError(
                f"output_gradients must have the target's shape {value.shape}, got {weights.shape}"
            )
        if not np.can_cast(weights.dtype, value.dtype, "same_kind"):
            raise TypeError(
                f"output_gradients must have a dtype that casts to the target's {value.dtype} as "
                f"same_kind, got {weights.dtype}"
            )
        node = _node_of(leaf)
        if node is not None:
            seeds.append((node, weights))
    return seeds


def _target_value(leaf: Any) -> NDArray[Any]:
    value = array_of(leaf)
    if isbox(value):
        raise TypeError(
            "a tape can't differentiate what autograd.grad traces around it: use a tape for both"
        )
    value = np.asarray(value)
    if value.dtype.kind not in "biufc" and not is_differentiable(value.dtype):
        raise TypeError(
            f"a target must be a number or an array that was computed under the tape, got "
            f"{brief(leaf)}"
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
    """The node of a source, None where the record does not know it."""
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
            f"source {position} is a plain array that the tape did not see used, for arrays don't "
            f"notice their use: compute with `v = rmsjit.Variable(array)`, which shares the "
            f"array's memory, or with what `tape.watch(array)` returns"
        )
    return node


def _handed_out(gradients: list[Any], output_gradients: Any) -> list[Any]:
    """Gradients as the user gets them: plain unless a tape records them, none sharing memory."""
    taken = {id(_owner(array_of(leaf))) for leaf in flatten(output_gradients)}
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
    """The array, or a copy where its memory is `taken`, as by ``d(a + b)``, or read-only."""
    owner = id(_owner(array))
    if owner in taken or not array.flags.writeable:
        return array.copy()
    taken.add(owner)
    return array


def _owner(array: Any) -> Any:
    """The array whose memory a view shows."""
    while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
        array = array.base
    return array


def brief(value: Any) -> str:
    """How messages show a value that is wrong."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
