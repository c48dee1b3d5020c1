"""The command line: ``python -m rmsjit``, or ``rmsjit`` if the package is installed."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

import rmsjit
from rmsjit.cli import bench, demo, forms, info, schedule, warmup

# In the order of --help.  A command is a module of `rmsjit.cli` whose `add_parser(subparsers)`
# sets the default `run`, which takes the parsed arguments and returns the exit status.  Slow
# imports (Numba, matplotlib, scikit-learn) belong in `run`, not at the top of the module.
COMMANDS = (demo, info, schedule, forms, warmup, bench)

INTERRUPTED, BROKEN_PIPE = 130, 141  # as a shell reports a program killed by a signal


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        By default the arguments of the process.

    Returns
    -------
    int
        The exit status: 0 for success, 2 for wrong arguments, 1 for other errors, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # don't fail on characters it can't encode
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
    except BrokenPipeError:  # e.g. `| head`
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:  # e.g. a full disk
        _drop_output()
        print(f"rmsjit {arguments.command}: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print(f"rmsjit {arguments.command}: there is not enough memory", file=sys.stderr)
        return 1
    return status


def _drop_output() -> None:
    """Let Python's final flush of what could not be written succeed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rmsjit", description=(rmsjit.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--version", action="version", version=f"rmsjit {rmsjit.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
