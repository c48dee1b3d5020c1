"""Our versions of NumPy functions whose derivative autograd has wrong for some arguments.

Each is a short composition of functions that autograd differentiates rightly, with the result of
NumPy's function.  Arguments that it has no version for are refused.
"""

from typing import Any

from rmsjit.autodiff.corrected import (
    axes,
    broadcasting,
    fourier,
    matrices,
    numbers,
    reductions,
)
from rmsjit.autodiff.corrected.arguments import Function

_TOPICS = (reductions, broadcasting, axes, fourier, matrices, numbers)

VERSIONS: dict[Any, Function] = {
    function: version for topic in _TOPICS for function, version in topic.VERSIONS.items()
}
