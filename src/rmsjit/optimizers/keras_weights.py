"""An optimizer's state as Keras shows it: `iterations`, slots, weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from rmsjit.optimizers.arguments import Initializer, initial_value
from rmsjit.optimizers.base import Optimizer, is_integer_scalar
from rmsjit.optimizers.uninterrupted import copying, run
from rmsjit.steps.pairs import check_variable
from rmsjit.variables import Variable, array_of


class WeightedOptimizer(Optimizer):
    """The part of `rmsjit.RMSprop` that reads and sets its state."""

    def __init__(self, name: str, *arguments: Any) -> None:
        super().__init__(name, *arguments)
        self._counter = np.zeros((), np.int64)
        self._iterations = Variable(self._counter, f"{self._name}/iter", trainable=False)

    @property
    def iterations(self) -> Variable:
        """How many steps have been taken; an int64 `Variable`."""
        return self._iterations

    @iterations.setter
    def iterations(self, value: Any) -> None:
        if isinstance(value, Variable):
            self._share_iterations(value)
        else:
            self._iterations.assign(np.asarray(value))

    def _share_iterations(self, counter: Variable) -> None:
        if self._store.entries:
            raise RuntimeError(
                "iterations can be set to another Variable only before the first step"
            )
        if not is_integer_scalar(counter.array):
            raise TypeError(
                f"iterations must be an integer Variable of shape (), got {counter.dtype} of "
                f"shape {counter.shape}"
            )
        self._iterations, self._counter = counter, counter.array

    @property
    def weights(self) -> list[Variable]:
        """`iterations`, then all slots in the order in which they were created."""
        return [self._iterations, *self._created()]

    def variables(self) -> list[Variable]:
        """The same as `weights`."""
        return self.weights

    def get_slot_names(self) -> list[str]:
        """The names of the slots of each variable."""
        return self._names_of_slots

    def get_slot(self, var: Any, slot_name: str) -> Variable:
        """A slot of a variable, as a `Variable` over the slot's own memory.

        Parameters
        ----------
        var : ndarray or Variable
            Any view of the variable's memory; the slot comes in its shape.
        slot_name : str
            "rms", "momentum", "mg", or one that `add_slot` has added.

        Raises
        ------
        KeyError
            If the optimizer has no such slot for `var`.
        """
        slot = self._slot(var, slot_name)
        if slot is None:
            raise KeyError(
                f"{self._name} has no slot {slot_name!r} for this variable; its slots are "
                f"{self.get_slot_names()}, made at the first step or by build()"
            )
        return slot

    def add_slot(
        self,
        var: Any,
        slot_name: str,
        initializer: Initializer = "zeros",
        shape: Sequence[int] | None = None,
    ) -> Variable:
        """A slot of one's own for a variable, or the one of that name that it has.

        Parameters
        ----------
        var : ndarray or Variable
        slot_name : str
        initializer : "zeros", "ones", array_like, or callable ``(shape, dtype)``
            Its first value.
        shape : sequence of int, optional
            The shape of the variable if left out.

        Returns
        -------
        Variable
            Of the variable's dtype; it appears in `weights` and in checkpoints.

        Raises
        ------
        TypeError, ValueError
            If the variable can't be trained, or the initializer does not fit the shape.
        """
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
        """A weight of the optimizer that belongs to no variable.

        Parameters
        ----------
        name : str
        shape : sequence of int
        dtype : dtype_like, optional
            float32 if left out.
        initializer : "zeros", "ones", array_like, or callable ``(shape, dtype)``
        trainable : bool, optional
            Whether `rmsjit.GradientTape` watches it; by default not.
        synchronization, aggregation : None
            Placement among TensorFlow's replicas, for which there is no counterpart.

        Returns
        -------
        Variable
            It appears in `weights` and in checkpoints, in the order of creation.

        Raises
        ------
        ValueError
            If the initializer does not fit the shape, or there is a placement.
        """
        if synchronization is not None or aggregation is not None:
            raise ValueError("synchronization and aggregation must be None: there are no replicas")
        value = initial_value(initializer, tuple(map(int, shape)), np.dtype(dtype or np.float32))
        return self._store.add_weight(name, value, bool(trainable))

    def get_weights(self) -> list[NDArray[Any]]:
        """Copies of `weights` as arrays, in tf-keras's order."""
        return [np.array(weight.array) for weight in self.weights]

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Set `iterations` and all slots from a list as `get_weights` gives it.

        Parameters
        ----------
        weights : sequence of array_like
            May be one shorter, without `iterations`, which then become 0.

        Raises
        ------
        ValueError
            If the number of weights or a shape is another.  Before the first step the slots are
            made by `build`.
        TypeError
            If a dtype can't be cast.  Nothing is changed after an error.
        """
        given = [np.asarray(array_of(weight)) for weight in weights]
        targets = self.weights
        if len(given) == len(targets) - 1:
            given.insert(0, np.zeros((), np.int64))
        _check_weights(given, targets)
        with np.errstate(all="ignore"):  # as all casts of rmsjit
            cast = [np.array(v, t.dtype) for v, t in zip(given, targets, strict=True)]
        run(copying(zip([target.array for target in targets], cast, strict=True)))


def _check_weights(given: Sequence[NDArray[Any]], targets: Sequence[Variable]) -> None:
    if len(given) != len(targets):
        raise ValueError(
            f"expected {len(targets)} weights (or {len(targets) - 1} without iterations), got "
            f"{len(given)}; before the first step, build(var_list) makes the slots"
        )
    for position, (value, target) in enumerate(zip(given, targets, strict=True)):
        if not np.can_cast(value.dtype, target.dtype, "same_kind"):
            raise TypeError(
                f"weights[{position}] must have a dtype that casts to {target.dtype} as "
                f"same_kind, got {value.dtype}"
            )
        if not target.array.flags.writeable:
            raise ValueError(f"{target.name} must be writeable to be set, got a read-only array")
        if value.shape != target.shape:
            raise ValueError(
                f"weights[{position}] must have the shape {target.shape} of {target.name}, got "
                f"{value.shape}"
            )
