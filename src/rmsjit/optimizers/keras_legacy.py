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

from rmsjit.autodiff.nested import flatten
from rmsjit.optimizers.arguments import (
    checked_clip_weights,
    checked_factor,
    checked_function,
    checked_functions,
    checked_nonnegative,
    checked_rate,
    checked_weight_decay,
)
from rmsjit.optimizers.base import Hyperparameter, with_shared_parameters
from rmsjit.optimizers.keras_weights import WeightedOptimizer
from rmsjit.rule.clipping import NO_CLIPPING, Clipping
from rmsjit.rule.form import Form
from rmsjit.rule.hyperparameters import (
    Hyperparameters,
    as_number,
    is_schedule,
    positive,
)
from rmsjit.rule.presets import keras_legacy
from rmsjit.state.slots import SlotAllocator
from rmsjit.steps.nonfinite import accepts, finite_gradients
from rmsjit.steps.pairs import check_counter, naming, pairs_of, present_pairs
from rmsjit.steps.reduction import Strategy
from rmsjit.variables import Variable

Pairs = list[tuple[Any, Any]]
PairsTransform = Callable[[Pairs], Iterable[tuple[Any, Any]]]
Aggregator = Callable[[Pairs], Sequence[Any]]

_HOOKS = ("_transform_unaggregated_gradients", "_aggregate_gradients", "_transform_gradients")
DEFAULT_EPSILON = 1e-7
_SINCE_KERAS_2_11 = {  # in the configurations of the optimizers that took the place of the legacy
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


def _is_used(momentum: Any) -> bool:
    return callable(momentum) or bool(momentum > 0)


def _check_form(form: Form, centered: bool, uses_momentum: bool, numbers: dict[str, Any]) -> None:
    """Raise `ValueError` where a form does not have what other arguments ask for."""
    decays = callable(numbers["weight_decay"]) or numbers["weight_decay"] != 0
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


class _ClippingBound:
    """A bound of an optimizer's `Clipping` as an attribute; it takes effect at the next step."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: RMSprop | None, owner: type) -> Any:
        return self if optimizer is None else getattr(optimizer._clipping, self._name)

    def __set__(self, optimizer: RMSprop, value: float | None) -> None:
        optimizer._clipping = replace(optimizer._clipping, **{self._name: value})


@with_shared_parameters
class RMSprop(WeightedOptimizer):
    """RMSprop as ``tf.keras.optimizers.legacy.RMSprop`` computes it, on NumPy arrays in place.

    With ``g`` the clipped gradient::

        rms <- rho*rms + (1 - rho)*g*g
        mg  <- rho*mg  + (1 - rho)*g                  if centered
        v    = max(rms - mg*mg, 0)  or  rms
        u    = lr*g / (sqrt(v) + epsilon)             if momentum is 0
        u    = lr*g / sqrt(v + epsilon)               else
        mom <- momentum*mom + u ;  variable <- variable - mom    (or - u without momentum)

    All slots start from zero.  The `momentum` given at construction decides where epsilon
    enters, as it does in tf-keras; a momentum that is set later adds its slot but leaves epsilon
    in its place.

    Parameters
    ----------
    learning_rate : float, callable or LearningRateSchedule, default 0.001
        A number, a 0-d array, a function of no arguments, or a schedule of `iterations`.
    rho : float or callable, default 0.9
        Discounting factor of the averages, between 0 and 1.
    momentum : float or callable, default 0.0
        Between 0 and 1.
    epsilon : float, default 1e-7
        Keeps the denominator from zero; 0 and None mean 1e-7, as in tf-keras.
    centered : bool, default False
        Normalise by the estimated variance of the gradient instead of its mean square.
    name : str, default "RMSprop"
        Prefix of the names of slots.
    clipvalue : float, optional
        Each element of a gradient is clipped to ``[-clipvalue, clipvalue]``.
    clipnorm : float, optional
        Each gradient is scaled down to at most this norm.
    global_clipnorm : float, optional
        All gradients of a step are scaled down to at most this norm together.
    lr : float, optional
        Old name of `learning_rate`.
    decay : float, default 0.0
        The learning rate is divided by ``1 + decay*iterations``.
    gradient_transformers : sequence of callable, optional
        Each takes the list of (gradient, variable) pairs, clipped, and returns another one.
    gradient_aggregator : callable, optional
        Takes the list of (gradient, variable) pairs and returns the gradients summed over all
        replicas, in place of the strategy.
    form : Form, optional
        Another form of the rule than Keras's, such as that of another library; its epsilon,
        momentum and decay are the numbers above.
    weight_decay : float or callable, default 0.0
        As the form says that it is applied; for forms that have it.
    clip_weights : float, optional
        Bound on every element of a variable, for forms that clip them.
    *shared*

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If a number is out of its range, `clipnorm` and `global_clipnorm` are both given, or the
        form does not have what another argument asks for.

    Notes
    -----
    The clamp ``max(..., 0)`` is ours: under a constant gradient the centered form of other
    libraries turns a variable into NaN when rounding makes the variance negative.  The clamp does
    not bound the step, which tends to ``lr*g/epsilon`` as the variance vanishes.

    A gradient whose ``(1 - rho)*g*g`` is beyond the variable's dtype, at rho 0.9 from 810 in
    float16 and from 6e19 in float32, makes ``rms`` infinite, as in TensorFlow: that element then
    never moves again.  `nonfinite` looks at gradients and does not see it; a `clipvalue` below
    these bounds prevents it.

    Complex gradients are squared as ``g*g``, as in TensorFlow, which is no descent: ``abs(z - 1j)``
    need not fall.  ``form=rmsjit.Form(complex_square="modulus")`` divides by the modulus instead,
    and ``z.view(float)`` with ``g.view(float)`` trains real and imaginary parts each by itself, as
    PyTorch does.

    State belongs to a variable's memory, not to the Python object: ``W``, ``W[...]`` and
    ``W.reshape(-1)`` are the same variable.  Copy or pickle an optimizer together with its
    variables, so that the copies belong together as well.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5: RMSProp", Neural Networks for Machine Learning, 2012.

    Examples
    --------
    One step down the slope of ``v**2 / 2``:

    >>> import rmsjit
    >>> v = rmsjit.Variable(10.0)
    >>> opt = rmsjit.RMSprop(learning_rate=0.1)
    >>> int(opt.apply_gradients([(v.numpy(), v)]).numpy())
    1
    >>> print(v.numpy())
    9.683772
    """

    _momentum_came_later = False
    _is_hooked = False  # whether a subclass overrides what sees the gradients of a step

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
        clip_weights: float | None = None,
        sparse: str = "rows",
        nonfinite: str = "propagate",
        num_threads: int | None = None,
        slot_allocator: SlotAllocator | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        if lr is not None:
            warnings.warn("lr is the old name of learning_rate", DeprecationWarning, stacklevel=2)
            learning_rate = lr
        self._clipping = Clipping(clipvalue, clipnorm, global_clipnorm)
        self.gradient_transformers = checked_functions(
            "gradient_transformers", gradient_transformers
        )
        self.gradient_aggregator = checked_function("gradient_aggregator", gradient_aggregator)
        numbers = {
            "learning_rate": checked_rate("learning_rate", learning_rate),
            "rho": checked_factor("rho", rho),
            "momentum": checked_factor("momentum", momentum),
            "epsilon": _checked_epsilon("epsilon", epsilon),
            "decay": checked_nonnegative("decay", decay),
            "weight_decay": checked_weight_decay("weight_decay", weight_decay),
            "clip_weights": checked_clip_weights("clip_weights", clip_weights),
        }
        uses_momentum = _is_used(numbers["momentum"])
        if form is None:
            form = keras_legacy(centered=bool(centered), momentum=uses_momentum)
        elif not isinstance(form, Form):
            raise TypeError(f"form must be a Form or None, got {form!r}")
        _check_form(form, bool(centered), uses_momentum, numbers)
        super().__init__(
            name,
            form,
            Hyperparameters(numbers, counts_steps=form.bias_correction),
            sparse,
            nonfinite,
            num_threads,
            slot_allocator,
            strategy,
        )

    # --- one step ---------------------------------------------------------------------------

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
    ) -> Variable:
        """Update variables by their gradients, in place.

        Parameters
        ----------
        grads_and_vars : iterable of (gradient, variable)
            A variable is a writeable array or a `Variable`; its gradient an array, a `Variable`
            or a nested list of its shape, an `IndexedSlices` of some of its rows, or None, which
            leaves the variable as it is.
            The same variable may come twice: the updates apply one after the other.
        name : str, optional
            Accepted for compatibility; there is no graph in which the step could have a name.
        experimental_aggregate_gradients : bool, default True
            Whether gradients are summed over replicas; there are none without a strategy.

        Returns
        -------
        Variable
            `iterations`, which is one higher than before; an empty list changes nothing.

        Raises
        ------
        TypeError
            If the pairs are malformed, or a gradient or variable is of a wrong type or dtype.
        ValueError
            If no variable has a gradient, shapes differ, a variable is read-only, or two
            variables share a part of their memory.

        Notes
        -----
        Everything is checked before the first write: after an error, variables, slots and
        `iterations` are as they were.
        """
        pairs = pairs_of(grads_and_vars)
        counter = self._counter
        if pairs and not counter.flags.writeable and self._strategy is None:
            check_counter(counter)
        if pairs and (
            self._is_hooked or self.gradient_transformers or self.gradient_aggregator is not None
        ):
            self._step_through_hooks(pairs, counter, bool(experimental_aggregate_gradients))
        elif pairs or self._strategy is not None:
            self._step(pairs, self._clipping, counter, bool(experimental_aggregate_gradients))
        return self._iterations

    def minimize(
        self,
        loss: Any,
        var_list: Any,
        grad_loss: Any = None,
        name: str | None = None,
        tape: Any = None,
    ) -> Variable:
        """Update variables once by the gradients of a loss.

        Parameters
        ----------
        loss : callable, or a value with its `tape`
            A function of no arguments that returns the loss, ordinary code in `autograd.numpy` or
            NumPy over `rmsjit.Variable`; of a loss of any shape the sum is meant.
        var_list : list, tuple, nested structure, or a callable that returns one
            The variables; a callable is asked after the loss has been computed.  May be empty.
        grad_loss : array_like, optional
            The gradient of something else with respect to `loss`, of its shape; ones if left out.
        name : str, optional
            As for `apply_gradients`.
        tape : GradientTape, optional
            The tape that recorded `loss`, where that is a value.

        Returns
        -------
        Variable
            `iterations`.

        Raises
        ------
        ValueError
            If `loss` is a value and there is no `tape`, or the loss depends on no variable.
        TypeError
            If an entry of `var_list` is no variable.

        Examples
        --------
        >>> import rmsjit
        >>> v = rmsjit.Variable(10.0)
        >>> opt = rmsjit.RMSprop(learning_rate=0.1)
        >>> print(opt.minimize(lambda: (v ** 2) / 2.0, [v]).numpy(), v.numpy())
        1 9.683772
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
        """Update `params` once by the gradients of a loss.

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
        from rmsjit.autodiff.losses import gradients_of

        gradients, variables = gradients_of(loss, var_list, grad_loss, tape)
        return list(zip(gradients, variables, strict=True))

    # --- what subclasses override -----------------------------------------------------------

    def _transform_unaggregated_gradients(self, grads_and_vars: Pairs) -> Pairs:
        """Change this replica's gradients before they are summed; by default nothing."""
        return grads_and_vars

    def _aggregate_gradients(self, grads_and_vars: Pairs) -> Pairs:
        """The gradients summed over all replicas.

        By default `gradient_aggregator` decides, and where there is none the gradients stay as
        they are: a strategy sums them later.
        """
        if self.gradient_aggregator is None:
            return grads_and_vars
        return list(self.gradient_aggregator(grads_and_vars))

    def _transform_gradients(self, grads_and_vars: Pairs) -> Pairs:
        """Clip the summed gradients, then call `gradient_transformers`.

        Only called where something needs the clipped gradients: otherwise clipping rides along in
        the update and copies nothing.
        """
        from rmsjit.steps.norms import clipped  # which brings Numba along

        pairs = clipped(grads_and_vars, self._clipping)
        for transform in self.gradient_transformers:
            pairs = list(transform(pairs))
        return pairs

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._is_hooked = any(_overrides(cls, name) for name in _HOOKS)

    def _step_through_hooks(
        self, given: tuple[Any, ...], counter: NDArray[Any], aggregate: bool
    ) -> None:
        pairs = present_pairs(given)
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
            self._step(pairs_of(pairs), self._clipping, counter)
            return
        pairs = present_pairs(pairs_of(pairs))
        if self._strategy is None and not self._accepts(pairs):  # ranks find that in their step
            self.skipped_steps += 1
            return
        pairs = list(self._transform_gradients(pairs))
        self._step(pairs_of(pairs), NO_CLIPPING, counter, aggregate=False)

    def _accepts(self, pairs: Pairs) -> bool:
        finite = finite_gradients([gradient for gradient, _ in pairs])
        return accepts(self._nonfinite, finite, lambda k: naming(pairs[k][1], k))

    # --- hyperparameters --------------------------------------------------------------------

    learning_rate = Hyperparameter(
        checked_rate, "A float, a function of no arguments, or a schedule."
    )
    lr = Hyperparameter(checked_rate, "Old name of `learning_rate`.", "learning_rate")
    rho = Hyperparameter(checked_factor, "Discounting factor of the averages.")
    momentum = Hyperparameter(
        checked_factor, "Set from 0 to more, it adds the momentum slot and leaves epsilon in place."
    )
    epsilon = Hyperparameter(_checked_epsilon, "The small number in the denominator.")
    weight_decay = Hyperparameter(
        checked_weight_decay, "Weight decay, applied as the form says; 0 where it has none."
    )
    decay = Hyperparameter(
        checked_nonnegative, "The learning rate is divided by ``1 + decay*iterations``."
    )
    clipvalue = _ClippingBound("Bound on each element of a gradient, or None.")
    clipnorm = _ClippingBound("Bound on the norm of each gradient, or None.")
    global_clipnorm = _ClippingBound("Bound on the norm of all gradients together, or None.")

    def _check_number(self, name: str, value: Any) -> None:
        if name == "weight_decay" and value != 0 and self.form.weight_decay is None:
            raise ValueError(f"weight_decay is not for a form without it, got {self.form}")

    @property
    def clip_weights(self) -> float | None:
        """Bound on every element of a variable, or None; fixed at construction."""
        bound: float = self._hyperparameters["clip_weights"]
        return None if math.isinf(bound) else bound

    def _number_was_set(self, name: str) -> None:
        form = self._store.form
        if name == "momentum" and _is_used(self.momentum) and not form.has_momentum:
            self._store.form = form.with_momentum()
            self._momentum_came_later = True

    @property
    def form(self) -> Form:
        """How the rule is computed, and what is kept beside each variable."""
        return self._store.form

    @property
    def centered(self) -> bool:
        """Whether steps are normalised by the estimated variance; fixed at construction."""
        return self._store.form.centered

    @property
    def name(self) -> str:
        """The prefix of the names of slots."""
        return self._name

    # --- configuration ----------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as a dictionary that JSON can hold, as tf-keras writes it.

        A callable is written as the value that the last step has used, or where there was none
        as its value now; a schedule as its own configuration.
        """
        return self._arguments(self._serialized)

    def _arguments(self, shown: Callable[[str], Any]) -> dict[str, Any]:
        """The constructor's arguments, with `shown` of the names of hyperparameters."""
        arguments: dict[str, Any] = {"name": self._name}
        for key in ("clipnorm", "clipvalue", "global_clipnorm"):
            if getattr(self, key) is not None:
                arguments[key] = getattr(self, key)
        for key in ("learning_rate", "decay", "rho", "momentum", "epsilon"):
            arguments[key] = shown(key)
        return arguments | {"centered": self.centered} | self._arguments_of_form(shown)

    def _arguments_of_form(self, shown: Callable[[str], Any]) -> dict[str, Any]:
        """What tf-keras does not know, where it is used."""
        form = self.form
        if form == keras_legacy(centered=form.centered, momentum=form.has_momentum):
            return {}
        late = keras_legacy(centered=form.centered, momentum=False).with_momentum()
        if form == late and self._momentum_came_later:
            return {}  # a momentum that was set later
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
        """An optimizer with the arguments that `get_config` gave, and no state.

        Parameters
        ----------
        config : dict
        custom_objects : dict, optional
            Classes of schedules that rmsjit does not know, by name.

        Raises
        ------
        TypeError
            If it is the configuration of another optimizer, such as Keras's RMSprop since 2.11.
        """
        arguments = dict(config)
        _refuse_newer_keras(arguments, inspect.signature(cls).parameters)
        if "lr" in arguments:
            arguments["learning_rate"] = arguments.pop("lr")
        if isinstance(arguments.get("form"), dict):
            arguments["form"] = Form.from_dict(arguments["form"])
        if isinstance(arguments.get("learning_rate"), dict):
            from rmsjit import schedules

            arguments["learning_rate"] = schedules.deserialize(
                arguments["learning_rate"], custom_objects=custom_objects
            )
        return cls(**arguments)

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        arguments = self._arguments(self._hyperparameters.__getitem__)
        # What a subclass takes besides, without asking its code.
        known = inspect.signature(RMSprop.__init__).parameters
        for name in inspect.signature(type(self).__init__).parameters:
            if name in vars(self) and name not in known:
                arguments[name] = vars(self)[name]
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"<rmsjit.{type(self).__name__} {shown}, iterations={int(self._iterations)}>"


def _refuse_newer_keras(config: dict[str, Any], known: Iterable[str]) -> None:
    """Raise `TypeError` that says what to do with a configuration of Keras's later RMSprop."""
    unknown = sorted(_SINCE_KERAS_2_11 & config.keys() - set(known))
    if not unknown or config.get("is_legacy_optimizer"):
        config.pop("is_legacy_optimizer", None)
        return
    names = ["rms", *["momentum"] * bool(config.get("momentum"))]
    names += ["mg"] * bool(config.get("centered"))
    raise TypeError(
        f"this is the configuration of keras.optimizers.RMSprop of Keras 3, or of "
        f"tf_keras.optimizers.RMSprop since 2.11 (it has {', '.join(unknown)}), and not of the "
        f"legacy optimizer: it has epsilon inside the root always, for which pass its numbers to "
        f"RMSprop with form=rmsjit.Form.with_slots({', '.join(map(repr, names))}, "
        f"epsilon='inside')"
    )


def _overrides(cls: type[RMSprop], method: str) -> bool:
    return getattr(cls, method) is not getattr(RMSprop, method)
