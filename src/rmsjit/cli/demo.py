"""``python -m rmsjit demo``: train a model on real data."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rmsjit.demo import digits, words

FIRST_DEMO = "digits"  # what `demo` runs without a name
_MOST_DIGITS = 30
PICTURE_FORMATS = (".png", ".pdf", ".svg")

_Settings = TypeVar("_Settings", digits.Settings, words.Settings)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``demo`` with one subcommand for each demo."""
    parser = subparsers.add_parser(
        "demo",
        help="train a model on real data",
        description=f"Train a model on real data. The default demo is '{FIRST_DEMO}'; "
        f"'rmsjit demo {FIRST_DEMO} --help' lists its options.",
    )
    demos = parser.add_subparsers(dest="demo", required=True, metavar="DEMO", title="demos")
    for add_demo in DEMOS.values():
        add_demo(demos)


def spelled_out(argv: Sequence[str]) -> list[str]:
    """The arguments, with the default demo inserted after a ``demo`` without a name."""
    command, rest = list(argv[:1]), list(argv[1:])
    if command == ["demo"] and (not rest or rest[0] not in (*DEMOS, "-h", "--help")):
        return ["demo", FIRST_DEMO, *rest]
    return command + rest


# --- digits ---------------------------------------------------------------------------------


def _add_digits(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "digits",
        help="classify handwritten digits with a multilayer perceptron in plain NumPy",
        description="Train a multilayer perceptron, written in plain NumPy, on the handwritten "
        "digits that come with scikit-learn.",
    )
    default = digits.Settings()
    parser.add_argument(
        "--hidden",
        type=_positive_integer,
        nargs="+",
        default=default.hidden,
        metavar="N",
        help=f"sizes of the hidden layers (default: {' '.join(map(str, default.hidden))})",
    )
    _add_training_options(parser, default)
    picture = Path("rmsjit-digits.png")
    _add_option(parser, "--output", _picture, picture, "file of the learning curve", "FILE")
    parser.add_argument("--no-plot", action="store_true", help="draw no learning curve")
    parser.set_defaults(run=_run_digits)


def _run_digits(arguments: argparse.Namespace) -> int:
    picture: Path | None = None if arguments.no_plot else arguments.output
    if not _packages_are_there(["sklearn", "tqdm"] + ["matplotlib"] * (picture is not None)):
        return 2
    settings = _settings(digits.Settings, {**vars(arguments), "hidden": tuple(arguments.hidden)})
    digits.run(settings, picture, quiet=arguments.quiet)
    return 0


# --- words ----------------------------------------------------------------------------------


def _add_words(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "words",
        help="learn word vectors from Python's language reference, with sparse gradients",
        description="Train skip-gram word vectors with negative sampling, written in plain "
        "NumPy, on the language reference that comes with Python, and show similar words.",
    )
    default = words.Settings()
    add = partial(_add_option, parser)
    add("--dimensions", _positive_integer, default.dimensions, "size of each word vector")
    add("--window", _positive_integer, default.window, "maximum distance between neighbours")
    add("--negatives", _positive_integer, default.negatives, "random words per true neighbour")
    _add_training_options(parser, default)
    parser.set_defaults(run=_run_words)


def _run_words(arguments: argparse.Namespace) -> int:
    if not _packages_are_there(["tqdm"]):
        return 2
    words.run(_settings(words.Settings, vars(arguments)), quiet=arguments.quiet)
    return 0


# The name of each demo and the function that registers its subcommand.
DEMOS = {"digits": _add_digits, "words": _add_words}


# --- shared by all demos --------------------------------------------------------------------


def _add_training_options(
    parser: argparse.ArgumentParser, default: digits.Settings | words.Settings
) -> None:
    add = partial(_add_option, parser)
    add("--epochs", _positive_integer, default.epochs, "passes through the training data")
    add("--batch-size", _positive_integer, default.batch_size, "examples per step")
    add("--learning-rate", _positive_number, default.learning_rate, "initial learning rate", "X")
    add("--seed", _seed, default.seed, "seed of all random numbers")
    parser.add_argument("--quiet", action="store_true", help="show results only, no progress")


def _add_option(
    parser: argparse.ArgumentParser,
    option: str,
    kind: Callable[[str], Any],
    value: Any,
    text: str,
    metavar: str = "N",
) -> None:
    text = f"{text} (default: {value})"
    parser.add_argument(option, type=kind, metavar=metavar, default=value, help=text)


def _settings(kind: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def _packages_are_there(names: Sequence[str]) -> bool:
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        print(
            f"rmsjit demo: can't import {', '.join(missing)}; the demos need a few more packages "
            f"than rmsjit itself:\n\n    pip install matplotlib scikit-learn threadpoolctl tqdm\n",
            file=sys.stderr,
        )
    return not missing


def _positive_integer(text: str) -> int:
    return _integer(text, least=1)


def _seed(text: str) -> int:
    seed = _integer(text, least=0)
    if seed >= 2**32:  # as for scikit-learn
        raise argparse.ArgumentTypeError(f"must be below 2**32, got {text!r}")
    return seed


def _integer(text: str, least: int) -> int:
    if len(text) > _MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"must have at most {_MOST_DIGITS} digits")
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}, got {text!r}"
        )
    return int(text)


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return number


def _picture(text: str) -> Path:
    """Parse a path and check that it can be written, so that errors show before the training."""
    path = Path(text)
    if path.suffix.lower() not in PICTURE_FORMATS:
        raise argparse.ArgumentTypeError(
            f"must end in {', '.join(PICTURE_FORMATS[:-1])} or {PICTURE_FORMATS[-1]}, got {text!r}"
        )
    try:
        is_new = not path.exists()
        with path.open("ab"):
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"can't be written: {text!r} ({error.strerror})") from None
    return path
