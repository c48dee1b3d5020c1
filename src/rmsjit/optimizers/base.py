"""The common part of both optimizers: state, hyperparameters, and the engine for their steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from rmsjit.autodiff import hooks
from rmsjit.optimizers import grouped
from rmsjit.optimizers.arguments import (
    Nonfinite,
    Sparse,
    checked_flag,
    checked_function,
    checked_gradient_scale,
    checked_name,
    checked_nonfinite,
    checked_rounding,
    checked_seed,
    checked_sparse,
    checked_state_dtype,
    checked_strategy,
    checked_threads,
    enrolled,
)
from rmsjit.optimizers.elsewhere import ForeignNames
from rmsjit.optimizers.fixed import fixed_at_construction
from rmsjit.optimizers.parameter_group import ParameterGroup
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.form import STOCHASTIC, Form
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.rule.presets import with_precision
from rmsjit.state.entries import Entry
from rmsjit.state.slots import SlotAllocator, SlotStore
from rmsjit.steps.entering import build, first_epsilon
from rmsjit.steps.moving import forget, rebind, resize_rows
from rmsjit.steps.nonfinite import PROPAGATE
from rmsjit.steps.pairs import Pairs
from rmsjit.steps.reduction import Strategy
from rmsjit.variables import Variable

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine


C = TypeVar("C", bound=type)

_SHARED_PARAMETERS = """
    weight_decay : float or callable, default 0.0
        Shrink each variable before its step, to ``p - p*weight_decay*lr`` as Keras 3 does; see
        `decoupled_weight_decay`.  Groups can leave variables out (`add_group`).
    decoupled_weight_decay : bool, default True
        False adds ``weight_decay*p`` to the clipped gradient instead, as PyTorch does.
    clip_weights : float, optional
        Clip each element of a variable to ``[-clip_weights, clip_weights]`` after the step.
    maximize : bool, default False
        Ascend instead of descend: gradients are multiplied by -1 before anything else.
    grad_scale : float, default 1.0
        Multiply gradients by this before they are clipped: 1/N for sums over N examples, or the
        inverse of a loss scale.
    master_weights : bool, default False
        Keep a float32 copy of each float16 or bfloat16 variable in a slot "master", update that,
        and write it to the variable, rounded.  All slots of such a variable are float32 then.
        Variables of other dtypes are trained as without it.
    rounding : {"nearest", "stochastic"}, default "nearest"
        How float16 and bfloat16 variables are rounded.  "stochastic" rounds up with a probability
        equal to the part that is lost otherwise, so that many small steps add up.
    state_dtype : dtype or dict of str to dtype, optional
        That of all slots of the rule, or of each by name, in place of the variable's.  With
        "bfloat16" a slot takes half the memory, and is rounded stochastically.
    seed : int, default 0
        Of the random bits of stochastic rounding.
    sparse : {"rows", "exact"}, default "rows"
        How an `IndexedSlices` gradient affects the rows that it does not name.  "rows" leaves
        them and their slots alone.  "exact" gives the result of the dense rule with a zero
        gradient for these rows, but computes only the named rows: the others catch up when they
        are next named, read through `get_slot`, or brought up to date by `sync`.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What to do with a NaN or an infinity in a gradient.  "propagate" applies it, as TensorFlow
        does; "skip" skips the step, leaves all state unchanged and counts `skipped_steps`;
        "raise" raises `FloatingPointError` and changes nothing.  The last two read each gradient
        once more.
    track_norms : bool, default False
        Compute `last_gradient_norm` at every step, which reads each gradient once more unless a
        bound on the norm or `nonfinite` does so anyway.
    num_threads : int, optional
        The maximum number of threads; by default all that the process may use.
    slot_allocator : callable, optional
        ``slot_allocator(shape, dtype)`` returns the memory of a slot: a writeable, C-contiguous
        array, such as an ``np.memmap``.
    strategy : Strategy, optional
        Distributes the steps over processes; see `rmsjit.distributed.MPIStrategy`.
"""


def with_shared_parameters(cls: C) -> C:
    """Replace ``*shared*`` in a class's docstring by the parameters that both optimizers have."""
    if cls.__doc__:  # None under python -OO
        shared = inspect.cleandoc(_SHARED_PARAMETERS)
        cls.__doc__ = inspect.cleandoc(cls.__doc__).replace("*shared*", shared)
    return cls


class Optimizer(ForeignNames):
    """The common part of `rmsjit.RMSprop` and `rmsjit.train.RMSPropOptimizer`."""

    _clipping: Clipping
    _state_dtype: dict[str, str]
    _has_steps = False  # whether it counts its steps, as schedules need
    _counter: NDArray[Any] | None = None  # of the steps, if it counts them

    def __init__(
        self,
        name: str,
        form: Form,
        hyperparameters: Hyperparameters,
        sparse: Sparse,
        nonfinite: Nonfinite,
        num_threads: int | None,
        slot_allocator: SlotAllocator | None,
        strategy: Strategy | None,
        track_norms: bool,
        seed: int = 0,
    ) -> None:
        self._name = checked_name(name)
        self._hyperparameters = hyperparameters
        self._exact = checked_sparse(sparse)
        self._nonfinite = checked_nonfinite(nonfinite)
        self._track_norms = checked_flag("track_norms", track_norms)
        self._seed = checked_seed(seed)
        self._num_threads = checked_threads(num_threads)
        self._strategy = checked_strategy(strategy)
        self._place = enrolled(strategy)
        allocator = checked_function("slot_allocator", slot_allocator)
        self._store = SlotStore(self._name, form, allocator)
        self._refuse_divided_noise(form)
        if self._exact and form.without_closed_form:
            raise ValueError(f'sparse="exact" is not for this form: {form.without_closed_form}')
        self._watch_gathers()

    @functools.cached_property
    def _engine(self) -> Engine:
        """Takes the steps; made at the first one, so that only this imports Numba."""
        from rmsjit.steps.engine import Engine

        return Engine(
            self._store,
            self._num_threads,
            self._exact,
            self._nonfinite,
            self._strategy,
            self._place,
            self._track_norms,
            self._seed,
        )

    def _run_settings(self) -> dict[str, Any]:
        """The arguments that say how steps are run, as far as they are not the defaults."""
        given = {
            "sparse": ("exact" if self._exact else "rows", "rows"),
            "nonfinite": (self._nonfinite, PROPAGATE),
            "track_norms": (self._track_norms, False),
            "num_threads": (self._num_threads, None),
        }
        return {name: value for name, (value, default) in given.items() if value != default}

    def _watch_gathers(self) -> None:
        """Bring rows up to date whenever `rmsjit.gather` is about to read them."""
        if self._exact:
            hooks.before_gather(self.sync)

    def _step(
        self,
        pairs: Pairs,
        clipping: Clipping,
        counter: NDArray[Any] | None,
        aggregate: bool = True,
        finite: bool = True,
    ) -> None:
        """Take one step; see `rmsjit.steps.engine.Engine.step`."""
        self._engine.step(pairs, self._hyperparameters, clipping, counter, aggregate, finite)

    @property
    def skipped_steps(self) -> int:
        """The number of steps skipped because of a gradient that was not finite.

        It stays 0 unless ``nonfinite="skip"``.
        """
        return self._store.skipped_steps

    @skipped_steps.setter
    def skipped_steps(self, count: int) -> None:
        self._store.skipped_steps = count

    @property
    def last_gradient_norm(self) -> float | None:
        """The joint norm of all gradients of the last step that computed it, before its clipping.

        Steps compute it if there is a bound on norms, if `nonfinite` is not "propagate", or with
        ``track_norms=True``.  It is that of the gradients that the rule gets but for the clipping:
        reduced by a strategy, accumulated, and clipped by `clipvalue` if that is combined with a
        bound on norms.  The norm of an `IndexedSlices` is that of its values.  None before the
        first such step, and in copies.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt = rmsjit.RMSprop(global_clipnorm=1.0)
        >>> _ = opt.apply_gradients([(np.array([3.0, 4.0]), np.zeros(2))])
        >>> opt.last_gradient_norm
        5.0
        """
        engine = vars(self).get("_engine")
        return None if engine is None else engine.last_norm

    @property
    def last_gradient_norms(self) -> tuple[float, ...] | None:
        """`last_gradient_norm` by groups: of the variables in none, then of each of `groups`.

        A group that had no gradient, or is frozen, has 0.  None where `last_gradient_norm` is.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> opt, head, body = rmsjit.RMSprop(track_norms=True), np.zeros(2), np.zeros(2)
        >>> group = opt.add_group([head], lr_multiplier=10.0)
        >>> _ = opt.apply_gradients([(np.array([3.0, 4.0]), head), (np.ones(2), body)])
        >>> print(np.round(opt.last_gradient_norms, 3))
        [1.414 5.   ]
        """
        engine = vars(self).get("_engine")
        return None if engine is None else engine.last_norms

    @property
    def current_learning_rate(self) -> float | None:
        """The learning rate that the next step will use, whatever it is given as.

        That is the number, or the value of the schedule or of the function of the step at
        `iterations`, lowered by `decay`; groups of variables may have others.  A function without
        arguments may change at each call and is not called: it counts as what it returned for the
        last step, and as None before the first one.  So does a function of the step in
        `train.RMSPropOptimizer`, whose ``global_step`` belongs to the caller.

        Examples
        --------
        >>> import rmsjit
        >>> opt = rmsjit.RMSprop(rmsjit.schedules.ExponentialDecay(0.1, 1, decay_rate=0.5))
        >>> opt.iterations = 2
        >>> opt.current_learning_rate
        0.025
        """
        return self._hyperparameters.current_rate(self._counter)

    def _refuse(self, error: BaseException) -> NoReturn:
        """Raise an error that comes before the step, where a strategy's other ranks expect one."""
        if self._strategy is not None:
            self._engine.refuse(error)
        raise error

    @property
    def _divides_slots(self) -> bool:
        """Whether the strategy divides slots among processes."""
        return getattr(self._strategy, "shard_state", False)

    def _refuse_divided(self, what: str) -> None:
        """Raise `NotImplementedError` where no process has a whole slot."""
        if self._divides_slots:
            raise NotImplementedError(
                f"{what} needs whole slots, which shard_state=True has on no rank: use "
                f"strategy.save and strategy.load, or strategy.gathered"
            )

    def build(self, var_list: Sequence[Any]) -> None:
        """Create the slots of `var_list` ahead of the first step.

        Parameters
        ----------
        var_list : sequence of ndarray or Variable

        Raises
        ------
        TypeError, ValueError
            If one of them can't be trained, or two partly overlap in memory.
        """
        build(self._store, list(var_list), self._hyperparameters)

    def _with_precision(
        self, form: Form, master_weights: Any, rounding: Any, state_dtype: Any
    ) -> Form:
        """A form with what the arguments about half types ask for."""
        self._state_dtype = checked_state_dtype(state_dtype, form)
        return with_precision(
            form,
            master_weights=checked_flag("master_weights", master_weights),
            rounding=checked_rounding(rounding),
            state_dtype=self._state_dtype,
        )

    def _refuse_divided_noise(self, form: Form) -> None:
        """Raise `NotImplementedError` where the parts of a variable would repeat random bits."""
        if form.is_random and self._divides_slots:
            raise NotImplementedError(
                "stochastic rounding, of variables or of slots in bfloat16, is not for "
                "shard_state=True, where bits would depend on the number of ranks: use "
                'master_weights=True with rounding="nearest", and no state_dtype'
            )

    @fixed_at_construction
    def master_weights(self) -> bool:
        """Whether variables of half types have float32 master weights."""
        return self._store.form.has_master

    @fixed_at_construction
    def rounding(self) -> str:
        """How variables of half types are rounded: "nearest" or "stochastic"."""
        return self._store.form.rounding

    @fixed_at_construction
    def state_dtype(self) -> dict[str, str]:
        """The dtypes of slots that were asked for, by name."""
        return dict(self._state_dtype)

    @fixed_at_construction
    def seed(self) -> int:
        """The seed of the random bits of stochastic rounding."""
        return self._seed

    def _arguments_of_precision(self) -> dict[str, Any]:
        """The arguments for half types, as far as they are used."""
        form, used = self._store.form, dict[str, Any]()
        if form.has_master:
            used["master_weights"] = True
        if form.rounding == STOCHASTIC:
            used["rounding"] = STOCHASTIC
        if self._state_dtype:
            used["state_dtype"] = self.state_dtype
        if form.is_random:
            used["seed"] = self._seed
        return used

    @fixed_at_construction
    def maximize(self) -> bool:
        """Whether steps ascend."""
        return self._clipping.gradient_scale < 0

    @property
    def grad_scale(self) -> float:
        """What gradients are multiplied by before they are clipped."""
        return abs(self._clipping.gradient_scale)

    @grad_scale.setter
    def grad_scale(self, value: float) -> None:
        if "_clipping" not in vars(self):
            raise AttributeError(
                f"grad_scale can be set once the optimizer is constructed, got {value!r}: pass it "
                f"to the constructor; an attribute that a subclass adds needs another name"
            )
        scale = checked_gradient_scale(self.maximize, value)
        self._clipping = replace(self._clipping, gradient_scale=scale)

    # --- groups -----------------------------------------------------------------------------

    def add_group(
        self,
        variables: Any,
        *,
        learning_rate: Any = None,
        lr_multiplier: Any = None,
        weight_decay: Any = None,
        rho: Any = None,
        momentum: Any = None,
        epsilon: Any = None,
        frozen: bool = False,
    ) -> ParameterGroup:
        """Give some variables settings of their own.

        A step still updates all variables of a dtype in one call of compiled code.

        Parameters
        ----------
        variables : ndarray, Variable, str, int, or list of them
            Variables by any view of their memory; or patterns of the names of `Variable` objects,
            such as ``"*/bias"``, in which ``*``, ``?`` and ``[...]`` are as in file names; or
            numbers in the order in which variables get slots, from 0.  If a variable is in several
            groups, the last one that was added counts.
        learning_rate : float, callable or LearningRateSchedule, optional
            Schedules only where the optimizer counts its steps.  The optimizer's if left out, like
            the next ones.
        lr_multiplier : float or callable, optional
            Multiplies the learning rate, whether that is the group's or the optimizer's.
        weight_decay, rho, momentum, epsilon : float or callable, optional
            Weight decay and momentum only if the optimizer has them; 0 switches them off.
        frozen : bool, default False
            Leave the variables and their slots alone, whatever their gradients, which do not count
            for a global norm either.

        Returns
        -------
        ParameterGroup
            Its attributes are the settings, and can be set: ``group.frozen = False``.

        Raises
        ------
        TypeError, ValueError
            If a variable can't be trained, or a setting is of a wrong type, out of range, or not
            for the form of the optimizer.  Nothing is changed then.
        NotImplementedError
            If variables are given by their numbers to a strategy that divides slots among
            processes.

        Warns
        -----
        RuntimeWarning
            Once, at the second step with the same variables, if a pattern has matched none, or a
            variable of a group that is not frozen has had no gradient.

        Examples
        --------
        >>> import numpy as np
        >>> import rmsjit
        >>> kernel = rmsjit.Variable(np.ones(2), name="dense/kernel")
        >>> bias = rmsjit.Variable(np.ones(2), name="dense/bias")
        >>> opt = rmsjit.RMSprop(0.1, weight_decay=0.5)
        >>> opt.add_group("*/bias", weight_decay=0.0, lr_multiplier=2.0)
        ParameterGroup('*/bias', lr_multiplier=2.0, weight_decay=0.0)
        >>> _ = opt.apply_gradients([(np.zeros(2), kernel), (np.zeros(2), bias)])
        >>> print(kernel.numpy(), bias.numpy())
        [0.95 0.95] [1. 1.]
        """
        given = {
            "learning_rate": learning_rate,
            "lr_multiplier": lr_multiplier,
            "weight_decay": weight_decay,
            "rho": rho,
            "momentum": momentum,
            "epsilon": epsilon,
        }
        settings = {name: value for name, value in given.items() if value is not None}
        return grouped.add_group(
            self._store,
            self._hyperparameters,
            self._has_steps,
            variables,
            {**settings, "frozen": frozen},
            are_divided=self._divides_slots,
        )

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The groups of variables that have settings of their own, as they were added."""
        return self._store.grouping.groups

    def sync(self, var: Any = None, indices: Any = None) -> None:
        """Bring rows of a table up to date before they are read or set (``sparse="exact"``).

        Without it, an overwritten row still receives the updates that it missed, at its next step.

        Parameters
        ----------
        var : ndarray or Variable, optional
            The table; all tables if left out.
        indices : array_like of integers, optional
            The rows; all rows if left out.

        Raises
        ------
        IndexError
            If an index is out of range.
        """
        if self._exact:
            self._engine.sync(var, indices)

    # --- known variables --------------------------------------------------------------------

    @property
    def variables_seen(self) -> list[Variable]:
        """The variables that the optimizer has stepped or built, in order, without copying them.

        Each has the name that its slots and `rebind` use.  Variables whose memory was closed or
        resized are left out.

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
        """Drop a variable and its slots; if it is stepped again, it starts with new slots.

        Otherwise a variable is kept until nothing else references its memory.

        Parameters
        ----------
        var : ndarray, Variable or str
            Any view of the variable's memory, or its name.

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
        self._forget_sums(self._store.named(var))
        forget(self._store, var)

    def rebind(self, old: Any, new: Any = None) -> None:
        """Transfer the state of variables to other memory.

        For variables whose memory changed: read from another file, copied without their
        optimizer, or replaced by an array of the same shape.

        Parameters
        ----------
        old : ndarray, Variable or str
            A variable or its name; or a dict from names to new variables; or a list of new
            variables in the order of `variables_seen`.
        new : ndarray or Variable
            Of the same shape and dtype.  Any state that it has already is dropped.

        Raises
        ------
        KeyError
            If the optimizer does not know a variable.
        TypeError, ValueError
            If a new variable can't be trained, has another shape or dtype than the old one, or
            partly overlaps another in memory.  Nothing is changed then.

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
        self._refuse_to_move("rebind")
        rebind(self._store, old, new, self._catch_up)

    def resize_rows(self, old: Any, new: Any = None) -> None:
        """Keep the slots of a table after rows were added or removed at its end.

        The slots of new rows start from their initial values.

        Parameters
        ----------
        old : ndarray, Variable or str
            The table or its name.
        new : ndarray or Variable, optional
            The table with more or fewer rows.  If left out, `old` itself was resized in place.

        Raises
        ------
        KeyError
            If the optimizer does not know the table.
        TypeError, ValueError
            If the new table can't be trained, or has another dtype or shape of rows.

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
        self._refuse_to_move("resize_rows")
        epsilon = first_epsilon(self._store.form, self._hyperparameters)
        resize_rows(self._store, old, new, epsilon, self._catch_up)

    def _shown(self) -> dict[str, Any]:
        """What `repr` and notebooks show, without calling anything of the user's."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """What a notebook shows: settings, variables and the memory of their slots."""
        from rmsjit.optimizers.notebook import page

        entries = list(self._store.entries.values())
        return page(type(self).__name__, self._shown(), entries)

    def _catch_up(self, entry: Entry) -> None:
        """Bring all rows of a table up to date, without importing Numba for other variables."""
        if entry.clock is not None:
            self._engine.catch_up(entry)

    def _forget_sums(self, entry: Entry) -> None:
        """Drop what an optimizer holds of a variable besides slots."""

    def _refuse_to_move(self, what: str) -> None:
        """Raise `RuntimeError` if variables can't be moved now; by default they always can."""

    def get_slot_names(self) -> list[str]:
        """The names of the slots of each variable."""
        names = [*self._store.form.slot_names, *self._store.added_slot_names()]
        return list(dict.fromkeys(names))

    def _slot(self, var: Any, slot_name: str) -> Variable | None:
        self.sync(var)
        return self._store.slot_of(var, slot_name)

    def _created(self) -> list[Variable]:
        self.sync()
        return list(self._store.created.values())

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy or pickle: all rows up to date, without the engine."""
        if self._store.entries:
            self._refuse_divided("a copy of an optimizer with state")
        self.sync()
        if "_engine" in vars(self):
            self._engine.clear()  # plans may hold the last reference to a variable
        return {name: value for name, value in vars(self).items() if name != "_engine"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch_gathers()


def is_integer_scalar(array: Any) -> bool:
    """Whether a value is an array that can count steps."""
    return (
        isinstance(array, np.ndarray)
        and array.ndim == 0
        and array.dtype.kind in "iu"
        and array.dtype.isnative
        and array.flags.aligned
    )
