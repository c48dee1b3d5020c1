"""Small line charts as SVG, which notebooks show of an object with a curve.

They are written here because Matplotlib is an extra, and takes longer to import than most cells to
run.  Text and grid are grey, which can be read on a light and on a dark page.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLUE, ORANGE, GREY = "#3b7dc4", "#d2622a", "#a6a6a6"

_TEXT = "#808080"
_WIDTH, _PLOT_HEIGHT = 520, 180
_LEFT, _RIGHT, _LINE = 68, 16, 16  # pixels: the margins, and the height of a line of text
_TITLE_COLUMNS = 78
_TICKS = 5  # about
_FAR = 1e5  # pixels; what is further outside is drawn there, as some viewers fail at large numbers

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """A direction of the chart.

    Attributes
    ----------
    label : str
    low, high : float
        What it shows.  One value alone gets some room around it.
    logarithmic : bool, default False
        `low` must be above 0 then.
    """

    label: str
    low: float
    high: float
    logarithmic: bool = False

    def places(self, values: npt.ArrayLike) -> Floats:
        """The positions of values, from 0 at the low end to 1 at the high one."""
        low, high = self._ends()
        shown = np.asarray(values, dtype=np.float64)
        return ((np.log10(shown) if self.logarithmic else shown) - low) / (high - low)

    def ticks(self) -> list[float]:
        """The round numbers to write at the axis."""
        low, high = self._ends()
        if self.logarithmic and high - low >= 2.0:
            every = math.ceil((high - low) / (2 * _TICKS))
            powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1, every)
            return [10.0**power for power in powers]
        return _round_numbers(*(10.0**low, 10.0**high) if self.logarithmic else (low, high))

    def _ends(self) -> tuple[float, float]:
        """Both ends, as logarithms if the axis is logarithmic."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high = math.log10(low), math.log10(high)
        if low < high:
            return low, high
        room = 0.5 if self.logarithmic else (abs(low) or 1.0)
        return low - room, low + room


def _round_numbers(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    least = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class Line:
    """A line of the chart.

    Attributes
    ----------
    x, y : float64 arrays, shape (points,)
    color : str
    name : str, default ""
        Written above the chart, in the colour of the line.
    stairs : bool, default False
        Whether the value of a point holds up to the next one.
    dashed : bool, default False
    """

    x: Floats
    y: Floats
    color: str
    name: str = ""
    stairs: bool = False
    dashed: bool = False


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """Draw lines; what is outside of the axes is cut off.

    Parameters
    ----------
    title : str
        Wrapped if it is long.
    x, y : Axis
    lines : sequence of Line
        Later ones lie above earlier ones.

    Returns
    -------
    str
        One ``svg`` element.
    """
    heading = textwrap.wrap(title, _TITLE_COLUMNS)
    top = _LINE * (len(heading) + 2)  # a line for the names, and room below it
    height = top + _PLOT_HEIGHT + 2 * _LINE + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12" fill="{_TEXT}">',
        f"<title>{html.escape(title)}</title>",
        *(_text(4, _LINE * (row + 1), text) for row, text in enumerate(heading)),
        _text(4, top - 10, y.label),
        *_names(lines, top - 10),
        *_grid(x, y, top),
        _text(_LEFT + _plot_width() / 2, height - 6, x.label, "middle"),
        # An inner svg element cuts off what is outside of it.
        f'<svg x="{_LEFT}" y="{top}" width="{_plot_width()}" height="{_PLOT_HEIGHT}">',
        *(_polyline(line, x, y) for line in lines),
        "</svg></svg>",
    ]
    return "\n".join(parts)


def _plot_width() -> int:
    return _WIDTH - _LEFT - _RIGHT


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = "") -> str:
    fill = f' fill="{color}"' if color else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{html.escape(text)}</text>'


def _names(lines: Sequence[Line], y: float) -> list[str]:
    """The names of the lines side by side, up to the right end."""
    shown, right = [], float(_WIDTH - _RIGHT)
    for line in reversed([line for line in lines if line.name]):
        shown.append(_text(right, y, line.name, "end", line.color))
        right -= 7.0 * len(line.name) + 14.0  # about the width of the text
    return shown


def _grid(x: Axis, y: Axis, top: float) -> list[str]:
    """A faint line and a number for each tick."""
    shown, bottom, right = [], top + _PLOT_HEIGHT, _LEFT + _plot_width()
    for tick in x.ticks():
        at = _LEFT + float(x.places(tick)) * _plot_width()
        shown += [
            _grid_line(at, top, at, bottom),
            _text(at, bottom + _LINE, f"{tick:.7g}", "middle"),
        ]
    for tick in y.ticks():
        at = bottom - float(y.places(tick)) * _PLOT_HEIGHT
        shown += [
            _grid_line(_LEFT, at, right, at),
            _text(_LEFT - 6, at + 4, f"{tick:.7g}", "end"),
        ]
    return shown


def _grid_line(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        f' stroke="{_TEXT}" stroke-opacity="0.25"/>'
    )


def _polyline(line: Line, x: Axis, y: Axis) -> str:
    across = x.places(line.x) * _plot_width()
    down = np.clip((1.0 - y.places(line.y)) * _PLOT_HEIGHT, -_FAR, _FAR)
    if line.stairs:
        across, down = np.repeat(across, 2)[1:], np.repeat(down, 2)[:-1]
    points = " ".join(f"{a:.1f},{d:.1f}" for a, d in zip(across, down, strict=True))
    dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
    return (
        f'<polyline points="{points}" fill="none" stroke="{line.color}"'
        f' stroke-width="2" stroke-linejoin="round"{dashes}/>'
    )
