"""What all schedules have: `LearningRateSchedule`, and schedules whose fields are their config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from rmsjit.schedules.checks import CHECKS, Check


class LearningRateSchedule:
    """Base class: define ``__call__(step)``, and ``get_config()`` to make it serialisable.

    Examples
    --------
    >>> class Reciprocal(LearningRateSchedule):
    ...     def __call__(self, step):
    ...         return 1 / (step + 1)
    >>> Reciprocal().curve([0, 1, 3])
    array([1.  , 0.5 , 0.25])
    """

    def __call__(self, step: int | float) -> float:
        """Return the learning rate after ``step`` steps were taken."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__(step)")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the schedule by name."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_config()")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a schedule from the result of ``get_config``."""
        return cls(**config)

    def curve(self, steps: SupportsIndex | npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the learning rates of many steps.

        Parameters
        ----------
        steps
            A count ``n`` for the steps 0 to ``n - 1``, or an array-like of steps; the result has
            its shape. ``TypeError`` for anything else, ``ValueError`` below 0.
        """
        array = np.asarray(steps)
        if array.dtype.kind not in ("iuf" if array.ndim else "iu"):
            raise TypeError(f"steps must be a count or an array of numbers, got {steps!r}")
        if array.ndim == 0:
            if array < 0:
                raise ValueError(f"steps must be a count of 0 or more, got {steps!r}")
            array = np.arange(int(array))
        rates = (float(self(step)) for step in array.ravel().tolist())
        return np.fromiter(rates, np.float64, array.size).reshape(array.shape)


@dataclass(frozen=True, repr=False)
class DataSchedule(LearningRateSchedule):
    """Base of the schedules here: the fields are the config, and each is checked by its name."""

    checks: ClassVar[Mapping[str, Check]] = {}  # of a class's own arguments

    def __post_init__(self) -> None:
        for name, value in DataSchedule.get_config(self).items():
            if check := self.checks.get(name) or CHECKS.get(name):
                object.__setattr__(self, name, check(name, value))

    def __repr__(self) -> str:
        """The call that makes it: the first argument, and the others that are not the default."""
        shown: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if not shown and field.default is MISSING:
                shown.append(repr(value))
            elif field.init and field.repr and value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_svg_(self) -> str | None:
        """What a notebook shows: the curve, under the call that makes it."""
        from rmsjit.schedules.notebook import picture  # which knows the schedules made from this

        return picture(self)

    def get_config(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.init}
