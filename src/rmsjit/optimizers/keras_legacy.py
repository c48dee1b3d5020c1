"""`RMSprop`: the interface of ``tf.keras.optimizers.legacy.RMSprop``."""

from __future__ import annotations

import inspect
import math
import reprlib
import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from rmsjit.optimizers.arguments import (
    Nonfinite,
    Reduction,
    Rounding,
    Sparse,
    checked_calls,
    checked_clip_weights,
    checked_factor,
    checked_flag,
    checked_function,
    checked_functions,
    checked_gradient_scale,
    checked_nonfinite,
    checked_rate,
    checked_reduction,
    checked_settings,
    checked_weight_decay,
    refuse_variables,
)
from rmsjit.optimizers.averages import Averages
from rmsjit.optimizers.base import Optimizer, with_shared_parameters
from rmsjit.optimizers.blocks import Blocks
from rmsjit.optimizers.elsewhere import explaining_arguments
from rmsjit.optimizers.keras_config import arguments_of, config_of, from_config
from rmsjit.optimizers.keras_hooks import Aggregator, PairsTransform
from rmsjit.optimizers.keras_hyperparameters import (
    DEFAULT_EPSILON,
    KerasHyperparameters,
    checked_keras_epsilon,
)
from rmsjit.optimizers.losses import Losses
from rmsjit.rule.averaging import Averaging
from rmsjit.rule.checks import is_used, nonnegative_number
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.form import Form
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.rule.loss_scale import DynamicLossScale, LossScale, checked_loss_scale
from rmsjit.rule.presets import keras_legacy, with_terms
from rmsjit.state.entries import Entry
from rmsjit.state.memories import SlotAllocator
from rmsjit.steps.nonfinite import RAISE
from rmsjit.steps.strategy import Strategy
from rmsjit.variables import Variable


def _checked_form(
    form: Form | None, centered: Any, decoupled: Any, numbers: dict[str, Any]
) -> Form:
    """The form that was given, or tf-keras's with what the numbers use."""
    uses_momentum, centered = is_used(numbers["momentum"]), checked_flag("centered", centered)
    if form is None:
        form = with_terms(
            keras_legacy(centered=centered, momentum=uses_momentum),
            decays=is_used(numbers["weight_decay"]),
            decoupled=checked_flag("decoupled_weight_decay", decoupled),
            clips=not math.isinf(numbers["clip_weights"]),
        )
    elif not isinstance(form, Form):
        raise TypeError(f"form must be a Form or None, got {form!r}")
    _check_form(form, centered, uses_momentum, numbers)
    return form


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
            raise ValueError(f"{name} needs a form that has it, got {form}")
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


@with_shared_parameters
class RMSprop(KerasHyperparameters, Averages, Losses, Optimizer):
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
        Takes the list of (gradient, variable) pairs and returns one with gradients that are summed
        over all replicas, instead of the strategy.
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
    instead, and ``z.view(z.real.dtype)`` with ``g.view(z.real.dtype)`` trains real and imaginary
    parts separately, as PyTorch does.

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
            "epsilon": checked_keras_epsilon("epsilon", epsilon),
            "decay": nonnegative_number("decay", decay),
            "weight_decay": checked_weight_decay("weight_decay", weight_decay),
            "clip_weights": checked_clip_weights("clip_weights", clip_weights),
        }
        form = _checked_form(form, centered, decoupled_weight_decay, numbers)
        averaging = Averaging(ema_momentum, ema_overwrite_frequency)
        if checked_flag("use_ema", use_ema):
            form = form.with_average()
        form = self._with_precision(form, master_weights, rounding, state_dtype)
        calls = checked_calls(gradient_accumulation_steps)
        reduction = checked_reduction(gradient_accumulation_reduction)
        hyperparameters = Hyperparameters(
            numbers,
            counts_steps=form.bias_correction,
            in_float32=form.float32_numbers,
            averaging=averaging if form.has_average else None,
            calls_per_step=calls or 1,
        )
        settings = checked_settings(sparse, nonfinite, track_norms, num_threads, seed, strategy)
        super().__init__(name, form, hyperparameters, settings, slot_allocator)
        self._counter = np.zeros((), np.int64)
        self._iterations = Variable(self._counter, f"{self._name}/iter", trainable=False)
        self._blocks = Blocks()
        self._accumulator = None
        if calls is not None:
            from rmsjit.optimizers.accumulator import Accumulator  # few programs need it

            # What a rank has only accumulated must not be part of the state that all ranks share.
            store = self._store if settings.strategy is None else None
            self._accumulator = Accumulator(
                store, calls, reduction, nonfinite, settings.num_threads
            )

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
        return config_of(self)

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
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
        return from_config(cls, config, custom_objects)

    def _shown(self) -> dict[str, Any]:
        arguments = arguments_of(self, self._hyperparameters.__getitem__)
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

    # --- copies, and variables that move ----------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy, in which the counter is found in `iterations`."""
        return {name: value for name, value in super().__getstate__().items() if name != "_counter"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        array = self._iterations.array
        if not array.flags.writeable or isinstance(array, np.memmap):  # a message, or a file
            array = array.copy()
            self._iterations = Variable(array, self._iterations.name, trainable=False)
        self._counter = array

    def _forget_sums(self, entry: Entry) -> None:
        if self._accumulator is not None:
            self._accumulator.forget(entry.key)

    def _refuse_to_move(self, what: str) -> None:
        """Raise `RuntimeError` where gradients that wait for a step can't be taken along."""
        if self.accumulated_calls:
            raise RuntimeError(
                f"{what} must come after a step, got {self.accumulated_calls} calls that wait for "
                f"it: flush them first"
            )
        if self._blocks:
            raise RuntimeError(f"{what} must come after the block of one_step, not within it")


RMSProp = RMSprop  # TensorFlow 1's spelling
