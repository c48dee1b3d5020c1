"""The user's Numba settings, which rmsjit reads and leaves unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from rmsjit.runtime import numba_internals


def numba_config() -> Any:
    """Numba's configuration, from environment variables, its file and assignments."""
    return import_module("numba").config


@contextmanager
def changed(**values: Any) -> Iterator[None]:
    """Change settings within a ``with`` block."""
    config = numba_config()
    before = {name: getattr(config, name) for name in values}
    try:
        try:
            vars(config).update(values)
            yield
        finally:
            vars(config).update(before)
    finally:  # a signal handler may have raised in the inner ``finally``
        vars(config).update(before)


@contextmanager
def compilable() -> Iterator[None]:
    """Override the settings that would break or slow down our kernels."""
    numba_internals.reload_settings()  # as a compilation does if the environment has changed
    with changed(DISABLE_JIT=0, BOUNDSCHECK=None):
        yield
