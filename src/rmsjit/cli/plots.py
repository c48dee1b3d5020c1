"""Drawings of learning-rate schedules, as images and in the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmsjit.schedules import LearningRateSchedule
from rmsjit.schedules.curves import Floats, Steps, is_stairs, natural_span, rates_of, spread

_TEXT_COLUMNS, _TEXT_ROWS = 64, 16
_BLUE = "#1f5fa8"


def save_plot(path: Path, title: str, steps: Steps, rates: Floats) -> None:
    """Write the curve as an image in the format given by the path's suffix."""
    from matplotlib.figure import Figure  # optional, and slow to import

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, steps, rates)
    lines = textwrap.wrap(title.replace("$", r"\$"), 90)  # which would begin a formula
    axes.set_title("\n".join(lines), loc="left", fontsize=10, pad=12)
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate")
    figure.savefig(path)


def save_gallery(path: Path, shown: Sequence[LearningRateSchedule]) -> None:
    """Write one image with a curve for each schedule."""
    from matplotlib.figure import Figure

    rows = -(-len(shown) // 3)
    figure = Figure(figsize=(13, 2.7 * rows), dpi=110, layout="constrained")
    for axes, schedule in zip(figure.subplots(rows, 3).flat, shown, strict=False):
        steps = spread(natural_span(schedule))
        _draw(axes, steps, rates_of(schedule, steps))
        name, arguments = repr(schedule).split("(", 1)
        lines = textwrap.wrap(arguments.removesuffix(")"), 62)
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold", pad=11 * len(lines) + 5)
        axes.text(0, 1.03, "\n".join(lines), transform=axes.transAxes, fontsize=8, color="0.35")
    figure.savefig(path, metadata={"Software": None})


def _draw(axes: Any, steps: Steps, rates: Floats) -> None:
    """Draw a curve; one that mostly stays where it is, as stairs."""
    style, fill = ("steps-post", "post") if is_stairs(rates) else ("default", None)
    axes.plot(steps, rates, color=_BLUE, linewidth=2, solid_joinstyle="round", drawstyle=style)
    axes.fill_between(steps, rates, color=_BLUE, alpha=0.08, linewidth=0, step=fill)
    axes.set_xlim(0, max(int(steps[-1]), 1))
    if rates.min() >= 0.0 and rates.max() > 0.0:
        axes.set_ylim(0.0, 1.06 * rates.max())
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def text_plot(title: str, steps: Steps, rates: Floats) -> str:
    """Draw the curve as text, with a star for the rate in each column."""
    picked = np.linspace(0, len(steps) - 1, min(len(steps), _TEXT_COLUMNS)).round().astype(int)
    low, high = min(0.0, rates.min()), max(0.0, rates.max())
    height = (rates[picked] - low) / (high - low or 1.0) * (_TEXT_ROWS - 1)
    canvas = np.full((_TEXT_ROWS, len(picked)), " ")
    canvas[_TEXT_ROWS - 1 - height.round().astype(int), np.arange(len(picked))] = "*"
    labels = {0: f"{high:.4g}", _TEXT_ROWS - 1: f"{low:.4g}"}
    lines = [
        f"{labels.get(row, ''):>10} |{''.join(cells)}".rstrip() for row, cells in enumerate(canvas)
    ]
    last = f"{steps[-1]} steps" if len(steps) > 1 else ""
    axis = [f"{'':>10} +{'-' * len(picked)}", f"{'':>12}0{last:>{max(len(picked) - 1, 0)}}"]
    return "\n".join([*textwrap.wrap(title, 76), "", *lines, *axis])
