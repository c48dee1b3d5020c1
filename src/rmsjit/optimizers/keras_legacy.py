"""`RMSprop`: the interface of ``tf.keras.optimizers.legacy.RMSprop``."""

from __future__ import annotations

import inspect
import math
import reprlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from rmsjit.nest import flatten
from rmsjit.optimizers.accumulation import Accumulator
from rmsjit.optimizers.arguments import (
    Nonfinite,
    Reduction,
    Rounding,
    Sparse,
    checked_clip_weights,
    checked_factor,
    checked_flag,
    checked_function,
    checked_functions,
    checked_gradient_scale,
    checked_nonfinite,
    checked_nonnegative,
    checked_rate,
    checked_weight_decay,
    refuse_variables,
    with_schedule,
)
from rmsjit.optimizers.base import with_shared_parameters
from rmsjit.optimizers.elsewhere import explaining_arguments
from rmsjit.optimizers.fixed import fixed_at_construction
from rmsjit.optimizers.grouped import group_configs
from rmsjit.optimizers.one_step import BlockOptimizer
from rmsjit.rule.averaging import Averaging
from rmsjit.rule.clipping import NO_CLIPPING, Clipping
from rmsjit.rule.form import Form
from rmsjit.rule.hyperparameters import (
    Hyperparameters,
    as_number,
    is_schedule,
    is_used,
    positive,
)
from rmsjit.rule.loss_scale import DynamicLossScale, LossScale, checked_loss_scale
from rmsjit.rule.presets import keras_legacy, with_terms
from rmsjit.state.entries import stem_of
from rmsjit.state.slots import SlotAllocator
from rmsjit.steps.nonfinite import PROPAGATE, RAISE, accepts, finite_gradients
from rmsjit.steps.pairs import check_counter, naming, pairs_of, present_pairs
from rmsjit.steps.reduction import Strategy
from rmsjit.variables import Variable

Pairs = list[tuple[Any, Any]]
PairsTransform = Callable[[Pairs], Iterable[tuple[Any, Any]]]
Aggregator = Callable[[Pairs], Sequence[Any]]

_HOOKS = ("_transform_unaggregated_gradients", "_aggregate_gradients", "_transform_gradients")
DEFAULT_EPSILON = 1e-7
_OWN_PART = "rmsjit"  # of a configuration: a name that no argument of Keras has
_SINCE_KERAS_2_11 = {  # only in configurations of the optimizers that replaced the legacy ones
    "ema_momentum",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
    "is_legacy_optimizer",
    "jit_compile",
    "loss_scale_factor",
    "use_ema",
}


def _checked_epsilon(name: str, value: float | None) -> float:
    number = DEFAULT_EPSILON if value is None else as_number(name, value)
    return positive(name, number or DEFAULT_EPSILON)


def _check_form(form: Form, centered: bool, uses_momentum: bool, numbers: dict[str, Any]) -> None:
    """Raise `ValueError` if other arguments need a setting that the form does not have."""
    decays = is_used(numbers["weight_decay"])
    clips = not math.isinf(numbers["clip_weights"])
    for name, asked, has in (
        ("centered=True", centered, form.centered),
        ("momentum", uses_momentum, form.has_momentum),
        ("weight_decay", decays, form.weight_decay is not None),
        ("clip_weights", clips, form.clip_weights),
    ):
        if asked and not has:
            raise ValueError(f"{name} is not for a form without it, got {form}")
    if form.clip_weights and not clips:
        raise ValueError("a form that clips weights needs clip_weights, got None")


def _policy(nonfinite: Nonfinite, loss_scale: LossScale | None) -> Nonfinite:
    """What to do with a gradient that is not finite: a dynamic loss scale has to skip it."""
    if not isinstance(loss_scale, DynamicLossScale):
        return nonfinite
    if checked_nonfinite(nonfinite) == RAISE:
        raise ValueError(
            'nonfinite must be "skip" or left out with a dynamic loss_scale, which skips such '
            'steps, got "raise"'
        )
    return "skip"


def _hyperparameter(name: str, check: Callable[[str, Any], Any], doc: str, number: str = "") -> Any:
    """A property for a hyperparameter, stored under `number` if that differs from its name."""

    def read(optimizer: RMSprop) -> Any:
        return optimizer._hyperparameters[number or name]

    def write(optimizer: RMSprop, value: Any) -> None:
        optimizer._set_hyperparameter(number or name, check(name, value))

    return property(read, write, doc=doc)


def _clipping_bound(name: str, doc: str) -> Any:
    """A property for a bound of the optimizer's `Clipping`."""

    def read(optimizer: RMSprop) -> Any:
        return getattr(optimizer._clipping, name)

    def write(optimizer: RMSprop, value: Any) -> None:
        optimizer._clipping = replace(optimizer._clipping, **{name: value})

    return property(read, write, doc=doc)


@with_shared_parameters
class RMSprop(BlockOptimizer):
    """RMSprop as ``tf.keras.optimizers.legacy.RMSprop`` computes it, on NumPy arrays in place.

    With ``g`` the clipped gradient::

        rms <- rho*rms + (1 - rho)*g*g
        mg  <- rho*mg  + (1 - rho)*g                  if centered
        v    = max(rms - mg*mg, 0)  or  rms
        u    = lr*g / (sqrt(v) + epsilon)             if momentum is 0
        u    = lr*g / sqrt(v + epsilon)               otherwise
        mom <- momentum*mom + u ;  variable <- variable - mom    (or - u without momentum)

    All slots start from zero.  The `momentum` given at construction decides whether epsilon is
    inside the root, as in tf-keras; setting it later adds the momentum slot but does not move
    epsilon.

    Parameters
    ----------
    learning_rate : float, callable or LearningRateSchedule, default 0.001
        A number, a 0-d array, a function, or a schedule of `iterations`.  A function either takes
        no arguments or takes the step, which is `iterations`: ``lambda step: 0.1 / (step + 1)``.
        Its signature tells which.  The same holds for `rho`, `momentum` and `weight_decay`.
    rho : float or callable, default 0.9
        Decay factor of the averages, between 0 and 1.
    momentum : float or callable, default 0.0
        Between 0 and 1.
    epsilon : float, default 1e-7
        Keeps the denominator above zero; 0 and None mean 1e-7, as in tf-keras.
    centered : bool, default False
        Normalise by the estimated variance of the gradient instead of its mean square.
    name : str, default "RMSprop"
        Prefix of slot names.
    clipvalue : float, optional
        Clip each element of a gradient to ``[-clipvalue, clipvalue]``.
    clipnorm : float, optional
        Scale each gradient down to at most this norm.
    global_clipnorm : float, optional
        Scale all gradients of a step down so that their joint norm is at most this.
    lr : float, optional
        Old name of `learning_rate`.
    decay : float, default 0.0
        Divide the learning rate by ``1 + decay*iterations``.
    gradient_transformers : sequence of callable, optional
        Each takes a list of (gradient, variable) pairs, already clipped, and returns a new list.
    gradient_aggregator : callable, optional
        Takes the list of (gradient, variable) pairs and returns the gradients summed over all
        replicas, instead of the strategy.
    form : Form, optional
        A form of the rule other than Keras's, such as that of another library.  It uses the
        `epsilon`, `momentum` and other numbers given here, and says how weights decay.
    use_ema : bool, default False
        Keep a moving average of each variable, in a slot "average", as in Keras 3; see `averaged`.
        The first step copies the variable.
    ema_momentum : float, default 0.99
        The weight of the old average, between 0 and 1.
    ema_overwrite_frequency : int, optional
        Overwrite the variables by their averages every so many steps.
    gradient_accumulation_steps : int, optional
        Take one step for so many calls of `apply_gradients`, with the mean of their gradients, as
        in Keras 3; see `flush`.  `iterations` counts steps.  A schedule is given the number of
        calls.
    gradient_accumulation_reduction : {"mean", "sum"}, default "mean"
        What a step takes of the gradients of its calls.
    loss_scale : float, "dynamic" or DynamicLossScale, optional
        Divide gradients by this, for a loss that was multiplied by it (`scale_loss`), so that small
        gradients do not vanish in half precision.  A dynamic scale looks for the largest that works
        and skips steps with a NaN or an infinity, as ``nonfinite="skip"`` does.
    *shared*

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If a number is out of range, `clipnorm` and `global_clipnorm` are both given, or the form
        lacks a setting that another argument needs.

    Notes
    -----
    The clamp ``max(..., 0)`` is not in TensorFlow: in other libraries, a constant gradient turns a
    variable of the centered form into NaN when rounding makes the variance negative.  The clamp
    does not bound the step, which tends to ``lr*g/epsilon`` as the variance vanishes.

    If ``(1 - rho)*g*g`` overflows the variable's dtype (at rho 0.9, gradients from 810 in float16
    and from 6e19 in float32), ``rms`` becomes infinite, as in TensorFlow, and that element never
    moves again.  `nonfinite` only checks gradients and does not detect this; a `clipvalue` below
    these bounds prevents it.

    Complex gradients are squared as ``g*g``, as in TensorFlow.  That does not guarantee descent:
    ``abs(z - 1j)`` may grow.  ``form=rmsjit.Form(complex_square="modulus")`` divides by the modulus
    instead, and ``z.view(float)`` with ``g.view(float)`` trains real and imaginary parts
    separately, as PyTorch does.

    State belongs to a variable's memory, not to the Python object: ``W``, ``W[...]`` and
    ``W.reshape(-1)`` are the same variable.  Copy or pickle an optimizer together with its
    variables, so that the copied state belongs to the copied variables.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5: RMSProp", Neural Networks for Machine Learning, 2012.

    Examples
    --------
    One step of minimising ``v**2 / 2``:

    >>> import rmsjit
    >>> v = rmsjit.Variable(10.0)
    >>> opt = rmsjit.RMSprop(learning_rate=0.1)
    >>> int(opt.apply_gradients([(v.numpy(), v)]).numpy())
    1
    >>> print(v.numpy())
    9.683772
    """

    _momentum_came_later = False
    _is_hooked = False  # whether a subclass overrides one of `_HOOKS`

    @explaining_arguments()
    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: Any = 0.9,
        momentum: Any = 0.0,
        epsilon: float | None = DEFAULT_EPSILON,
        centered: bool = False,
        name: str = "RMSprop",
        *,
        clipvalue: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        lr: Any = None,
        decay: float = 0.0,
        gradient_transformers: Sequence[PairsTransform] | None = None,
        gradient_aggregator: Aggregator | None = None,
        form: Form | None = None,
        weight_decay: Any = 0.0,
        decoupled_weight_decay: bool = True,
        clip_weights: float | None = None,
        maximize: bool = False,
        grad_scale: float = 1.0,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        gradient_accumulation_steps: int | None = None,
        gradient_accumulation_reduction: Reduction = "mean",
        loss_scale: Any = None,
        master_weights: bool = False,
        rounding: Rounding = "nearest",
        state_dtype: Any = None,
        seed: int = 0,
        sparse: Sparse = "rows",
        nonfinite: Nonfinite = "propagate",
        track_norms: bool = False,
        num_threads: int | None = None,
        slot_allocator: SlotAllocator | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        if lr is not None:
            refuse_variables("learning_rate", learning_rate)
            warnings.warn("lr is the old name of learning_rate", DeprecationWarning, stacklevel=3)
            learning_rate = lr
        scale = checked_gradient_scale(maximize, grad_scale)
        of_loss = checked_loss_scale(loss_scale)
        nonfinite = _policy(nonfinite, of_loss)
        self._clipping = Clipping(clipvalue, clipnorm, global_clipnorm, scale, of_loss)
        self.gradient_transformers: list[PairsTransform] = checked_functions(
            "gradient_transformers", gradient_transformers
        )
        self.gradient_aggregator: Aggregator | None = checked_function(
            "gradient_aggregator", gradient_aggregator
        )
        numbers = {
            "learning_rate": checked_rate("learning_rate", learning_rate),
            "rho": checked_factor("rho", rho),
            "momentum": checked_factor("momentum", momentum),
            "epsilon": _checked_epsilon("epsilon", epsilon),
            "decay": checked_nonnegative("decay", decay),
            "weight_decay": checked_weight_decay("weight_decay", weight_decay),
            "clip_weights": checked_clip_weights("clip_weights", clip_weights),
        }
        uses_momentum = is_used(numbers["momentum"])
        if form is None:
            form = with_terms(
                keras_legacy(centered=bool(centered), momentum=uses_momentum),
                decays=is_used(numbers["weight_decay"]),
                decoupled=checked_flag("decoupled_weight_decay", decoupled_weight_decay),
                clips=not math.isinf(numbers["clip_weights"]),
            )
        elif not isinstance(form, Form):
            raise TypeError(f"form must be a Form or None, got {form!r}")
        _check_form(form, bool(centered), uses_momentum, numbers)
        averaging = Averaging(ema_momentum, ema_overwrite_frequency)
        if checked_flag("use_ema", use_ema):
            form = form.with_average()
        form = self._with_precision(form, master_weights, rounding, state_dtype)
        if gradient_accumulation_steps is not None:
            self._accumulator = Accumulator(
                gradient_accumulation_steps, gradient_accumulation_reduction, nonfinite
            )
        hyperparameters = Hyperparameters(
            numbers,
            counts_steps=form.bias_correction,
            in_float32=form.float32_numbers,
            averaging=averaging if form.has_average else None,
            calls_per_step=self.gradient_accumulation_steps or 1,
        )
        super().__init__(
            name,
            form,
            hyperparameters,
            sparse,
            nonfinite,
            num_threads,
            slot_allocator,
            strategy,
            track_norms,
            seed,
        )

    # --- one step ---------------------------------------------------------------------------

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
    ) -> Variable:
        """Update variables in place, given their gradients.

        Parameters
        ----------
        grads_and_vars : iterable of (gradient, variable)
            A variable is a writeable array or a `Variable`.  Its gradient is an array, `Variable`
            or nested list of the same shape, an `IndexedSlices` of some of its rows, or None,
            which leaves the variable unchanged.
            A variable may occur more than once; the updates are then applied in order.
        name : str, optional
            Accepted for compatibility and ignored, since there is no graph.
        experimental_aggregate_gradients : bool, default True
            Whether a strategy sums the gradients over replicas.  No effect without a strategy.

        Returns
        -------
        Variable
            `iterations`, increased by one.  An empty list changes nothing.

        Raises
        ------
        TypeError
            If the pairs are malformed, or a gradient or variable is of a wrong type or dtype.
        ValueError
            If no variable has a gradient, shapes differ, a variable is read-only, or two
            variables partly overlap in memory.

        Notes
        -----
        Everything is checked before the first write: an error leaves variables, slots and
        `iterations` unchanged.
        """
        aggregate = bool(experimental_aggregate_gradients)
        block = self._block if self._blocks else None
        if block is not None:
            block.add(pairs_of(grads_and_vars), aggregate)
            return self._iterations
        try:
            pairs = pairs_of(grads_and_vars)
        except BaseException as error:
            self._refuse(error)
        self._apply(pairs, aggregate)
        return self._iterations

    def _apply(self, pairs: tuple[Any, ...], aggregate: bool) -> None:
        counter = self._counter
        if pairs and not counter.flags.writeable and self._strategy is None:
            check_counter(counter)
        if self._accumulator is not None:
            if pairs:
                self._accumulate(self._accumulator, pairs, aggregate)
        elif pairs and (
            self._is_hooked or self.gradient_transformers or self.gradient_aggregator is not None
        ):
            self._step_through_hooks(pairs, counter, aggregate)
        elif pairs or self._strategy is not None:
            self._step(pairs, self._clipping, counter, aggregate)

    def minimize(
        self,
        loss: Any,
        var_list: Any,
        grad_loss: Any = None,
        name: str | None = None,
        tape: Any = None,
    ) -> Variable:
        """Compute the gradients of a loss and update the variables once.

        Parameters
        ----------
        loss : callable, or a value with its `tape`
            Returns the loss, computed by `autograd.numpy` or NumPy.  A function of the variables
            takes them as arguments, in the order of ``rmsjit.nest.flatten(var_list)``; one without
            arguments reads `rmsjit.Variable`.  If the loss is an array, its sum is minimised.
        var_list : list, tuple, nested structure, or a callable that returns one
            The variables, of which a function of the variables may take plain arrays.  A callable
            is called after a loss without arguments.  May be empty.
        grad_loss : array_like, optional
            The upstream gradient, of the shape of `loss`; ones by default.
        name : str, optional
            As for `apply_gradients`.
        tape : GradientTape, optional
            The tape that recorded `loss`, if `loss` is a value.

        Returns
        -------
        Variable
            `iterations`.

        Raises
        ------
        ValueError
            If `loss` is a value and there is no `tape`, or the loss depends on no variable.
        TypeError
            If an entry of `var_list` is not a variable.

        Examples
        --------
        >>> import rmsjit
        >>> v = rmsjit.Variable(10.0)
        >>> opt = rmsjit.RMSprop(learning_rate=0.1)
        >>> print(opt.minimize(lambda: (v ** 2) / 2.0, [v]).numpy(), v.numpy())
        1 9.683772

        The loss as a function of plain arrays:

        >>> import numpy as np
        >>> w = np.array([10.0])
        >>> _ = rmsjit.RMSprop(learning_rate=0.1).minimize(lambda w: (w**2).sum() / 2, [w])
        >>> print(w)
        [9.68377224]
        """
        pairs = self._compute_gradients(loss, var_list, grad_loss=grad_loss, tape=tape)
        return self.apply_gradients(pairs, name=name)

    def get_gradients(self, loss: Any, params: Any) -> list[Any]:
        """The gradients of a loss with respect to `params`.

        Parameters
        ----------
        loss : callable
            As for `minimize`.
        params : nested structure of Variable

        Returns
        -------
        list of ndarray or IndexedSlices

        Raises
        ------
        ValueError
            If the loss does not depend on one of them.
        """
        pairs = self._compute_gradients(loss, params)
        for position, (gradient, variable) in enumerate(pairs):
            if gradient is None:
                raise ValueError(
                    f"the loss does not depend on {naming(variable, position)}, or not in a way "
                    f"that can be differentiated"
                )
        return [gradient for gradient, _ in pairs]

    def get_updates(self, loss: Any, params: Any) -> list[Variable]:
        """Compute the gradients of a loss and update `params` once.

        Parameters
        ----------
        loss, params
            As for `get_gradients`.

        Returns
        -------
        list of Variable
            `iterations` alone.

        Raises
        ------
        ValueError
            If the loss does not depend on one of them; nothing is updated then.
        """
        gradients = self.get_gradients(loss, params)
        return [self.apply_gradients(zip(gradients, flatten(params), strict=True))]

    def _compute_gradients(
        self, loss: Any, var_list: Any, grad_loss: Any = None, tape: Any = None
    ) -> list[tuple[Any, Any]]:
        from rmsjit.autodiff import losses

        takes_variables = callable(loss) and losses.takes_arguments(loss)
        compute = losses.gradients_of_arguments if takes_variables else losses.gradients_of
        scaled, upstream = self._upstream(loss, grad_loss)
        gradients, variables = compute(scaled, var_list, upstream, tape)
        return list(zip(gradients, variables, strict=True))

    # --- hooks for subclasses ---------------------------------------------------------------

    def _transform_unaggregated_gradients(self, grads_and_vars: Pairs) -> Pairs:
        """Change this replica's gradients before they are summed; by default do nothing."""
        return grads_and_vars

    def _aggregate_gradients(self, grads_and_vars: Pairs) -> Pairs:
        """Sum the gradients over all replicas.

        By default call `gradient_aggregator`.  Without one, leave the gradients unchanged: a
        strategy sums them later.
        """
        if self.gradient_aggregator is None:
            return grads_and_vars
        return list(self.gradient_aggregator(grads_and_vars))

    def _transform_gradients(self, grads_and_vars: Pairs) -> Pairs:
        """Clip the summed gradients, then call `gradient_transformers`.

        Only called if something needs the clipped gradients; otherwise the update clips without
        copying them.
        """
        from rmsjit.steps.norms import clipped  # imports Numba

        pairs = clipped(grads_and_vars, self._clipping)
        for transform in self.gradient_transformers:
            pairs = list(transform(pairs))
        return pairs

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._is_hooked = any(_overrides(cls, name) for name in _HOOKS)

    def _step_with(self, pairs: tuple[Any, ...], aggregate: bool) -> None:
        hooked = self.gradient_transformers or self.gradient_aggregator is not None
        if self._is_hooked or hooked:
            self._step_through_hooks(pairs, self._counter, aggregate)
        else:
            self._step(pairs, self._clipping, self._counter, aggregate)

    def _step_through_hooks(
        self, given: tuple[Any, ...], counter: NDArray[Any], aggregate: bool
    ) -> None:
        try:
            self._refuse_hooks_of_scaled_gradients()
            prepared = self._through_hooks(given, aggregate)
        except BaseException as error:
            self._refuse(error)
        if prepared is None:
            self.skipped_steps += 1
        else:
            pairs, clipping, aggregate, finite, norms = prepared
            self._step(pairs, clipping, counter, aggregate, finite)
            if norms is not None:
                self._engine.last_norm, self._engine.last_norms = math.hypot(*norms), norms

    def _refuse_hooks_of_scaled_gradients(self) -> None:
        """Raise `NotImplementedError` with a loss scale, without which gradients may vanish."""
        if self._clipping.loss_scale is not None:
            raise NotImplementedError(
                "loss_scale is not for gradient_transformers, gradient_aggregator and the methods "
                "that replace them: they would see gradients without the scale in the dtypes of "
                "their variables, where small ones are 0"
            )

    def _through_hooks(
        self, given: tuple[Any, ...], aggregate: bool
    ) -> tuple[tuple[Any, ...], Clipping, bool, bool, tuple[float, ...] | None] | None:
        """Pairs for the step, its clipping, whether a strategy sums, whether all is finite; norms.

        Those are the norms by group before clipping, None if the step finds them.  None if the step
        is to be skipped.
        """
        pairs = present_pairs(given)
        if self.groups:
            moving = [pair for pair in pairs if not self._is_frozen(pair[1])]
            if not moving:  # the step counts all the same
                return pairs_of(pairs), self._clipping, aggregate, True, None
            pairs = moving
        replaced = self.gradient_aggregator is not None or _overrides(
            type(self), "_aggregate_gradients"
        )
        if aggregate:
            pairs = list(self._transform_unaggregated_gradients(pairs))
            pairs = list(self._aggregate_gradients(pairs))
        if self._strategy is not None and aggregate and not replaced:
            if self.gradient_transformers or _overrides(type(self), "_transform_gradients"):
                raise NotImplementedError(
                    "gradient_transformers and _transform_gradients can't see what a strategy "
                    "sums: sum by gradient_aggregator, or before apply_gradients with "
                    "experimental_aggregate_gradients=False"
                )
            return pairs_of(pairs), self._clipping, True, True, None
        pairs = present_pairs(pairs_of(pairs))
        finite = self._nonfinite == PROPAGATE or self._are_finite(pairs)
        if not finite and self._strategy is None:  # ranks skip in their step, all together
            return None
        norms = self._norms_of(pairs)
        pairs = list(self._transform_gradients(pairs))
        return pairs_of(pairs), NO_CLIPPING, False, finite, norms

    def _norms_of(self, pairs: Pairs) -> tuple[float, ...] | None:
        """The norms by group of gradients that are about to be clipped, if they are wanted."""
        if not (self._track_norms or self._clipping.by_norm):
            return None
        from rmsjit.steps.norms import norms_by_group  # imports Numba

        store = self._store
        rows = [store.grouping.row_of(store.find(v), stem_of(v)) for _, v in pairs]
        return norms_by_group(pairs, rows, 1 + len(self.groups))

    def _is_frozen(self, variable: Any) -> bool:
        return self._store.grouping.freezes(self._store.find(variable), stem_of(variable))

    def _are_finite(self, pairs: Pairs) -> bool:
        """Whether all gradients are finite; an error names those that must be and are not."""
        finite = finite_gradients([gradient for gradient, _ in pairs])
        return accepts(self._nonfinite, finite, lambda k: naming(pairs[k][1], k))

    # --- hyperparameters --------------------------------------------------------------------

    learning_rate: Any = _hyperparameter(
        "learning_rate",
        checked_rate,
        "A float, a function without arguments or of the step, or a schedule.",
    )
    lr: Any = _hyperparameter("lr", checked_rate, "Old name of `learning_rate`.", "learning_rate")
    rho: Any = _hyperparameter("rho", checked_factor, "Decay factor of the averages.")
    momentum: Any = _hyperparameter(
        "momentum",
        checked_factor,
        "Raising it from 0 adds the momentum slot and does not move epsilon.",
    )
    epsilon: Any = _hyperparameter(
        "epsilon", _checked_epsilon, "The small number in the denominator."
    )
    weight_decay: Any = _hyperparameter(
        "weight_decay", checked_weight_decay, "Weight decay; 0 for forms without it."
    )
    decay: Any = _hyperparameter(
        "decay", checked_nonnegative, "The learning rate is divided by ``1 + decay*iterations``."
    )
    clipvalue: float | None = _clipping_bound(
        "clipvalue", "Bound on each element of a gradient, or None."
    )
    clipnorm: float | None = _clipping_bound(
        "clipnorm", "Bound on the norm of each gradient, or None."
    )
    global_clipnorm: float | None = _clipping_bound(
        "global_clipnorm", "Bound on the joint norm of all gradients, or None."
    )

    def _set_hyperparameter(self, name: str, value: Any) -> None:
        """Set a checked value for the next step."""
        form = self.form
        if name == "weight_decay" and is_used(value) and form.weight_decay is None:
            raise ValueError(f"weight_decay is not for a form without it, got {form}")
        adds_slot = name == "momentum" and is_used(value) and not form.has_momentum
        legacy = keras_legacy(centered=form.centered, momentum=False)
        if adds_slot and form.without_additions != legacy:
            raise ValueError(
                f"momentum is not for a form without it, got {form}; such a form has momentum "
                f"from construction or not at all"
            )
        self._hyperparameters[name] = value
        if adds_slot:
            self._store.form = form.with_momentum()
            self._momentum_came_later = True

    @fixed_at_construction
    def clip_weights(self) -> float | None:
        """Bound on each element of a variable, or None."""
        bound: float = self._hyperparameters["clip_weights"]
        return None if math.isinf(bound) else bound

    @property
    def form(self) -> Form:
        """The form of the rule, including its slots."""
        return self._store.form

    @property
    def centered(self) -> bool:
        """Whether steps are normalised by the estimated variance; fixed at construction."""
        return self.form.centered

    @property
    def name(self) -> str:
        """The prefix of slot names."""
        return self._name

    # --- configuration ----------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as a JSON-serialisable dict in tf-keras's format.

        A callable becomes the value that the last step used, or its current value if there was no
        step; a schedule becomes its own configuration.  Variables of groups become their numbers in
        the order in which they got slots.  Arguments that tf-keras does not have are there if they
        are used: `sparse`, `nonfinite`, `track_norms` and `num_threads` in a dict "rmsjit".

        Raises
        ------
        TypeError
            If a custom schedule can't be serialised, or a variable of a group has no slots yet.
        NotImplementedError
            If there are groups and a strategy that divides slots among processes.
        """
        if self.groups:
            self._refuse_divided("a configuration with groups, which numbers variables,")
        config = self._own_config()
        further = {"groups": group_configs(self._store), _OWN_PART: self._run_settings()}
        return config | {name: part for name, part in further.items() if part}

    def _own_config(self) -> dict[str, Any]:
        """The configuration without groups of variables."""
        return self._arguments(self._serialized)

    def _arguments(self, shown: Callable[[str], Any]) -> dict[str, Any]:
        """The constructor's arguments; `shown` gives the value of a hyperparameter by name."""
        arguments: dict[str, Any] = {"name": self._name}
        for key in ("clipnorm", "clipvalue", "global_clipnorm"):
            if getattr(self, key) is not None:
                arguments[key] = getattr(self, key)
        for key in ("learning_rate", "decay", "rho", "momentum", "epsilon"):
            arguments[key] = shown(key)
        if self.maximize:
            arguments["maximize"] = True
        if self.grad_scale != 1.0:
            arguments["grad_scale"] = self.grad_scale
        if self.use_ema:
            for key in ("use_ema", "ema_momentum", "ema_overwrite_frequency"):
                arguments[key] = getattr(self, key)
        if self._accumulator is not None:
            for key in ("gradient_accumulation_steps", "gradient_accumulation_reduction"):
                arguments[key] = getattr(self, key)
        arguments |= self._arguments_of_scale() | self._arguments_of_precision()
        return arguments | {"centered": self.centered} | self._arguments_of_form(shown)

    def _arguments_of_form(self, shown: Callable[[str], Any]) -> dict[str, Any]:
        """The arguments that tf-keras does not have, unless the form is tf-keras's own."""
        form = self.form.without_additions
        if form == keras_legacy(centered=form.centered, momentum=form.has_momentum):
            return {}
        late = keras_legacy(centered=form.centered, momentum=False).with_momentum()
        if form == late and self._momentum_came_later:
            return {}
        return {
            "form": form.to_dict(),
            "weight_decay": shown("weight_decay"),
            "clip_weights": self.clip_weights,
        }

    def _serialized(self, name: str) -> Any:
        given = self._hyperparameters[name]
        if is_schedule(given):
            from rmsjit import schedules

            try:
                return schedules.serialize(given)
            except NotImplementedError as error:
                raise TypeError(f"{name} can't be serialised: {error}") from error
        return self._hyperparameters.last(name)

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> RMSprop:
        """Make a new optimizer from the arguments that `get_config` returns, without state.

        Parameters
        ----------
        config : dict
        custom_objects : dict, optional
            Custom schedule classes by name.

        Raises
        ------
        TypeError
            If it is the configuration of another optimizer, such as Keras's RMSprop since 2.11.
        """
        arguments = dict(config)
        groups = arguments.pop("groups", ())
        own = arguments.pop(_OWN_PART, {})
        _refuse_newer_keras(arguments, inspect.signature(cls).parameters)
        if "lr" in arguments:
            arguments["learning_rate"] = arguments.pop("lr")
        if isinstance(arguments.get("form"), dict):
            arguments["form"] = Form.from_dict(arguments["form"])
        optimizer = cls(**with_schedule(arguments, custom_objects), **own)
        for group in groups:
            optimizer.add_group(**with_schedule(group, custom_objects))
        return optimizer

    def _shown(self) -> dict[str, Any]:
        arguments = self._arguments(self._hyperparameters.__getitem__)
        # Further arguments of a subclass, read without running its code.
        known = inspect.signature(RMSprop.__init__).parameters
        for name in inspect.signature(type(self).__init__).parameters:
            if name in vars(self) and name not in known:
                arguments[name] = vars(self)[name]
        if self.groups:
            arguments["groups"] = list(self.groups)
        return arguments | {"iterations": int(self._iterations)}

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self._shown().items())
        return f"<rmsjit.{type(self).__name__} {shown}>"


def _refuse_newer_keras(config: dict[str, Any], known: Iterable[str]) -> None:
    """Raise `TypeError`, with the equivalent `form`, for a configuration of Keras's new RMSprop."""
    unknown = sorted(_SINCE_KERAS_2_11 & config.keys() - set(known))
    if not unknown or config.get("is_legacy_optimizer"):
        config.pop("is_legacy_optimizer", None)
        return
    if "jit_compile" in unknown or "is_legacy_optimizer" in unknown:
        title, form = "tf_keras.optimizers.RMSprop since 2.11", "tf_keras"
    else:
        title, form = "keras.optimizers.RMSprop of Keras 3", "keras"
    raise TypeError(
        f"this is the configuration of {title} (it has {', '.join(unknown)}), and not of the "
        f"legacy optimizer: rmsjit.forms.from_config(config) makes an optimizer of its form, "
        f"rmsjit.forms.{form}, which always has epsilon inside the root"
    )


def _overrides(cls: type[RMSprop], method: str) -> bool:
    return getattr(cls, method) is not getattr(RMSprop, method)
