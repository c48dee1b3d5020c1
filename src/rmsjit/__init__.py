"""RMSprop for NumPy: the interface of TensorFlow's two optimizers on compiled, parallel kernels.

Every name is imported when it is first used, so a program loads no more of the package than it
needs.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from rmsjit._version import __version__ as __version__

if _TYPE_CHECKING:
    from rmsjit import distributed, forms, interop, nest, schedules, train
    from rmsjit.arrays.placement import empty_like_aligned
    from rmsjit.autodiff.gather import gather
    from rmsjit.autodiff.tape import GradientTape
    from rmsjit.checkpoints.save import load, save
    from rmsjit.indexed_slices import IndexedSlices
    from rmsjit.minimization.driver import optimize, scipy_method
    from rmsjit.optimizers.keras_legacy import RMSProp, RMSprop
    from rmsjit.rate_finder import lr_range_test
    from rmsjit.rule.form import Form
    from rmsjit.rule.loss_scale import DynamicLossScale
    from rmsjit.rule.slot import Slot
    from rmsjit.variables import Variable

_HOMES = {  # the module of each name; None for modules
    "DynamicLossScale": "rmsjit.rule.loss_scale",
    "Form": "rmsjit.rule.form",
    "GradientTape": "rmsjit.autodiff.offered",
    "IndexedSlices": "rmsjit.indexed_slices",
    "RMSProp": "rmsjit.optimizers.keras_legacy",
    "RMSprop": "rmsjit.optimizers.keras_legacy",
    "Slot": "rmsjit.rule.slot",
    "Variable": "rmsjit.variables",
    "distributed": None,
    "empty_like_aligned": "rmsjit.arrays.placement",
    "forms": None,
    "gather": "rmsjit.autodiff.offered",
    "interop": None,
    "load": "rmsjit.checkpoints.save",
    "lr_range_test": "rmsjit.rate_finder",
    "nest": None,
    "optimize": "rmsjit.minimization.driver",
    "save": "rmsjit.checkpoints.save",
    "schedules": None,
    "scipy_method": "rmsjit.minimization.driver",
    "train": None,
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
    """Import a public name, which is an ordinary one from then on."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rmsjit.runtime import forks

    home = _HOMES[name]
    with forks.undisturbed():  # a child would wait forever for a half-imported module's lock
        module = _import_module(home or f"{__name__}.{name}")
    value = globals()[name] = getattr(module, name) if home else module
    return value


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted([*__all__, "__version__"])
