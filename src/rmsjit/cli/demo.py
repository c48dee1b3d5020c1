"""``python -m rmsjit demo``: train a model on real data and see it learn."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rmsjit.demo import digits, words

FIRST_DEMO = "digits"  # the one that `demo` without a name runs
PICTURE_FORMATS = (".png", ".pdf", ".svg")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``demo`` with one subcommand for each demo."""
    parser = subparsers.add_parser(
        "demo",
        help="train a model on real data",
        description=f"Train a model on real data. Without a name it is '{FIRST_DEMO}', whose "
        f"options 'rmsjit demo {FIRST_DEMO} --help' lists.",
    )
    demos = parser.add_subparsers(dest="demo", required=True, metavar="DEMO", title="demos")
    for add_demo in DEMOS.values():
        add_demo(demos)


def spelled_out(argv: Sequence[str]) -> list[str]:
    """The arguments with the name of the demo put in where ``demo`` comes without one."""
    command, rest = list(argv[:1]), list(argv[1:])
    if command == ["demo"] and (not rest or rest[0] not in (*DEMOS, "-h", "--help")):
        return ["demo", FIRST_DEMO, *rest]
    return command + rest


def missing_packages(names: Sequence[str]) -> list[str]:
    """Those of the packages that can't be imported."""
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing


# --- digits ---------------------------------------------------------------------------------


def _add_digits(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "digits",
        help="classify handwritten digits by a multilayer perceptron in plain NumPy",
        description="Train a multilayer perceptron, written in plain NumPy, on the handwritten "
        "digits that scikit-learn ships.",
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
    _add_option(parser, "--output", _picture, "FILE", picture, "where to draw the learning curve")
    parser.add_argument("--no-plot", action="store_true", help="draw no learning curve")
    _add_quiet(parser)
    parser.set_defaults(run=_run_digits)


def _run_digits(arguments: argparse.Namespace) -> int:
    picture: Path | None = None if arguments.no_plot else arguments.output
    if not _packages_are_there(["sklearn", "tqdm"] + ["matplotlib"] * (picture is not None)):
        return 2
    settings = digits.Settings(
        hidden=tuple(arguments.hidden),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    digits.run(settings, picture, quiet=arguments.quiet)
    return 0


# --- words ----------------------------------------------------------------------------------


def _add_words(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "words",
        help="learn word vectors from Python's language reference, by sparse gradients",
        description="Train skip-gram word vectors with negative sampling, written in plain "
        "NumPy, on the language reference that Python ships, and show which words are alike.",
    )
    default = words.Settings()

    def add(option: str, value: int, text: str) -> None:
        _add_option(parser, option, _positive_integer, "N", value, text)

    add("--dimensions", default.dimensions, "numbers in the vector of a word")
    add("--window", default.window, "how far apart neighbours may stand in the text")
    add("--negatives", default.negatives, "random words to tell each true neighbour from")
    _add_training_options(parser, default)
    _add_quiet(parser)
    parser.set_defaults(run=_run_words)


def _run_words(arguments: argparse.Namespace) -> int:
    if not _packages_are_there(["tqdm"]):
        return 2
    settings = words.Settings(
        dimensions=arguments.dimensions,
        window=arguments.window,
        negatives=arguments.negatives,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    words.run(settings, quiet=arguments.quiet)
    return 0


# Name to the function that registers its subcommand.
DEMOS = {"digits": _add_digits, "words": _add_words}


# --- what demos share -----------------------------------------------------------------------


def _add_training_options(
    parser: argparse.ArgumentParser, default: digits.Settings | words.Settings
) -> None:
    def add(option: str, kind: Callable[[str], Any], metavar: str, value: Any, text: str) -> None:
        _add_option(parser, option, kind, metavar, value, text)

    add("--epochs", _positive_integer, "N", default.epochs, "passes through the training data")
    add("--batch-size", _positive_integer, "N", default.batch_size, "examples in a step")
    add("--learning-rate", _positive_number, "X", default.learning_rate, "that of the first step")
    add("--seed", _seed, "N", default.seed, "of all random numbers")


def _add_option(
    parser: argparse.ArgumentParser,
    option: str,
    kind: Callable[[str], Any],
    metavar: str,
    value: Any,
    text: str,
) -> None:
    text = f"{text} (default: {value})"
    parser.add_argument(option, type=kind, metavar=metavar, default=value, help=text)


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="show results only, no progress")


def _packages_are_there(names: Sequence[str]) -> bool:
    missing = missing_packages(names)
    if missing:
        print(
            f"rmsjit demo: can't import {', '.join(missing)}; the demos need a few packages more "
            f'than rmsjit itself:\n\n    pip install "rmsjit[demo]"\n',
            file=sys.stderr,
        )
    return not missing


def _positive_integer(text: str) -> int:
    return _integer(text, least=1)


def _seed(text: str) -> int:
    return _integer(text, least=0)


def _integer(text: str, least: int) -> int:
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
    """A path that can be written, so that a mistake shows before the training, not after it."""
    path = Path(text)
    if path.suffix.lower() not in PICTURE_FORMATS:
        raise argparse.ArgumentTypeError(
            f"must end in {', '.join(PICTURE_FORMATS[:-1])} or {PICTURE_FORMATS[-1]}, got {text!r}"
        )
    target = path if path.exists() else path.parent
    if path.is_dir() or not os.access(target, os.W_OK):
        raise argparse.ArgumentTypeError(f"can't be written: {text!r}")
    return path
