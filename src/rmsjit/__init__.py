"""RMSprop for NumPy: the interface of TensorFlow's two optimizers on compiled, parallel kernels."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from rmsjit import nest
from rmsjit._version import __version__ as __version__
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.rule.form import Form
from rmsjit.rule.loss_scale import DynamicLossScale
from rmsjit.rule.slot import Slot
from rmsjit.variables import Variable

if _TYPE_CHECKING:
    from rmsjit import distributed, forms, interop, schedules, train
    from rmsjit.arrays.placement import empty_like_aligned
    from rmsjit.autodiff.gather import gather
    from rmsjit.autodiff.tape import GradientTape
    from rmsjit.checkpoints.save import load, save
    from rmsjit.minimization.driver import optimize, scipy_method
    from rmsjit.rate_finder import lr_range_test

RMSProp = RMSprop

_ON_DEMAND = {  # imported at first use, because each import takes time
    "GradientTape": "rmsjit.autodiff.offered",
    "distributed": "rmsjit",
    "empty_like_aligned": "rmsjit.arrays.placement",
    "forms": "rmsjit",
    "gather": "rmsjit.autodiff.offered",
    "interop": "rmsjit",
    "load": "rmsjit.checkpoints.save",
    "lr_range_test": "rmsjit.rate_finder",
    "optimize": "rmsjit.minimization.driver",
    "save": "rmsjit.checkpoints.save",
    "schedules": "rmsjit",
    "scipy_method": "rmsjit.minimization.driver",
    "train": "rmsjit",
}

__all__ = [
    "DynamicLossScale",
    "Form",
    "GradientTape",
    "IndexedSlices",
    "RMSProp",
    "RMSprop",
    "Slot",
    "Variable",
    "distributed",
    "empty_like_aligned",
    "forms",
    "gather",
    "interop",
    "load",
    "lr_range_test",
    "nest",
    "optimize",
    "save",
    "schedules",
    "scipy_method",
    "train",
]


def __getattr__(name: str) -> object:
    module = _ON_DEMAND.get(name)
    if module == "rmsjit":
        return _import_module(f"rmsjit.{name}")
    if module is not None:
        return getattr(_import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted([*__all__, "__version__"])
