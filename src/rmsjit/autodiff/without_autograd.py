"""What stands for `GradientTape` and `gather` where the package autograd can't be imported.

Their use raises the error that says what to install.  Had autograd come in the meantime, as by
``%pip install`` in a notebook, they do what is asked for.
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
