"""What a notebook shows of a schedule: its curve."""

from __future__ import annotations

import numpy as np

from rmsjit.schedules.base import LearningRateSchedule
from rmsjit.schedules.curves import is_stairs, natural_span, rates_of, spread
from rmsjit.svg import BLUE, Axis, Line, chart

_MOST_POINTS = 601  # more than the picture has columns


def picture(schedule: LearningRateSchedule) -> str | None:
    """The curve as SVG, over the steps that show its shape.

    Returns
    -------
    str or None
        None if there is no curve to draw: a rate is not finite, or a plateau would need too many
        metrics.
    """
    steps = spread(natural_span(schedule), _MOST_POINTS)
    try:
        rates = rates_of(schedule, steps)
    except ValueError:  # too many metrics
        return None
    if not np.isfinite(rates).all():
        return None
    low, high = min(0.0, float(rates.min())), 1.06 * max(0.0, float(rates.max()))
    line = Line(steps.astype(np.float64), rates, BLUE, stairs=is_stairs(rates))
    x, y = Axis("step", 0.0, float(steps[-1])), Axis("learning rate", low, high)
    return chart(repr(schedule), x, y, [line])
