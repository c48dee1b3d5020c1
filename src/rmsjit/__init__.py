"""RMSprop for NumPy: the interface of TensorFlow's two optimizers on compiled, parallel kernels."""

from rmsjit import schedules, train
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.optimizer import RMSprop
from rmsjit.variables import Variable

__version__ = "0.1.0"

RMSProp = RMSprop

__all__ = ["IndexedSlices", "RMSProp", "RMSprop", "Variable", "schedules", "train"]
