"""The common part of both optimizers: common mixins and arguments, copies, notebooks."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from rmsjit.autodiff import hooks
from rmsjit.optimizers.arguments import checked_function, checked_name, enrolled
from rmsjit.optimizers.gradient_scale import GradientScale
from rmsjit.optimizers.groups import Groups
from rmsjit.optimizers.known_variables import KnownVariables
from rmsjit.optimizers.precision import Precision
from rmsjit.optimizers.reports import Reports
from rmsjit.optimizers.slots import Slots
from rmsjit.optimizers.structures import Structures
from rmsjit.optimizers.taking_steps import TakingSteps
from rmsjit.rule.form import Form
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.state.memories import SlotAllocator
from rmsjit.state.slots import SlotStore
from rmsjit.steps.settings import StepSettings

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
        Dtype of the rule's slots, one for all or by name, instead of the variable's.  With
        "bfloat16" a slot takes half the memory, with "8bit" a quarter, and is rounded
        stochastically.  In 8 bits, `get_slot` gives a copy, and only tables in C order with rows of
        16 elements or more may have sparse gradients.
    seed : int, default 0
        Seed of the bits of stochastic rounding.
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


class Optimizer(
    Structures, Groups, Precision, GradientScale, TakingSteps, Reports, KnownVariables, Slots
):
    """The common part of `rmsjit.RMSprop` and `rmsjit.train.RMSPropOptimizer`."""

    def __init__(
        self,
        name: str,
        form: Form,
        hyperparameters: Hyperparameters,
        settings: StepSettings,
        slot_allocator: SlotAllocator | None,
    ) -> None:
        self._name = checked_name(name)
        self._hyperparameters = hyperparameters
        allocator = checked_function("slot_allocator", slot_allocator)
        self._store = SlotStore(self._name, form, allocator)
        if settings.exact and form.without_closed_form:
            raise ValueError(f'this form can\'t have sparse="exact": {form.without_closed_form}')
        # Last of all: optimizers that fail to be made must not be counted.
        self._settings = settings._replace(place=enrolled(settings.strategy))
        self._watch_gathers()

    def _watch_gathers(self) -> None:
        """Bring rows up to date whenever `rmsjit.gather` is about to read them."""
        if self._settings.exact:
            hooks.before_gather(self.sync)

    def _shown(self) -> dict[str, Any]:
        """What `repr` and notebooks show, without calling anything of the user's."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """What a notebook shows: settings, variables and the memory of their slots."""
        from rmsjit.optimizers.notebook import page

        entries = list(self._store.entries.values())
        return page(type(self).__name__, self._shown(), entries)

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
