"""``python -m rmsjit forms``: what every library's RMSprop computes, and how two differ."""

from __future__ import annotations

import argparse
import ast
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rmsjit.forms import description
from rmsjit.forms.functions import signature_of
from rmsjit.forms.library import Library
from rmsjit.forms.table import BY_NAME, LIBRARIES
from rmsjit.text import nearest

_WIDTH = 88


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``forms``."""
    parser = subparsers.add_parser(
        "forms",
        help="show what each library's RMSprop computes",
        description="Show the forms of RMSprop in rmsjit.forms, one of them with its formula, or "
        "what differs between two.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a form, such as torch")
    parser.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT=VALUE", help="such as momentum=0.9"
    )
    parser.add_argument("--compare", nargs=2, metavar="NAME", help="show what differs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what the arguments ask for; return the exit status."""
    try:
        if args.compare and args.name:
            raise ValueError("--compare takes two names and nothing else")
        if args.compare:
            lines = comparison(*map(_library, args.compare))
        elif args.name:
            lines = page(_library(args.name), _given(args.arguments))
        else:
            lines = overview()
    except (TypeError, ValueError) as error:
        print(f"rmsjit forms: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def overview() -> list[str]:
    """A line for each form."""
    names = {
        "eps": "epsilon and the root",
        "lr": "learning rate and momentum",
        "rms from": "rms starts from",
    }
    rows = [["form", "library", *names]]
    for library in LIBRARIES:
        known = description.facts(library)
        rows.append(
            [library.name, _plain(library.title), *(known[name] for name in names.values())]
        )
    notes = [
        "",
        "eps: epsilon inside or outside the root.  lr: the learning rate inside or outside of",
        "momentum.  python -m rmsjit forms NAME shows formula and arguments of a form.",
    ]
    return [*_columns(rows), *notes]


def page(library: Library, arguments: dict[str, Any]) -> list[str]:
    """Everything about a form, by default or for some arguments of its function."""
    signature = signature_of(library)
    for name in arguments:
        if name not in {argument.name for argument in library.arguments}:
            own = ", ".join(argument.name for argument in library.arguments)
            raise TypeError(f"{library.name} has no argument {name!r}; it has {own}")
    shown = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    call = f"rmsjit.forms.{library.name}({', '.join(map(str, shown))})"
    lines = [_plain(library.title), f"Read from {library.source}.", ""]
    lines += textwrap.wrap(call, _WIDTH, subsequent_indent="    ")
    for label, formula in description.formulas(library, arguments).items():
        lines += ["", f"With {label}:" if label else "By default:"]
        lines += [f"    {line}" for line in formula]
    known = description.facts(library, arguments or None)
    lines += ["", *_columns([name, value] for name, value in known.items())]
    if library.note:
        lines += ["", *textwrap.wrap(_plain(library.note), _WIDTH)]
    return lines


def comparison(one: Library, other: Library) -> list[str]:
    """What differs between two forms."""
    found = description.differences(one, other)
    if not found:
        return [f"{one.name} and {other.name} compute the same, with the same defaults"]
    rows = [["", one.name, other.name], *([name, *said] for name, *said in found)]
    return _columns(rows)


def _library(name: str) -> Library:
    if name not in BY_NAME:
        near = nearest(name, BY_NAME, least=0.0)
        raise ValueError(f"there is no form {name!r}; the nearest is {near!r}")
    return BY_NAME[name]


def _given(texts: Iterable[str]) -> dict[str, Any]:
    """``ARGUMENT=VALUE`` texts as a dictionary."""
    given: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"an argument must be given as NAME=VALUE, got {text!r}")
        if name in given:
            raise ValueError(f"{name} must be given once, got {given[name]!r} and {value}")
        try:
            given[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError, MemoryError, RecursionError):  # also of deep nesting
            given[name] = value
    return given


def _plain(text: str) -> str:
    return text.replace("`", "")


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows as lines, in columns as wide as they must be."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
