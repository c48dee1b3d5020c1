"""The command line: ``python -m rmsjit``, or ``rmsjit`` where the package is installed."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

import rmsjit
from rmsjit.cli import bench, demo, info, schedule, warmup

# In the order of --help.  A command is a module of `rmsjit.cli` whose `add_parser(subparsers)`
# sets the default `run`, which takes the parsed arguments and returns the exit status.  What is
# slow to import (Numba, matplotlib, scikit-learn) is imported by `run`, not by the module.
COMMANDS = (demo, info, schedule, warmup, bench)

INTERRUPTED, BROKEN_PIPE = 130, 141  # as shells report a program that a signal has ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        The exit status: 0 if all went well, 2 for what the user has to put right, 130 after
        Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # rather than fail on a character it lacks
    parser = _parser()
    arguments = parser.parse_args(demo.spelled_out(sys.argv[1:] if argv is None else argv))
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        status: int = arguments.run(arguments)
        print(end="", flush=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has gone, as `head` does; Python's last flush needs a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rmsjit", description=rmsjit.__doc__)
    parser.add_argument("--version", action="version", version=f"rmsjit {rmsjit.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
