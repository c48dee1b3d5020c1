"""Hyperparameters and bounds on gradients as attributes, as tf-keras has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rmsjit.optimizers.arguments import (
    checked_factor,
    checked_rate,
    checked_weight_decay,
)
from rmsjit.optimizers.core import Core
from rmsjit.optimizers.fixed import fixed_at_construction
from rmsjit.rule.checks import as_number, is_used, nonnegative_number, positive
from rmsjit.rule.form import Form
from rmsjit.rule.presets import has_plain_rule

DEFAULT_EPSILON = 1e-7


def checked_keras_epsilon(name: str, value: float | None) -> float:
    """A positive number; 0 and None mean the default."""
    number = DEFAULT_EPSILON if value is None else as_number(name, value)
    return positive(name, number or DEFAULT_EPSILON)


def _hyperparameter(name: str, check: Callable[[str, Any], Any], doc: str, number: str = "") -> Any:
    """A property for a hyperparameter, stored under `number` if that differs from its name."""

    def read(optimizer: KerasHyperparameters) -> Any:
        return optimizer._hyperparameters[number or name]

    def write(optimizer: KerasHyperparameters, value: Any) -> None:
        optimizer._set_hyperparameter(number or name, check(name, value))

    return property(read, write, doc=doc)


def _clipping_bound(name: str, doc: str) -> Any:
    """A property for a bound of the optimizer's `Clipping`."""

    def read(optimizer: KerasHyperparameters) -> Any:
        return getattr(optimizer._clipping, name)

    def write(optimizer: KerasHyperparameters, value: Any) -> None:
        optimizer._clipping = optimizer._clipping.replaced(**{name: value})

    return property(read, write, doc=doc)


class KerasHyperparameters(Core):
    """The numbers of the rule, which the next step uses."""

    _momentum_came_later = False
    _state_dtype: dict[str, str]

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
        "epsilon", checked_keras_epsilon, "The small number in the denominator."
    )
    weight_decay: Any = _hyperparameter(
        "weight_decay", checked_weight_decay, "Weight decay; 0 for forms without it."
    )
    decay: Any = _hyperparameter(
        "decay", nonnegative_number, "The learning rate is divided by ``1 + decay*iterations``."
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
            raise ValueError(f"weight_decay needs a form that has it, got {form}")
        adds_slot = name == "momentum" and is_used(value) and not form.has_momentum
        if adds_slot and not has_plain_rule(form):
            raise ValueError(f"momentum needs a form that has it from construction on, got {form}")
        if adds_slot:  # first, as a slot that is not used yet does no harm
            self._momentum_came_later = True
            self._store.form = form.with_momentum().with_state(self._state_dtype)
        self._hyperparameters[name] = value

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
