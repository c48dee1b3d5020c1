"""Automatic differentiation on the autograd package: `GradientTape`, `gather`, gradients of losses.

Importing this imports autograd; `rmsjit.recording` is the light part that variables know.
"""

from rmsjit.autodiff.gather import gather
from rmsjit.autodiff.losses import gradients_of, gradients_of_arguments, gradients_of_touched
from rmsjit.autodiff.tape import GradientTape

__all__ = [
    "GradientTape",
    "gather",
    "gradients_of",
    "gradients_of_arguments",
    "gradients_of_touched",
]
