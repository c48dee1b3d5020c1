"""Replacements for `GradientTape` and `gather` where autograd can't be imported.

Their use raises an error that says what to install.  If autograd has been installed since, as with
``%pip install`` in a notebook, they work.
"""

from __future__ import annotations

from typing import Any


class GradientTape:
    """Needs the package autograd: ``pip install "autograd>=1.8"``."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        from rmsjit.autodiff import tape

        return tape.GradientTape(*args, **kwargs)


def gather(params: Any, indices: Any) -> Any:
    """Needs the package autograd: ``pip install "autograd>=1.8"``."""
    from rmsjit.autodiff.gather import gather

    return gather(params, indices)
