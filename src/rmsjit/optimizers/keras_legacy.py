"""`RMSprop`: the interface of ``tf.keras.optimizers.legacy.RMSprop``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rmsjit.autodiff.nested import flatten
from rmsjit.optimizers.arguments import checked_factor, checked_function, checked_functions
from rmsjit.optimizers.keras_weights import WeightedOptimizer
from rmsjit.rule.clipping import NO_CLIPPING, Clipping
from rmsjit.rule.form import keras_form
from rmsjit.rule.hyperparameters import (
    StepNumbers,
    as_number,
    checked,
    in_unit_interval,
    is_schedule,
    positive,
    value_at,
)
from rmsjit.state.slots import SlotAllocator
from rmsjit.steps.pairs import naming, present_pairs, read_pairs
from rmsjit.steps.reduction import Strategy
from rmsjit.variables import Variable

Pairs = list[tuple[Any, Any]]
PairsTransform = Callable[[Pairs], Iterable[tuple[Any, Any]]]
Aggregator = Callable[[Pairs], Sequence[Any]]

_HOOKS = ("_transform_unaggregated_gradients", "_aggregate_gradients", "_transform_gradients")
DEFAULT_EPSILON = 1e-7


class RMSprop(WeightedOptimizer):
    """RMSprop as ``tf.keras.optimizers.legacy.RMSprop`` computes it, on NumPy arrays in place.

    With ``g`` the clipped gradient::

        rms <- rho*rms + (1 - rho)*g*g
        mg  <- rho*mg  + (1 - rho)*g                  if centered
        v    = max(rms - mg*mg, 0)  or  rms
        u    = lr*g / (sqrt(v) + epsilon)             if momentum is 0
        u    = lr*g / sqrt(v + epsilon)               else
        mom <- momentum*mom + u ;  variable <- variable - mom    (or - u without momentum)

    All slots start from zero.  Where `momentum` stands at construction decides where epsilon
    stands, as it does in tf-keras; a momentum that is set later adds its slot but leaves epsilon
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

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If a number is out of its range, or `clipnorm` and `global_clipnorm` are both given.

    Notes
    -----
    The clamp ``max(..., 0)`` is ours: under a constant gradient the centered form of other
    libraries turns a variable into NaN when rounding makes the variance negative.  The clamp does
    not bound the step, which tends to ``lr*g/epsilon`` as the variance vanishes.

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
        self._learning_rate = checked("learning_rate", learning_rate, schedule=True)
        self._rho = checked_factor("rho", rho)
        self._momentum = checked_factor("momentum", momentum)
        self._epsilon = _checked_epsilon(epsilon)
        self._centered = bool(centered)
        self._decay = _checked_decay(decay)
        self.gradient_transformers = checked_functions(
            "gradient_transformers", gradient_transformers
        )
        self.gradient_aggregator = checked_function("gradient_aggregator", gradient_aggregator)
        form = keras_form(centered=self._centered, momentum=self._uses_momentum)
        super().__init__(name, form, sparse, nonfinite, num_threads, slot_allocator, strategy)

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
        gradients, variables = read_pairs(grads_and_vars)
        if gradients:
            counter = self._iterations.array
            if not counter.flags.writeable:
                raise ValueError("iterations must be writeable, got a read-only Variable")
            aggregate = bool(experimental_aggregate_gradients)
            if self._is_hooked():
                taken = self._step_through_hooks(gradients, variables, aggregate)
            else:
                taken = self._step(gradients, variables, self._clipping, aggregate)
            if taken:
                counter[()] += 1
        elif self._strategy is not None:
            self._step((), (), self._clipping, bool(experimental_aggregate_gradients))
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
            NumPy over `rmsjit.Variable`; a loss of any shape stands for its sum.
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
        pairs = self._clipping.clipped(grads_and_vars)
        for transform in self.gradient_transformers:
            pairs = list(transform(pairs))
        return pairs

    def _is_hooked(self) -> bool:
        """Whether anything but the kernels sees the gradients of a step."""
        if self.gradient_transformers or self.gradient_aggregator is not None:
            return True
        return type(self) is not RMSprop and any(_overrides(self, name) for name in _HOOKS)

    def _step_through_hooks(
        self, gradients: tuple[Any, ...], variables: tuple[Any, ...], aggregate: bool
    ) -> bool:
        pairs = present_pairs(gradients, variables)
        replaced = self.gradient_aggregator is not None or _overrides(self, "_aggregate_gradients")
        if aggregate:
            pairs = list(self._transform_unaggregated_gradients(pairs))
            pairs = list(self._aggregate_gradients(pairs))
        if self._strategy is not None and aggregate and not replaced:
            if self.gradient_transformers or _overrides(self, "_transform_gradients"):
                raise NotImplementedError(
                    "gradient_transformers and _transform_gradients can't see what a strategy "
                    "sums: sum by gradient_aggregator, or before apply_gradients with "
                    "experimental_aggregate_gradients=False"
                )
            return self._step(*read_pairs(pairs), self._clipping, aggregate)
        pairs = present_pairs(*read_pairs(pairs))
        if not self._stepper.accepts(pairs):
            self.skipped_steps += 1
            return False
        pairs = list(self._transform_gradients(pairs))
        return self._step(*read_pairs(pairs), NO_CLIPPING, aggregate=False)

    def _numbers_now(self) -> StepNumbers:
        iterations = int(self._iterations.array)
        rate = value_at("learning_rate", self._learning_rate, iterations)
        if self._decay:
            rate = rate / (1.0 + self._decay * iterations)
        return StepNumbers(
            rate,
            in_unit_interval("rho", value_at("rho", self._rho, iterations)),
            in_unit_interval("momentum", value_at("momentum", self._momentum, iterations)),
            self._epsilon,
            self._clipping.bound,
        )

    def _numbers_vary(self) -> bool:
        given = (self._learning_rate, self._rho, self._momentum)
        return bool(self._decay) or not all(isinstance(number, float) for number in given)

    # --- hyperparameters --------------------------------------------------------------------

    @property
    def learning_rate(self) -> Any:
        """A float, a function of no arguments, or a schedule; takes effect at the next step."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._constant = None
        self._learning_rate = checked("learning_rate", value, schedule=True)

    lr = learning_rate

    @property
    def rho(self) -> Any:
        """Discounting factor of the averages."""
        return self._rho

    @rho.setter
    def rho(self, value: Any) -> None:
        self._constant = None
        self._rho = checked_factor("rho", value)

    @property
    def momentum(self) -> Any:
        """Set from 0 to more, it adds the momentum slot and leaves epsilon where it is."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: Any) -> None:
        self._constant = None
        self._momentum = checked_factor("momentum", value)
        if self._uses_momentum and not self._store.form.has_momentum:
            self._store.form = self._store.form.with_momentum()
            self._stepper.forget_plans()

    @property
    def _uses_momentum(self) -> bool:
        return callable(self._momentum) or self._momentum > 0

    @property
    def epsilon(self) -> float:
        """The small number in the denominator."""
        return self._epsilon

    @epsilon.setter
    def epsilon(self, value: float | None) -> None:
        self._constant = None
        self._epsilon = _checked_epsilon(value)

    @property
    def decay(self) -> float:
        """The learning rate is divided by ``1 + decay*iterations``."""
        return self._decay

    @decay.setter
    def decay(self, value: float) -> None:
        self._constant = None
        self._decay = _checked_decay(value)

    @property
    def centered(self) -> bool:
        """Whether steps are normalised by the estimated variance; fixed at construction."""
        return self._centered

    @property
    def name(self) -> str:
        """The prefix of the names of slots."""
        return self._name

    @property
    def clipvalue(self) -> float | None:
        """Bound on each element of a gradient, or None."""
        return self._clipping.clipvalue

    @clipvalue.setter
    def clipvalue(self, value: float | None) -> None:
        self._constant = None
        self._clipping = Clipping(value, self.clipnorm, self.global_clipnorm)

    @property
    def clipnorm(self) -> float | None:
        """Bound on the norm of each gradient, or None."""
        return self._clipping.clipnorm

    @clipnorm.setter
    def clipnorm(self, value: float | None) -> None:
        self._constant = None
        self._clipping = Clipping(self.clipvalue, value, self.global_clipnorm)

    @property
    def global_clipnorm(self) -> float | None:
        """Bound on the norm of all gradients of a step together, or None."""
        return self._clipping.global_clipnorm

    @global_clipnorm.setter
    def global_clipnorm(self, value: float | None) -> None:
        self._constant = None
        self._clipping = Clipping(self.clipvalue, self.clipnorm, value)

    # --- configuration ----------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as a dictionary that JSON can hold, as tf-keras writes it.

        A callable is written as its value now; a schedule as its own configuration.
        """
        config: dict[str, Any] = {"name": self._name}
        for key in ("clipnorm", "clipvalue", "global_clipnorm"):
            if getattr(self, key) is not None:
                config[key] = getattr(self, key)
        config |= {
            "learning_rate": _serialized("learning_rate", self._learning_rate),
            "decay": self._decay,
            "rho": _serialized("rho", self._rho),
            "momentum": _serialized("momentum", self._momentum),
            "epsilon": self._epsilon,
            "centered": self._centered,
        }
        return config

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
        """
        arguments = dict(config)
        if "lr" in arguments:
            arguments["learning_rate"] = arguments.pop("lr")
        if isinstance(arguments.get("learning_rate"), dict):
            from rmsjit import schedules

            arguments["learning_rate"] = schedules.deserialize(
                arguments["learning_rate"], custom_objects=custom_objects
            )
        return cls(**arguments)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"<rmsjit.{type(self).__name__} {arguments}, iterations={int(self._iterations)}>"


def _overrides(optimizer: RMSprop, method: str) -> bool:
    return getattr(type(optimizer), method) is not getattr(RMSprop, method)


def _checked_epsilon(value: float | None) -> float:
    return positive("epsilon", as_number("epsilon", value or DEFAULT_EPSILON))


def _checked_decay(value: float) -> float:
    decay = as_number("decay", value)
    if decay < 0:
        raise ValueError(f"decay must not be negative, got {decay}")
    return decay


def _serialized(name: str, hyperparameter: Any) -> Any:
    if is_schedule(hyperparameter):
        from rmsjit import schedules

        return schedules.serialize(hyperparameter)
    return value_at(name, hyperparameter, 0)
