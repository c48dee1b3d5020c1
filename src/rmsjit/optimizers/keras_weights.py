"""The state of an optimizer in the interface of Keras: `iterations`, slots and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from rmsjit.arrays.dtypes import uncastable
from rmsjit.optimizers.arguments import Initializer, initial_value, is_integer_scalar
from rmsjit.optimizers.slots import Slots
from rmsjit.runtime.uninterrupted import copying, run
from rmsjit.state.packed_slot import memory_of, stored
from rmsjit.steps.pairs import check_variable
from rmsjit.variables import Variable, array_of


class KerasWeights(Slots):
    """The count of steps, and slots as a list of weights."""

    _counts_steps = True
    _counter: NDArray[Any]
    _iterations: Variable

    @property
    def iterations(self) -> Variable:
        """The number of steps taken, an int64 `Variable`.

        It can be set to a number at any time but within a round of gradient accumulation, and to
        another integer `Variable` before the first step.
        """
        return self._iterations

    @iterations.setter
    def iterations(self, value: Any) -> None:
        if value is self._iterations:  # as after `opt.iterations += 1`
            return
        self._refuse_to_move("setting iterations")
        if not isinstance(value, Variable):
            self._iterations.assign(np.asarray(value))
            return
        if self._store.entries:
            raise RuntimeError(
                "iterations can be set to another Variable only before the first step"
            )
        if not is_integer_scalar(value.array):
            raise TypeError(
                f"iterations must be an integer Variable of shape (), got {value.dtype} of "
                f"shape {value.shape}"
            )
        self._iterations, self._counter = value, value.array

    @property
    def weights(self) -> list[Variable]:
        """`iterations`, then all slots and added weights in order of creation."""
        return [self._iterations, *self._created()]

    def variables(self) -> list[Variable]:
        """The same as `weights`."""
        return self.weights

    def get_slot(self, var: Any, slot_name: str) -> Variable:
        """A slot of a variable, as a `Variable` that shares the slot's memory.

        Parameters
        ----------
        var : ndarray or Variable
            Any view of the variable's memory.  The slot has the shape of this view.
        slot_name : str
            "rms", "momentum", "mg", or a name added by `add_slot`.

        Raises
        ------
        KeyError
            If the optimizer has no such slot for `var`.
        """
        slot = self._slot(var, slot_name)
        if slot is None:
            raise KeyError(self._why_no_slot(slot_name))
        return slot

    def _why_no_slot(self, slot_name: str) -> str:
        names = self.get_slot_names()
        if slot_name in names:
            return (
                f"{self._name} has no slot {slot_name!r} for this variable yet: the first step "
                f"with its gradient, or build([variable]), makes it"
            )
        return f"{self._name} has no slot {slot_name!r}; its slots are {names}"

    def add_slot(
        self,
        var: Any,
        slot_name: str,
        initializer: Initializer = "zeros",
        shape: Sequence[int] | None = None,
    ) -> Variable:
        """Add a slot to a variable, or return its existing slot of that name.

        Parameters
        ----------
        var : ndarray or Variable
        slot_name : str
        initializer : "zeros", "ones", array_like, or callable ``(shape, dtype)``
            The initial value.
        shape : sequence of int, optional
            By default the shape of the variable.

        Returns
        -------
        Variable
            Has the variable's dtype, and appears in `weights` and in checkpoints.

        Raises
        ------
        TypeError, ValueError
            If the variable can't be trained, or the initializer does not fit the shape.
        NotImplementedError
            With a strategy that divides slots among processes.
        """
        self._refuse_divided("add_slot")
        existing = self._slot(var, slot_name)
        if existing is not None:
            return existing
        check_variable(var, 0)
        array = array_of(var)
        own_shape = array.shape if shape is None else tuple(map(int, shape))
        value = initial_value(initializer, own_shape, array.dtype)
        if slot_name not in self._store.form.slot_names:
            return self._store.add_slot(var, slot_name, value)
        if own_shape != array.shape:
            raise ValueError(f"the slot {slot_name} has the variable's shape, got {own_shape}")
        self.build([var])
        return self.get_slot(var, slot_name).assign(value)

    def add_weight(
        self,
        name: str,
        shape: Sequence[int],
        dtype: DTypeLike | None = None,
        initializer: Initializer = "zeros",
        trainable: bool | None = None,
        synchronization: Any = None,
        aggregation: Any = None,
    ) -> Variable:
        """Add a weight to the optimizer that belongs to no variable.

        Parameters
        ----------
        name : str
        shape : sequence of int
        dtype : dtype_like, optional
            By default float32.
        initializer : "zeros", "ones", array_like, or callable ``(shape, dtype)``
        trainable : bool, optional
            Whether `rmsjit.GradientTape` watches it; by default it does not.
        synchronization, aggregation : None
            Accepted for compatibility; there are no replicas.

        Returns
        -------
        Variable
            Appears in `weights` and in checkpoints, in order of creation.

        Raises
        ------
        ValueError
            If the initializer does not fit the shape, or `synchronization` or `aggregation` is
            given.
        """
        if synchronization is not None or aggregation is not None:
            raise ValueError("synchronization and aggregation must be None: there are no replicas")
        value = initial_value(initializer, tuple(map(int, shape)), np.dtype(dtype or np.float32))
        return self._store.add_weight(name, value, bool(trainable))

    def get_weights(self) -> list[NDArray[Any]]:
        """Copies of `weights` as arrays, in tf-keras's order."""
        return [np.array(weight.array) for weight in self.weights]

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Set `iterations` and all slots from a list in the order of `get_weights`.

        Parameters
        ----------
        weights : sequence of array_like
            `iterations` may be left out and is then set to 0.

        Raises
        ------
        ValueError
            If the number of weights or a shape differs.  Before the first step, create the slots
            with `build`.
        TypeError
            If a dtype can't be cast.

        Notes
        -----
        An error leaves all weights unchanged.
        """
        given = [np.asarray(array_of(weight)) for weight in weights]
        targets = self.weights
        if len(given) == len(targets) - 1:
            given.insert(0, np.zeros((), np.int64))
        _check_weights(given, targets)
        with np.errstate(all="ignore"):  # like all casts in rmsjit
            cast = [stored(t, v) for v, t in zip(given, targets, strict=True)]
        run(copying(zip(map(memory_of, targets), cast, strict=True)))


def _check_weights(given: Sequence[NDArray[Any]], targets: Sequence[Variable]) -> None:
    if len(given) != len(targets):
        raise ValueError(
            f"expected {len(targets)} weights (or {len(targets) - 1} without iterations), got "
            f"{len(given)}; before the first step, build(var_list) makes the slots"
        )
    for position, (value, target) in enumerate(zip(given, targets, strict=True)):
        if not np.can_cast(value.dtype, target.dtype, "same_kind"):
            raise uncastable(f"weights[{position}]", value.dtype, target.dtype)
        if not memory_of(target).flags.writeable:
            raise ValueError(f"{target.name} must be writeable to be set, got a read-only array")
        if value.shape != target.shape:
            raise ValueError(
                f"weights[{position}] must have the shape {target.shape} of {target.name}, got "
                f"{value.shape}"
            )
