"""``python -m rmsjit schedule``: draw learning-rate schedules as images or in the terminal."""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_type_hints

from rmsjit import schedules
from rmsjit.cli.plots import save_gallery, save_plot, text_plot
from rmsjit.schedules import LearningRateSchedule
from rmsjit.schedules.curves import MOST_STEPS, natural_span, rates_of, spread

# The subcommands, each with the schedule that is drawn of it where all are drawn.
EXAMPLES: dict[str, LearningRateSchedule] = {
    "exponential": schedules.ExponentialDecay(0.1, 100, 0.5),
    "piecewise": schedules.PiecewiseConstantDecay([100, 150], [0.1, 0.03, 0.01]),
    "polynomial": schedules.PolynomialDecay(0.1, 100, power=2.0),
    "inverse-time": schedules.InverseTimeDecay(0.1, 100, 0.5, staircase=True),
    "cosine": schedules.CosineDecay(0.0, 150, warmup_target=0.1, warmup_steps=30),
    "cosine-restarts": schedules.CosineDecayRestarts(0.1, 50, m_mul=0.8),
    "exponential-restarts": schedules.ExponentialDecayRestarts(0.1, 50, 0.05, m_mul=0.8),
    "one-cycle": schedules.OneCycle(0.1, 200),
    "plateau": schedules.ReduceOnPlateau(0.1, factor=0.5, patience=10),
    "warmup": schedules.LinearWarmup(schedules.InverseTimeDecay(0.1, 30, 1.0), 40),
    "join": schedules.Join([schedules.CosineDecay(0.1, 100, alpha=0.2), 0.01], [120]),
    "chain": schedules.Chain(
        [
            schedules.ExponentialDecayRestarts(0.1, 40, 0.1, t_mul=1.0),
            schedules.ExponentialDecay(1.0, 100, 0.5),
        ]
    ),
}
SCHEDULES = {kind: type(schedule) for kind, schedule in EXAMPLES.items()}
_BY_NAME = {cls.__name__: cls for cls in SCHEDULES.values()}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``schedule``: a subcommand for each schedule, with an option for each argument."""
    parser = subparsers.add_parser(
        "schedule",
        help="draw learning-rate schedules",
        description="Draw a learning-rate schedule as an image, or in the terminal; "
        "an example of each without SCHEDULE.",
    )
    _add_target(parser, "schedules.png")
    parser.set_defaults(run=run_all)
    kinds = parser.add_subparsers(dest="kind", metavar="SCHEDULE")
    for kind, cls in SCHEDULES.items():
        summary = _plain_text(inspect.getdoc(cls) or "").partition("\n")[0]
        leaf = kinds.add_parser(
            kind, help=cls.__name__, description=f"Draw {cls.__name__}: {summary}"
        )
        _add_arguments(leaf, cls)
        leaf.add_argument("--steps", type=_step_count, metavar="N", help="steps to draw")
        _add_target(leaf, f"{kind}.png", default=argparse.SUPPRESS)  # or it would hide the parser's
        leaf.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the schedule that the arguments describe; return the exit status."""
    cls = SCHEDULES[args.kind]
    if args.text and args.output:  # one before the name of the schedule
        return _fail("--text and --output can't both be given", status=2)
    try:
        schedule = cls(**{name: getattr(args, name) for name in inspect.signature(cls).parameters})
        steps = spread(args.steps or natural_span(schedule))
        rates = rates_of(schedule, steps)
    except (TypeError, ValueError) as error:
        return _fail(error, status=2)
    title = repr(schedule)
    if args.text:
        print(text_plot(title, steps, rates))
        return 0
    output = args.output or Path(f"{args.kind}.png")
    try:
        save_plot(output, title, steps, rates)
    except ImportError as error:
        print(text_plot(title, steps, rates))
        return _fail(f"no image written: {error}", status=1 if args.output else 0)
    except (OSError, ValueError) as error:
        return _fail(f"cannot write {output}: {error}", status=1)
    print(output)
    return 0


def run_all(args: argparse.Namespace) -> int:
    """Draw an example of every schedule; return the exit status."""
    if args.text:
        _print_all()
        return 0
    output = args.output or Path("schedules.png")
    try:
        save_gallery(output, list(EXAMPLES.values()))
    except ImportError as error:
        _print_all()
        return _fail(f"no image written: {error}", status=1 if args.output else 0)
    except (OSError, ValueError) as error:
        return _fail(f"cannot write {output}: {error}", status=1)
    print(output)
    return 0


def _print_all() -> None:
    for schedule in EXAMPLES.values():
        steps = spread(natural_span(schedule))
        print(text_plot(repr(schedule), steps, rates_of(schedule, steps)), end="\n\n")


# --- arguments ------------------------------------------------------------------------------


def _add_target(parser: argparse.ArgumentParser, name: str, **default: Any) -> None:
    """The options for where to draw; by default, an image of this name."""
    target = parser.add_mutually_exclusive_group()
    image = f"image to write (default: {name})"
    target.add_argument("--output", type=_image, help=image, **default)
    text = "draw in the terminal instead"
    target.add_argument("--text", action="store_true", help=text, **default)


def _image(text: str) -> Path:
    """The file of an image; a PNG without a suffix."""
    path = Path(text)
    if not path.name or path.is_dir():
        raise argparse.ArgumentTypeError(f"must be the name of an image file, got {text!r}")
    return path if path.suffix else path.with_suffix(".png")


def _add_arguments(parser: argparse.ArgumentParser, cls: type[LearningRateSchedule]) -> None:
    hints = get_type_hints(cls)
    for name, parameter in inspect.signature(cls).parameters.items():
        options: dict[str, Any] = {"help": _argument_help(cls, parameter)}
        if hints[name] is bool:
            options["action"] = "store_true"
        else:
            options["type"], options["metavar"] = _kind_of(hints[name])
            options["required"] = parameter.default is parameter.empty
            options["default"] = None if options["required"] else parameter.default
            if options["required"] and "Sequence" in str(hints[name]):
                options["nargs"] = "+"
        parser.add_argument("--" + name.replace("_", "-"), **options)


def _kind_of(hint: Any) -> tuple[Any, str]:
    """What converts the text of an argument, and its name in the help."""
    if "LearningRateSchedule" in str(hint):
        return _part, "SCHEDULE"
    return (str, "TEXT") if "str" in str(hint) else (_number, "X")


# What the docstring of a schedule says of an argument: its type in the words of Python, then prose.
_ARGUMENT = r"^ *{name} : (?P<type>\{{.*?\}}|[a-z ]+)(?:, optional)?, (?P<prose>.*)$"


def _argument_help(cls: type[LearningRateSchedule], parameter: inspect.Parameter) -> str:
    """The argument's text from the docstring, and its default."""
    pattern = _ARGUMENT.format(name=parameter.name)
    found = re.search(pattern, cls.__doc__ or "", re.MULTILINE)
    choices = re.findall(r'"(\w+)"', found["type"]) if found else []
    prose = _plain_text(found["prose"] if found else "")
    has_default = isinstance(parameter.default, (int, float, str))
    shown = has_default and parameter.default is not False
    return (
        (f"{' or '.join(choices)}: " if choices else "")
        + prose
        + (f" (default: {parameter.default})" if shown else "")
    )


def _plain_text(text: str) -> str:
    return text.replace("``", "").replace("%", "%%")


def _number(text: str) -> float:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")


def _part(text: str) -> LearningRateSchedule | float:
    """A number, or a schedule as in Python: ``CosineDecay(0.1, decay_steps=100)``."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        return _number(text)
    try:
        made = _made(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must be a number or a schedule: {error}") from None
    if not isinstance(made, LearningRateSchedule):
        raise argparse.ArgumentTypeError(f"must be a number or a schedule, got {text!r}")
    return made


def _made(node: ast.expr) -> Any:
    """What a call of schedules, a list of them, or a literal stands for; nothing else is run."""
    if isinstance(node, ast.List):
        return [_made(item) for item in node.elts]
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    name = ast.unparse(node.func)
    if name not in _BY_NAME:
        raise ValueError(f"there is no schedule {name!r}")
    keywords = {word.arg or "**": _made(word.value) for word in node.keywords}
    return _BY_NAME[name](*map(_made, node.args), **keywords)


def _step_count(text: str) -> int:
    count = _number(text)
    if not (isinstance(count, int) and 1 <= count <= MOST_STEPS):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return count


def _fail(message: object, status: int) -> int:
    print(f"rmsjit schedule: {message}", file=sys.stderr)
    return status
