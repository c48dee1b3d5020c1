"""`lr_range_test`: find a learning rate by training for some steps with rates that rise."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.checkpoints.compare import check_all_named, check_optimizer
from rmsjit.checkpoints.snapshot import restoring
from rmsjit.optimizers.base import Optimizer
from rmsjit.rule.checks import as_number, integer, positive_number
from rmsjit.rule.group_settings import GroupSettings
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.svg import BLUE, GREY, ORANGE, Axis, Line, chart

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RangeTest:
    """The losses of a learning-rate range test, which a notebook shows as a curve.

    Attributes
    ----------
    rates, losses : float64 arrays, shape (steps,)
        The learning rate of each step, and the loss before it.
    smoothed_rates, smoothed : float64 arrays, shape (steps,)
        The moving averages of both, geometric for the rates.  As both lag behind alike, the
        smoothed curve is not shifted against the losses.
    suggestion : float or None
        The rate at which the smoothed loss falls fastest over the logarithm of the rate; None if it
        falls nowhere.
    diverged : bool
        Whether the test ended early because the loss rose too far or was not finite.
    """

    rates: Floats = field(repr=False)
    losses: Floats = field(repr=False)
    smoothed_rates: Floats = field(repr=False)
    smoothed: Floats = field(repr=False)
    suggestion: float | None
    diverged: bool

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the losses over the rates, and the suggestion.

        Parameters
        ----------
        path : path_like
            The image to write, in the format given by its suffix.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        OSError, ValueError
            If the file can't be written, or the format is unknown.
        """
        from matplotlib.figure import Figure  # optional, and slow to import

        figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        axes.semilogx(self.rates, self.losses, color="0.75", linewidth=1, label="loss")
        axes.semilogx(
            self.smoothed_rates, self.smoothed, color="#1f5fa8", linewidth=2, label="smoothed"
        )
        if self.suggestion is not None:
            label = f"suggestion: {self.suggestion:.2g}"
            axes.axvline(self.suggestion, color="#c8511b", linestyle="--", label=label)
        axes.set_xlim(self.rates[0], self.rates[-1])
        axes.set_ylim(*self._shown())
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(path)

    def _repr_svg_(self) -> str:
        """What a notebook shows: the losses over the rates, and the suggestion."""
        y = Axis("loss", *self._shown())
        lines = [
            Line(self.rates, self.losses, GREY, "loss"),
            Line(self.smoothed_rates, self.smoothed, BLUE, "smoothed"),
        ]
        if self.suggestion is not None:
            x, label = np.full(2, self.suggestion), f"suggestion: {self.suggestion:.2g}"
            lines.append(Line(x, np.array([y.low, y.high]), ORANGE, label, dashed=True))
        x_axis = Axis("learning rate", float(self.rates[0]), float(self.rates[-1]), True)
        return chart(repr(self), x_axis, y, lines)

    def _shown(self) -> tuple[float, float]:
        """The range of losses to show: those of a divergence would hide all others."""
        low = min(self.losses.min(), self.smoothed.min())
        fall = self.losses[: int(self.smoothed.argmin()) + 1]
        height = max(fall.max() - low, 0.1 * abs(low)) or 1.0
        return float(low - 0.05 * height), float(low + 1.3 * height)


def lr_range_test(
    step: Callable[[], Any],
    optimizer: Optimizer,
    variables: Mapping[str, Any] | Sequence[Any],
    *,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    num_steps: int = 100,
    smoothing: float = 0.9,
    divergence: float = 4.0,
) -> RangeTest:
    """Find a learning rate: train with rates that rise from step to step (arXiv:1506.01186).

    Variables and the state of the optimizer are restored afterwards, also after an error.

    Parameters
    ----------
    step : callable
        Takes one step of training with the optimizer, without arguments, and returns the loss
        before it.
    optimizer : RMSprop or train.RMSPropOptimizer
        Its learning rate, and that of each group, is replaced during the test, and `decay` is 0.
    variables : dict or sequence of ndarray or Variable
        All variables that `step` changes.
    start_lr, end_lr : float, default 1e-7 and 10
        The first and the last rate; the rates between them are spaced geometrically.
    num_steps : int, default 100
        The number of steps, at least 2.
    smoothing : float, default 0.9
        The weight of the former losses in the moving average, from 0 to below 1.
    divergence : float, default 4.0
        Above 1.  The test ends when the smoothed loss is above its lowest value ``low`` by more
        than ``(divergence - 1) * abs(low)``, that is, above ``divergence * low`` for losses above
        0.  It also ends when a loss is not finite, or `FloatingPointError` is raised.

    Returns
    -------
    RangeTest

    Raises
    ------
    TypeError
        If an argument is of a wrong type, or `step` does not return a number.
    ValueError
        If a number is out of range; if the first loss is not finite; or if `step` trains a
        variable that is not among `variables`, which is then left changed.
    NotImplementedError
        If a strategy shards the state of the optimizer.

    Notes
    -----
    Only `variables` and the optimizer are restored.  Position of data, random generators and the
    like stay where the test left them.

    With a strategy, every rank must call it, and `step` must return the same loss on all ranks.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit
    >>> rng = np.random.default_rng(0)
    >>> X, w = rng.normal(size=(100, 5)), np.zeros(5)
    >>> y = X @ np.arange(5.0)
    >>> opt = rmsjit.RMSprop()
    >>> def step():
    ...     error = X @ w - y
    ...     opt.apply_gradients([(X.T @ error / len(X), w)])
    ...     return np.mean(error**2)
    >>> test = rmsjit.lr_range_test(step, opt, [w])
    >>> print(f"{test.suggestion:.1g}", test.diverged)
    0.1 True
    >>> print(w, int(opt.iterations))
    [0. 0. 0. 0. 0.] 0
    """
    rates = _geometric(start_lr, end_lr, num_steps)
    if not 0.0 <= as_number("smoothing", smoothing) < 1.0:
        raise ValueError(f"smoothing must be from 0 to below 1, got {smoothing}")
    if as_number("divergence", divergence) <= 1.0:
        raise ValueError(f"divergence must be above 1, got {divergence}")
    check_optimizer(optimizer)
    if not callable(step):
        raise TypeError(f"step must be callable, got {step!r}")
    if not isinstance(variables, Mapping):
        variables = {f"variables[{i}]": variable for i, variable in enumerate(variables)}
    curve = _Curve(smoothing, divergence)
    numbers = optimizer._hyperparameters
    with _own_rate(numbers, start_lr), restoring(optimizer, variables):
        for rate in rates.tolist():
            numbers["learning_rate"] = rate
            loss = _loss_of(step)
            check_all_named(optimizer, variables)
            if not curve.accepts(loss):
                break
    return curve.result(rates)


class _Average:
    """A moving average that is corrected for its start, as that of Adam."""

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing
        self._sum, self._weight = 0.0, 0.0

    def add(self, value: float) -> float:
        """Add a value; returns the average."""
        self._sum = self._smoothing * self._sum + (1.0 - self._smoothing) * value
        self._weight = self._smoothing * self._weight + (1.0 - self._smoothing)
        return self._sum / self._weight


class _Curve:
    """The losses so far."""

    def __init__(self, smoothing: float, divergence: float) -> None:
        self._smoothing, self._divergence = smoothing, divergence
        self._average = _Average(smoothing)
        self._losses: list[float] = []
        self._smoothed: list[float] = []
        self._diverged = False

    def accepts(self, loss: float) -> bool:
        """Add a loss; returns whether the test goes on."""
        if math.isfinite(loss):
            self._losses.append(loss)
            self._smoothed.append(self._average.add(loss))
            low = min(self._smoothed)
            self._diverged = self._smoothed[-1] - low > (self._divergence - 1.0) * abs(low)
        elif self._losses:
            self._diverged = True
        else:
            raise ValueError(f"the first loss must be finite, got {loss}")
        return not self._diverged

    def result(self, rates: Floats) -> RangeTest:
        """The result, where `rates` are those of all steps."""
        rates = rates[: len(self._losses)]
        average = _Average(self._smoothing)
        smoothed_rates = np.exp([average.add(log_rate) for log_rate in np.log(rates).tolist()])
        smoothed = np.array(self._smoothed)
        return RangeTest(
            rates,
            np.array(self._losses),
            smoothed_rates,
            smoothed,
            _steepest(smoothed_rates, smoothed),
            self._diverged,
        )


def _steepest(rates: Floats, losses: Floats) -> float | None:
    """The rate at which the loss falls fastest, before it is lowest."""
    if len(rates) < 2:
        return None
    slopes = np.gradient(losses, np.log(rates))[: losses.argmin() + 1]
    steepest = int(slopes.argmin())
    noise = 8 * np.finfo(float).eps * np.abs(losses).max()  # of a constant loss that is averaged
    falls = slopes[steepest] < 0.0 and losses[0] - losses.min() > noise
    return float(rates[steepest]) if falls else None


def _geometric(start: float, end: float, count: int) -> Floats:
    """The rates of all steps."""
    for name, value in (("start_lr", start), ("end_lr", end)):
        positive_number(name, value)
    if end <= start:
        raise ValueError(f"end_lr must be above start_lr, {start}, got {end}")
    if integer("num_steps", count) < 2:
        raise ValueError(f"num_steps must be at least 2, got {count}")
    return np.geomspace(start, end, count)


@contextmanager
def _own_rate(numbers: Hyperparameters, rate: float) -> Iterator[None]:
    """Let the test set the learning rate, and put the given ones back at the end.

    Functions have then last returned, for a configuration, what they had before the test.
    """
    holders: list[Hyperparameters | GroupSettings] = [numbers, *numbers.groups]
    used = [holder.used() for holder in holders]
    given = {name: numbers[name] for name in ("learning_rate", "decay")}
    of_groups = [(group, group.get("learning_rate")) for group in numbers.groups]
    of_groups = [(group, own) for group, own in of_groups if own is not None]
    for group, _ in of_groups:
        group.set("learning_rate", None)
    numbers["learning_rate"], numbers["decay"] = rate, 0.0
    try:
        yield
    finally:
        for group, own in of_groups:
            group.set("learning_rate", own)
        for name, value in given.items():
            numbers[name] = value
        for holder, values in zip(holders, used, strict=True):
            holder.recall(values)


def _loss_of(step: Callable[[], Any]) -> float:
    """The loss that `step` returns; NaN if it is not finite, or can't be computed."""
    try:
        loss = step()
    except FloatingPointError:
        return math.nan
    try:
        return as_number("the loss that step returns", loss)
    except ValueError:
        return math.nan
