"""The moving average of the weights, in the interface of Keras 3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import converted
from rmsjit.arrays.layout import array_key
from rmsjit.autodiff import hooks
from rmsjit.nest import variables_in
from rmsjit.optimizers.fixed import fixed_at_construction
from rmsjit.optimizers.keras_weights import KerasWeights
from rmsjit.rule.averaging import Averaging
from rmsjit.rule.slot import AVERAGE, MASTER
from rmsjit.runtime.uninterrupted import copying, run
from rmsjit.steps.pairs import naming
from rmsjit.variables import array_of

Copies = list[tuple[NDArray[Any], NDArray[Any]]]  # to, from


class Averages(KerasWeights):
    """The settings and the use of averages, which steps keep in a slot."""

    @fixed_at_construction
    def use_ema(self) -> bool:
        """Whether steps keep a moving average of the weights."""
        return self._averaging is not None

    @property
    def ema_momentum(self) -> float | None:
        """The weight of the old average, or None without `use_ema`."""
        return None if self._averaging is None else self._averaging.momentum

    @ema_momentum.setter
    def ema_momentum(self, value: Any) -> None:
        old = self._needed_averaging()
        self._hyperparameters.averaging = Averaging(value, old.overwrite_frequency)

    @property
    def ema_overwrite_frequency(self) -> int | None:
        """After how many steps the average overwrites the weights, or None."""
        return None if self._averaging is None else self._averaging.overwrite_frequency

    @ema_overwrite_frequency.setter
    def ema_overwrite_frequency(self, value: int | None) -> None:
        old = self._needed_averaging()
        self._hyperparameters.averaging = Averaging(old.momentum, value)

    @property
    def _averaging(self) -> Averaging | None:
        return self._hyperparameters.averaging

    def _needed_averaging(self) -> Averaging:
        if self._averaging is None:
            raise ValueError("the average of the weights needs use_ema=True at construction")
        return self._averaging

    @contextmanager
    def averaged(self, variables: Any) -> Iterator[None]:
        """A context in which variables have the values of their averages.

        They are exchanged in place, and get their own values back when the context is left, also
        by an exception.  What is written to them inside, such as by a step, is lost then.

        Parameters
        ----------
        variables : ndarray, Variable, or nested structure of them

        Raises
        ------
        ValueError
            Without ``use_ema=True``, or if a variable is read-only.
        KeyError
            If a variable has not been stepped or built.
        NotImplementedError
            With a strategy that divides slots among processes: use what ``strategy.gathered``
            returns.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> w = np.array([1.0])
        >>> opt = rmsjit.RMSprop(0.1, use_ema=True, ema_momentum=0.5)
        >>> for _ in range(2):
        ...     _ = opt.apply_gradients([(np.ones(1), w)])
        >>> with opt.averaged([w]):
        ...     print(w.round(3))
        [0.569]
        >>> print(w.round(3))
        [0.454]
        """
        self._needed_averaging()
        averages = self._averages(variables_in(variables))
        own = [(array, array.copy()) for array, _ in averages]
        try:
            _write(averages)
            yield
        finally:
            _write(own)

    def finalize_variable_values(self, var_list: Any) -> None:
        """Overwrite variables by their averages, for the end of a training.

        Does nothing without ``use_ema=True``, as in Keras.

        Parameters
        ----------
        var_list : ndarray, Variable, or nested structure of them

        Raises
        ------
        ValueError, KeyError, NotImplementedError
            As `averaged` does; no variable is changed then.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> w = np.array([1.0])
        >>> opt = rmsjit.RMSprop(0.1, use_ema=True, ema_momentum=0.5)
        >>> for _ in range(2):
        ...     _ = opt.apply_gradients([(np.ones(1), w)])
        >>> opt.finalize_variable_values([w])
        >>> print(w.round(3))
        [0.569]
        """
        if self.use_ema:
            variables = variables_in(var_list)
            _write([*self._averages(variables), *self._averages_of_masters(variables)])

    def _averages(self, variables: list[Any]) -> Copies:
        """The memory of each variable, once, and its average in the variable's dtype."""
        self._refuse_divided("the average of the weights")
        found: dict[Any, tuple[NDArray[Any], NDArray[Any]]] = {}
        for position, variable in enumerate(variables):
            array, average = array_of(variable), self.get_slot(variable, AVERAGE.name).array
            if not array.flags.writeable:
                raise ValueError(f"{naming(variable, position)} must be writeable, got read-only")
            found[array_key(array)] = array, converted(average, array.dtype)
        return list(found.values())

    def _averages_of_masters(self, variables: list[Any]) -> Copies:
        """The master weights of the variables that have them, and their averages."""
        masters = [(v, self._store.slot_of(v, MASTER.name)) for v in variables]
        return [
            (master.array, self.get_slot(variable, AVERAGE.name).array)
            for variable, master in masters
            if master is not None
        ]


def _write(copies: Copies) -> None:
    """Write all values, uninterrupted, and tell tapes that the variables have changed."""
    run(copying(copies))
    if hooks.live:
        hooks.wrote([np.asarray(array) for array, _ in copies])
