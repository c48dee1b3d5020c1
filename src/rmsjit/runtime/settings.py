"""The user's settings of Numba, which rmsjit reads, and leaves as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def numba_config() -> Any:
    """Numba's configuration: environment, file and assignments."""
    return import_module("numba.core.config")


@contextmanager
def changed(**values: Any) -> Iterator[None]:
    """Change settings for a while."""
    config = numba_config()
    before = {name: getattr(config, name) for name in values}
    try:
        try:
            vars(config).update(values)
            yield
        finally:
            vars(config).update(before)
    finally:  # where the handler of a signal has raised on the way out
        vars(config).update(before)


@contextmanager
def compilable() -> Iterator[None]:
    """Keep the settings that would break our kernels, or slow them, away from them."""
    numba_config().reload_config()  # as a compilation would, where the environment has changed
    with changed(DISABLE_JIT=0, BOUNDSCHECK=None):
        yield
