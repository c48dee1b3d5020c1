"""What all optimizers share: their state, their numbers, and the engine that takes their steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rmsjit.autodiff import hooks
from rmsjit.optimizers.arguments import (
    checked_function,
    checked_name,
    checked_nonfinite,
    checked_sparse,
    checked_strategy,
    checked_threads,
)
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.form import Form
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.state.entries import Entry
from rmsjit.state.slots import SlotAllocator, SlotStore
from rmsjit.steps.entering import build, first_epsilon
from rmsjit.steps.moving import forget, rebind, resize_rows
from rmsjit.steps.pairs import Pairs
from rmsjit.steps.reduction import Strategy
from rmsjit.variables import Variable

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine


C = TypeVar("C", bound=type)

_SHARED_PARAMETERS = """
    sparse : {"rows", "exact"}, default "rows"
        What an `IndexedSlices` gradient does to the rows that it does not name.  "rows" leaves
        them and their slots alone.  "exact" gives what the dense rule gives with a zero gradient
        there, at the cost of the named rows only: other rows catch up when they are next named,
        or read through `get_slot`, or brought up to date by `sync`.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a NaN or an infinity in a gradient does.  "propagate" lets it through, as TensorFlow
        does; "skip" leaves all state as it is and counts `skipped_steps`; "raise" raises
        `FloatingPointError` with nothing changed.  The last two read gradients once more.
    num_threads : int, optional
        The most threads that a step uses; by default as many as the process may keep busy.
    slot_allocator : callable, optional
        ``slot_allocator(shape, dtype)`` returns the memory of a slot: a writeable, C-contiguous
        array, such as an ``np.memmap``.
    strategy : Strategy, optional
        Shares the work with other processes; see `rmsjit.distributed.MPIStrategy`.
"""


def with_shared_parameters(cls: C) -> C:
    """Put what all optimizers take in place of ``*shared*`` among a class's parameters."""
    if cls.__doc__:  # there is none under python -OO
        shared = inspect.cleandoc(_SHARED_PARAMETERS)
        cls.__doc__ = inspect.cleandoc(cls.__doc__).replace("*shared*", shared)
    return cls


class Hyperparameter:
    """A number of the rule as an attribute of an optimizer; it takes effect at the next step.

    Parameters
    ----------
    check : callable
        ``check(name, value)`` gives the value as it is kept, or raises.
    doc : str
    number : str, optional
        The name among the optimizer's `Hyperparameters`, where that is another.
    """

    def __init__(self, check: Callable[[str, Any], Any], doc: str, number: str = "") -> None:
        self.check = check
        self.__doc__ = doc
        self._number = number

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self._number = self._number or name

    def __get__(self, optimizer: Optimizer | None, owner: type) -> Any:
        return self if optimizer is None else optimizer._hyperparameters[self._number]

    def __set__(self, optimizer: Optimizer, value: Any) -> None:
        value = self.check(self._name, value)
        optimizer._check_number(self._number, value)
        optimizer._hyperparameters[self._number] = value
        optimizer._number_was_set(self._number)


class Optimizer:
    """The common part of `rmsjit.RMSprop` and `rmsjit.train.RMSPropOptimizer`.

    Attributes
    ----------
    skipped_steps : int
        How many steps were skipped for a gradient that was not finite (``nonfinite="skip"``).
    """

    def __init__(
        self,
        name: str,
        form: Form,
        hyperparameters: Hyperparameters,
        sparse: str,
        nonfinite: str,
        num_threads: int | None,
        slot_allocator: SlotAllocator | None,
        strategy: Strategy | None,
    ) -> None:
        self._name = checked_name(name)
        self._hyperparameters = hyperparameters
        self._exact = checked_sparse(sparse)
        self._nonfinite = checked_nonfinite(nonfinite)
        self._num_threads = checked_threads(num_threads)
        self._strategy = checked_strategy(strategy)
        allocator = checked_function("slot_allocator", slot_allocator)
        self._store = SlotStore(self._name, form, allocator)
        self.skipped_steps = 0
        if self._exact and form.without_closed_form:
            raise ValueError(f'sparse="exact" is not for this form: {form.without_closed_form}')
        self._watch_gathers()

    @functools.cached_property
    def _engine(self) -> Engine:
        """What takes the steps; the one place where Numba is imported, at the first of them."""
        from rmsjit.steps.engine import Engine

        return Engine(self._store, self._num_threads, self._exact, self._nonfinite, self._strategy)

    def _watch_gathers(self) -> None:
        """Have rows brought up to date before `rmsjit.gather` reads them."""
        if self._exact:
            hooks.before_gather(self.sync)

    def _check_number(self, name: str, value: Any) -> None:
        """Raise `ValueError` where a number would have no effect."""

    def _number_was_set(self, name: str) -> None:
        """What else changes with a number."""

    def _step(
        self, pairs: Pairs, clipping: Clipping, counter: NDArray[Any] | None, aggregate: bool = True
    ) -> bool:
        """Take one step; False, and `skipped_steps` one higher, if it was skipped."""
        taken = self._engine.step(pairs, self._hyperparameters, clipping, counter, aggregate)
        if not taken and pairs:
            self.skipped_steps += 1
        return taken

    def build(self, var_list: Sequence[Any]) -> None:
        """Create the slots of `var_list` ahead of the first step.

        Parameters
        ----------
        var_list : sequence of ndarray or Variable

        Raises
        ------
        TypeError, ValueError
            If one of them can't be trained, or two share a part of their memory.
        """
        build(self._store, list(var_list), self._hyperparameters)

    def sync(self, var: Any = None, indices: Any = None) -> None:
        """Bring rows of a table up to date before they are read or set (``sparse="exact"``).

        A row that is overwritten without it still gets what it had missed, at its next step.

        Parameters
        ----------
        var : ndarray or Variable, optional
            The table; all tables if left out.
        indices : array_like of integers, optional
            Its rows; all of them if left out.

        Raises
        ------
        IndexError
            If an index is no row.
        """
        if self._exact:
            self._engine.sync(var, indices)

    # --- variables that are known -----------------------------------------------------------

    @property
    def variables_seen(self) -> list[Variable]:
        """The variables that the optimizer has stepped or built, in order, over their own memory.

        Each has the name that slots and `rebind` know it by.  A variable whose memory was closed
        or resized is not among them.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt = rmsjit.RMSprop()
        >>> opt.build([rmsjit.Variable(np.zeros((2, 3)), name="kernel"), np.zeros(3)])
        >>> [(v.name, v.shape) for v in opt.variables_seen]
        [('kernel:0', (2, 3)), ('Variable:0', (3,))]
        """
        return self._store.variables()

    def forget(self, var: Any) -> None:
        """Let go of a variable and its slots; where it comes again, it starts anew.

        Without it a variable is kept until its memory is found to be held by nobody else.

        Parameters
        ----------
        var : ndarray, Variable or str
            Any view of its memory, or its name.

        Raises
        ------
        KeyError
            If the optimizer does not know it.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt, w = rmsjit.RMSprop(), np.zeros(3)
        >>> opt.build([w])
        >>> opt.forget(w)
        >>> opt.variables_seen
        []
        """
        forget(self._store, var)

    def rebind(self, old: Any, new: Any = None) -> None:
        """Give the state of variables to other memory.

        For variables that came to lie elsewhere: read from another file, copied apart from their
        optimizer, replaced by an array of the same shape.

        Parameters
        ----------
        old : ndarray, Variable or str
            A variable or its name; or a dict of names to new variables; or a list of new variables
            in the order of `variables_seen`.
        new : ndarray or Variable
            Of the same shape and dtype; state that it may have is dropped.

        Raises
        ------
        KeyError
            If the optimizer does not know a variable.
        TypeError, ValueError
            If a new variable can't be trained, does not have shape and dtype of the old one, or
            shares a part of its memory with another.  Nothing is changed then.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt, w = rmsjit.RMSprop(0.1, momentum=0.9), np.zeros(3)
        >>> opt.build([w])
        >>> moved = w.copy()
        >>> opt.rebind(w, moved)
        >>> opt.get_slot(moved, "rms").shape
        (3,)
        """
        rebind(self._store, old, new, self._catch_up)

    def resize_rows(self, old: Any, new: Any = None) -> None:
        """Keep the slots of a table's rows when it has got more of them, or fewer.

        Rows are counted from the first; slots of new ones start as all slots do.

        Parameters
        ----------
        old : ndarray, Variable or str
            The table or its name.
        new : ndarray or Variable, optional
            The table with more or fewer rows; `old` itself, which was resized in place, if left
            out.

        Raises
        ------
        KeyError
            If the optimizer does not know the table.
        TypeError, ValueError
            If the new one can't be trained, or its dtype or the shape of its rows is another.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt, table = rmsjit.RMSprop(), np.zeros((4, 2))
        >>> opt.apply_gradients([(np.ones((4, 2)), table)]).numpy()
        np.int64(1)
        >>> larger = np.concatenate([table, np.zeros((1, 2))])
        >>> opt.resize_rows(table, larger)
        >>> print(opt.get_slot(larger, "rms").numpy()[:, 0].round(3))
        [0.1 0.1 0.1 0.1 0. ]
        """
        epsilon = first_epsilon(self._store.form, self._hyperparameters)
        resize_rows(self._store, old, new, epsilon, self._catch_up)

    def _catch_up(self, entry: Entry) -> None:
        """Bring all rows of a table up to date."""
        if entry.clock is not None:
            self._engine.catch_up(entry)

    def _slot(self, var: Any, slot_name: str) -> Variable | None:
        self.sync(var)
        return self._store.slot_of(var, slot_name)

    def _created(self) -> list[Variable]:
        self.sync()
        return list(self._store.created.values())

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: all rows up to date, and no engine, which has no state."""
        self.sync()
        if "_engine" in vars(self):
            self._engine.clear()  # plans hold variables that nobody else may hold any more
        return {name: value for name, value in vars(self).items() if name != "_engine"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch_gathers()

    @property
    def _names_of_slots(self) -> list[str]:
        """The rule's slots, then those that were added, each once."""
        names = [*self._store.form.slot_names, *self._store.added_slot_names()]
        return list(dict.fromkeys(names))


def is_integer_scalar(array: Any) -> bool:
    """Whether an array can count steps."""
    return (
        isinstance(array, np.ndarray)
        and array.ndim == 0
        and array.dtype.kind in "iu"
        and array.dtype.isnative
        and array.flags.aligned
    )
