"""``python -m rmsjit schedule``: draw a learning-rate schedule as an image or in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import math
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import numpy.typing as npt

from rmsjit.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

SCHEDULES: dict[str, type[LearningRateSchedule]] = {
    "exponential": ExponentialDecay,
    "piecewise": PiecewiseConstantDecay,
    "polynomial": PolynomialDecay,
    "inverse-time": InverseTimeDecay,
    "cosine": CosineDecay,
    "cosine-restarts": CosineDecayRestarts,
}
_MOST_STEPS = 2**53  # all exact in float64
_MOST_POINTS = 2001
_TEXT_COLUMNS, _TEXT_ROWS = 64, 16

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``schedule``: a subcommand for each schedule, with an option for each argument."""
    parser = subparsers.add_parser(
        "schedule",
        help="draw a learning-rate schedule",
        description="Draw a learning-rate schedule as an image, or in the terminal.",
    )
    kinds = parser.add_subparsers(dest="schedule", required=True, metavar="SCHEDULE")
    for kind, cls in SCHEDULES.items():
        summary = _plain_text(inspect.getdoc(cls) or "").partition("\n")[0]
        leaf = kinds.add_parser(
            kind, help=cls.__name__, description=f"Draw {cls.__name__}: {summary}"
        )
        _add_arguments(leaf, cls)
        leaf.add_argument("--steps", type=_step_count, metavar="N", help="steps to draw")
        target = leaf.add_mutually_exclusive_group()
        target.add_argument("--output", type=Path, help=f"image to write (default: {kind}.png)")
        target.add_argument("--text", action="store_true", help="draw in the terminal instead")
        leaf.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the schedule that the arguments describe; return the exit status."""
    cls = SCHEDULES[args.schedule]
    try:
        schedule = cls(**{name: getattr(args, name) for name in inspect.signature(cls).parameters})
    except (TypeError, ValueError) as error:
        return _fail(error, status=2)
    steps = _spread(args.steps or _natural_span(schedule))
    rates = schedule.curve(steps)
    if args.text:
        print(text_plot(_title(schedule), steps, rates))
        return 0
    output = args.output or Path(f"{args.schedule}.png")
    try:
        save_plot(output, _title(schedule), steps, rates)
    except ImportError as error:
        print(text_plot(_title(schedule), steps, rates))
        return _fail(f"no image written: {error}", status=1 if args.output else 0)
    except (OSError, ValueError) as error:
        return _fail(f"cannot write {output}: {error}", status=1)
    print(output)
    return 0


def save_plot(path: Path, title: str, steps: Steps, rates: Floats) -> None:
    """Write the curve as an image in the format given by the path's suffix."""
    from matplotlib.figure import Figure  # optional, and slow to import

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, rates, color="#1f5fa8", linewidth=2, solid_joinstyle="round")
    axes.fill_between(steps, rates, color="#1f5fa8", alpha=0.08, linewidth=0)
    axes.set_title("\n".join(textwrap.wrap(title, 90)), loc="left", fontsize=10, pad=12)
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate")
    axes.set_xlim(0, max(int(steps[-1]), 1))
    if rates.min() >= 0.0 and rates.max() > 0.0:
        axes.set_ylim(0.0, 1.06 * rates.max())
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


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


def _add_arguments(parser: argparse.ArgumentParser, cls: type[LearningRateSchedule]) -> None:
    hints = get_type_hints(cls)
    for name, parameter in inspect.signature(cls).parameters.items():
        options: dict[str, Any] = {"help": _argument_help(cls, parameter)}
        if hints[name] is bool:
            options["action"] = "store_true"
        else:
            options["type"] = str if name == "name" else _number
            options["required"] = parameter.default is parameter.empty
            options["default"] = None if options["required"] else parameter.default
            options["metavar"] = "TEXT" if name == "name" else "X"
            if options["required"] and "Sequence" in str(hints[name]):
                options["nargs"] = "+"
        parser.add_argument("--" + name.replace("_", "-"), **options)


def _argument_help(cls: type[LearningRateSchedule], parameter: inspect.Parameter) -> str:
    """The argument's text from the docstring, and its default."""
    found = re.search(rf"^ *{parameter.name} : (.*)$", cls.__doc__ or "", re.MULTILINE)
    has_default = isinstance(parameter.default, (int, float)) and parameter.default is not False
    shown = f" (default: {parameter.default})" if has_default else ""
    return _plain_text(found[1] if found else "") + shown


def _plain_text(text: str) -> str:
    return text.replace("``", "").replace("%", "%%")


def _number(text: str) -> float:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")


def _step_count(text: str) -> int:
    count = _number(text)
    if not (isinstance(count, int) and 1 <= count <= _MOST_STEPS):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return count


def _natural_span(schedule: LearningRateSchedule) -> int:
    """The number of steps that shows the characteristic shape of the schedule."""
    match schedule:
        case PiecewiseConstantDecay():
            span = 1.25 * max(schedule.boundaries, default=0.0)
        case CosineDecayRestarts():
            span = schedule.first_decay_steps * sum(schedule.t_mul**i for i in range(4)) - 1
        case CosineDecay():
            warmup = 0 if schedule.warmup_target is None else schedule.warmup_steps
            span = 1.1 * (warmup + schedule.decay_steps)
        case PolynomialDecay():
            span = schedule.decay_steps * (3.0 if schedule.cycle else 1.1)
        case ExponentialDecay() | InverseTimeDecay():
            span = 5.0 * schedule.decay_steps
        case _:
            span = 0.0
    return max(math.ceil(min(span, _MOST_STEPS - 1)) + 1, 10)


def _spread(count: int) -> Steps:
    """The steps 0 to ``count - 1``, thinned out evenly to what a drawing needs."""
    points = np.linspace(0, count - 1, min(count, _MOST_POINTS))
    return points.round().astype(np.int64)


def _title(schedule: LearningRateSchedule) -> str:
    """The call that makes the schedule, without arguments that have their default value."""
    config = schedule.get_config()
    parameters = inspect.signature(type(schedule)).parameters
    shown = [f"{k}={v!r}" for k, v in config.items() if v != parameters[k].default]
    return f"{type(schedule).__name__}({', '.join(shown)})"


def _fail(message: object, status: int) -> int:
    print(f"rmsjit schedule: {message}", file=sys.stderr)
    return status
