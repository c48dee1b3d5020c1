"""A plot of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BLUE, ORANGE, GREY = "#1f5fa8", "#c8511b", "#595959"


def draw(path: Path, title: str, losses: Sequence[float], accuracies: Sequence[float]) -> None:
    """Plot loss and test accuracy over epochs, in the format given by the path's suffix.

    Parameters
    ----------
    path : Path
    title : str
    losses, accuracies : sequence of float
        One value per epoch; accuracies as fractions.
    """
    from matplotlib.figure import Figure  # optional, and slow to import

    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    left, right = figure.subplots(1, 2)
    percents = 100 * np.asarray(accuracies)
    _curve(left, "Training loss (cross-entropy, log scale)", losses, BLUE, f"{losses[-1]:.2g}")
    left.set_yscale("log")
    _curve(right, "Test accuracy (%)", percents, ORANGE, f"{percents[-1]:.1f} %")
    right.set_ylim(top=100 + 0.04 * (100 - percents.min()))
    figure.savefig(path)


def _curve(axes: Any, label: str, values: Any, color: str, last: str) -> None:
    epochs = np.arange(1, len(values) + 1)
    axes.plot(epochs, values, color=color, linewidth=2, solid_joinstyle="round")
    axes.plot(epochs[-1], values[-1], "o", color=color, clip_on=False)
    axes.annotate(
        last,
        (epochs[-1], values[-1]),
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        color=color,
        fontweight="bold",
        annotation_clip=False,
    )
    axes.set_title(label, loc="left", fontsize=10, color=GREY)
    axes.set_xlabel("epoch")
    axes.set_xlim(1, max(len(values), 2))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
