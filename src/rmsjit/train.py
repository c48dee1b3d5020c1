"""`RMSPropOptimizer`: the interface of ``tf.train.RMSPropOptimizer`` of TensorFlow 1."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np

from rmsjit.arguments import checked_factor, checked_name, checked_sparse, checked_threads
from rmsjit.clipping import Clipping
from rmsjit.forms import tf1_form
from rmsjit.hyperparameters import (
    StepNumbers,
    checked,
    in_unit_interval,
    positive,
    value_at,
)
from rmsjit.pairs import read_pairs
from rmsjit.slots import SlotAllocator, SlotStore
from rmsjit.stepper import Stepper
from rmsjit.strategy import Strategy
from rmsjit.variables import Variable, array_of

NO_CLIPPING = Clipping()


class RMSPropOptimizer:
    """RMSprop as ``tf.train.RMSPropOptimizer`` computes it, on NumPy arrays in place.

    With ``g`` the gradient::

        rms <- decay*rms + (1 - decay)*g*g
        mg  <- decay*mg  + (1 - decay)*g                 if centered
        v    = max(rms - mg*mg, 0)  or  rms
        mom <- momentum*mom + lr*g / sqrt(v + epsilon) ;  variable <- variable - mom

    The slot ``rms`` starts from ones, the others from zeros.

    Parameters
    ----------
    learning_rate : float or callable
        A number, a 0-d array, or a function of no arguments, asked at every step; so may `decay`,
        `momentum` and `epsilon` be.
    decay : float or callable, default 0.9
        Discounting factor of the averages, between 0 and 1.
    momentum : float or callable, default 0.0
        Between 0 and 1.
    epsilon : float or callable, default 1e-10
        Keeps the denominator from zero; positive.
    use_locking : bool, default False
        Whether steps that several Python threads take at once on this optimizer wait for each
        other.  If not, they run side by side without a lock, and updates of one element may be
        lost, as in Hogwild.
    centered : bool, default False
        Normalise by the estimated variance of the gradient instead of its mean square.
    name : str, default "RMSProp"
        Prefix of the names of slots.
    sparse : {"rows", "exact"}, default "rows"
        What an `IndexedSlices` gradient does to the rows that it does not name.  "rows" leaves
        them and their slots alone.  "exact" gives what the dense rule gives with a zero gradient
        there, at the cost of the named rows only: other rows catch up when they are next named,
        or read through `get_slot`, or brought up to date by `sync`.
    num_threads : int, optional
        The most threads that a step uses; by default as many as the process may keep busy.
    slot_allocator : callable, optional
        ``slot_allocator(shape, dtype)`` returns the memory of a slot: a writeable, C-contiguous
        array, such as an ``np.memmap``.
    strategy : Strategy, optional
        Shares the work with other processes; see `rmsjit.distributed.MPIStrategy`.

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If a number is out of its range.

    See Also
    --------
    rmsjit.RMSprop : The later optimizer; its epsilon stands elsewhere and its slots start from 0.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit
    >>> w = np.array([1.0, 2.0])
    >>> opt = rmsjit.train.RMSPropOptimizer(0.1, momentum=0.5)
    >>> opt.apply_gradients([(np.array([1.0, -1.0]), w)])
    >>> w
    array([0.9, 2.1])
    """

    def __init__(
        self,
        learning_rate: Any,
        decay: Any = 0.9,
        momentum: Any = 0.0,
        epsilon: Any = 1e-10,
        use_locking: bool = False,
        centered: bool = False,
        name: str = "RMSProp",
        *,
        sparse: str = "rows",
        num_threads: int | None = None,
        slot_allocator: SlotAllocator | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        self._name = checked_name(name)
        self._learning_rate = checked("learning_rate", learning_rate)
        self._decay = checked_factor("decay", decay)
        self._momentum = checked_factor("momentum", momentum)
        self._epsilon = checked("epsilon", epsilon)
        if not callable(self._epsilon):
            positive("epsilon", self._epsilon)
        self._use_locking = bool(use_locking)
        self._lock = threading.Lock()
        self._store = SlotStore(self._name, tf1_form(centered=bool(centered)), slot_allocator)
        self._stepper = Stepper(self._store, checked_threads(num_threads), checked_sparse(sparse))
        self._strategy = strategy
        self._constant: StepNumbers | None = None

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        global_step: Any = None,
        name: str | None = None,
    ) -> None:
        """Update variables by their gradients, in place.

        Parameters
        ----------
        grads_and_vars : iterable of (gradient, variable)
            As for `rmsjit.RMSprop.apply_gradients`.
        global_step : integer 0-d array or Variable, optional
            Goes up by one after the update.
        name : str, optional
            Accepted for compatibility; there is no graph in which the step could have a name.

        Raises
        ------
        TypeError
            If the pairs are malformed, or a gradient, variable or `global_step` is of a wrong type.
        ValueError
            If there are no pairs, no variable has a gradient, shapes differ, a variable is
            read-only, or two variables share a part of their memory.

        Notes
        -----
        Everything is checked before the first write.
        """
        gradients, variables = read_pairs(grads_and_vars)
        if not gradients:
            raise ValueError("grads_and_vars must hold at least one variable, got none")
        counter = None if global_step is None else _checked_step(global_step)
        with self._lock if self._use_locking else contextlib.nullcontext():
            self._step(gradients, variables)
            if counter is not None:
                counter[()] += 1

    def _step(self, gradients: tuple[Any, ...], variables: tuple[Any, ...]) -> None:
        step = (gradients, variables, NO_CLIPPING, self._numbers)
        if self._strategy is None:
            self._stepper.step(*step)
        else:
            self._strategy.step(self._stepper, *step, aggregate=True)

    def sync(self, var: Any = None, indices: Any = None) -> None:
        """Bring rows of a table up to date; see `rmsjit.RMSprop.sync`."""
        self._stepper.sync(var, indices)

    def get_name(self) -> str:
        """The name given at construction."""
        return self._name

    def get_slot(self, var: Any, name: str) -> Variable | None:
        """The slot `name` of a variable, over the slot's own memory; None where there is none."""
        self._stepper.sync(var)
        return self._store.slot_of(var, name)

    def get_slot_names(self) -> list[str]:
        """The names of the slots of each variable, sorted."""
        return sorted(self._store.form.slots)

    def variables(self) -> list[Variable]:
        """All slots, in the order in which they were created."""
        self._stepper.sync()
        return list(self._store.created.values())

    def _numbers(self) -> StepNumbers:
        """The hyperparameters at this step; the same object where none of them can change."""
        if self._constant is not None:
            return self._constant
        numbers = StepNumbers(
            value_at("learning_rate", self._learning_rate, 0),
            in_unit_interval("decay", value_at("decay", self._decay, 0)),
            in_unit_interval("momentum", value_at("momentum", self._momentum, 0)),
            positive("epsilon", value_at("epsilon", self._epsilon, 0)),
        )
        given = (self._learning_rate, self._decay, self._momentum, self._epsilon)
        if not any(map(callable, given)):
            self._constant = numbers
        return numbers

    def __getstate__(self) -> dict[str, Any]:
        self._stepper.sync()
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return (
            f"<rmsjit.train.{type(self).__name__} name={self._name!r}, "
            f"learning_rate={self._learning_rate!r}, decay={self._decay!r}, "
            f"momentum={self._momentum!r}, epsilon={self._epsilon!r}, "
            f"centered={self._store.form.centered}>"
        )


def _checked_step(global_step: Any) -> Any:
    array = array_of(global_step)
    good = isinstance(array, np.ndarray) and array.ndim == 0 and array.dtype.kind in "iu"
    if not good or not array.flags.writeable:
        raise TypeError(
            f"global_step must be a writeable integer array of shape () or a Variable of one, "
            f"got {global_step!r}"
        )
    return array
