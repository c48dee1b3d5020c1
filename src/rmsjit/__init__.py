"""RMSprop for NumPy: the interface of TensorFlow's two optimizers on compiled, parallel kernels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rmsjit import schedules, train
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.optimizer import RMSprop
from rmsjit.variables import Variable

if TYPE_CHECKING:
    from rmsjit.autodiff import GradientTape, gather

__version__ = "0.1.0"

RMSProp = RMSprop

_ON_DEMAND = {  # imported at first use: each needs a package that takes its time to import
    "GradientTape": "rmsjit.autodiff",
    "gather": "rmsjit.autodiff",
}

__all__ = [
    "GradientTape",
    "IndexedSlices",
    "RMSProp",
    "RMSprop",
    "Variable",
    "gather",
    "schedules",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
