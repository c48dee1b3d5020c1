"""Loss scales: the factor by which a loss, and so its gradients, are multiplied.

Gradients in float16 vanish below 6e-8.  A loss that is multiplied by a large number has gradients
that do not; the step divides them again.  A dynamic scale looks for the largest one with which
gradients do not overflow.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from rmsjit.rule.checks import positive_integer, positive_number


class LossScale(Protocol):
    """What a step needs of a loss scale."""

    @property
    def value(self) -> float:
        """What the loss is multiplied by now."""
        ...

    def after(self, taken: bool) -> Any:
        """The state after a step was taken, or skipped for a gradient that was not finite."""
        ...

    def to_config(self) -> Any:
        """The argument that makes such a scale, as a value for JSON."""
        ...


class FixedLossScale(NamedTuple):
    """A loss scale that never changes."""

    value: float

    def after(self, taken: bool) -> None:
        """None, since it does not change."""

    def to_config(self) -> float:
        """The argument that makes such a scale, as a value for JSON."""
        return self.value


class ScaleState(NamedTuple):
    """What a dynamic loss scale knows.

    Attributes
    ----------
    value : float
    good_steps : int
        The number of steps since the scale last changed or a step was skipped.
    """

    value: float
    good_steps: int


class DynamicLossScale:
    """A loss scale that grows while gradients are finite, and shrinks when they are not.

    The rules are those of PyTorch's ``GradScaler``: after `growth_interval` steps without a NaN or
    an infinity, the scale is multiplied by `growth_factor`, unless it would overflow in float32.
    A step with one is skipped, and the scale is multiplied by `backoff_factor`.

    Parameters
    ----------
    initial : float, default 65536.0
    growth_factor : float, default 2.0
        Above 1.
    backoff_factor : float, default 0.5
        Between 0 and 1.
    growth_interval : int, default 2000

    Attributes
    ----------
    state : ScaleState
        Can be set, to continue from an earlier state.

    Raises
    ------
    TypeError, ValueError
        If an argument is of a wrong type or out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit
    >>> scale = rmsjit.DynamicLossScale(initial=8.0, growth_interval=2)
    >>> opt = rmsjit.RMSprop(0.1, loss_scale=scale)
    >>> w = np.zeros(2, np.float16)
    >>> for gradient in ([8.0, 8.0], [8.0, np.inf], [4.0, 4.0], [4.0, 4.0]):
    ...     _ = opt.apply_gradients([(np.array(gradient, np.float16), w)])
    ...     print(opt.loss_scale, opt.skipped_steps)
    8.0 0
    4.0 1
    4.0 1
    8.0 1
    """

    def __init__(
        self,
        initial: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        self.initial: float = positive_number("initial", initial)
        self.growth_factor: float = positive_number("growth_factor", growth_factor)
        self.backoff_factor: float = positive_number("backoff_factor", backoff_factor)
        self.growth_interval: int = positive_integer("growth_interval", growth_interval)
        if not 0 < _in_float32(self.initial) < np.inf:
            raise ValueError(f"initial must be in the range of float32, got {initial}")
        if not self.growth_factor > 1:
            raise ValueError(f"growth_factor must be above 1, got {growth_factor}")
        if not self.backoff_factor < 1:
            raise ValueError(f"backoff_factor must be below 1, got {backoff_factor}")
        self.state: ScaleState = ScaleState(_in_float32(self.initial), 0)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.to_config().items())
        return f"DynamicLossScale({arguments})"

    @property
    def value(self) -> float:
        """What the loss is multiplied by now."""
        return self.state.value

    def after(self, taken: bool) -> ScaleState:
        """The state after a step was taken, or skipped for a gradient that was not finite."""
        value, good_steps = self.state
        if not taken:
            smaller = _in_float32(value * self.backoff_factor)
            # Steps multiply by the inverse.
            is_usable = smaller > 0 and np.isfinite(_in_float32(1 / smaller))
            return ScaleState(smaller if is_usable else value, 0)
        if good_steps + 1 < self.growth_interval:
            return ScaleState(value, good_steps + 1)
        grown = _in_float32(value * self.growth_factor)
        return ScaleState(grown if np.isfinite(grown) else value, 0)

    def to_config(self) -> dict[str, Any]:
        """The arguments, as values for JSON."""
        return {
            "initial": self.initial,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
        }


@np.errstate(over="ignore")
def _in_float32(value: float) -> float:
    """A number as PyTorch keeps it, infinite if it is too large."""
    return float(np.float32(value))


def checked_loss_scale(value: Any) -> LossScale | None:
    """The loss scale of an optimizer, from its argument or what `get_config` made of that.

    A dynamic one is a new one, since two optimizers must not count the steps of each other.

    Raises
    ------
    TypeError, ValueError
        If invalid.
    """
    if value is None:
        return None
    if isinstance(value, DynamicLossScale):
        return DynamicLossScale(**value.to_config())
    if isinstance(value, Mapping):
        return DynamicLossScale(**value)
    if isinstance(value, str):
        if value != "dynamic":
            raise ValueError(f'loss_scale must be "dynamic" or a number, got {value!r}')
        return DynamicLossScale()
    return FixedLossScale(positive_number("loss_scale", value))
