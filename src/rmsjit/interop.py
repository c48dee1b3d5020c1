"""Conversion of optimizer state to and from the formats of other libraries.

Each pair of functions moves an optimizer's state to a library and back without changing it, so that
training continues as if it had never moved, if both use the same form.  If they do not, the error
says what would be lost.  The values of variables do not change; hyperparameters do only where a
format contains them.
"""

from rmsjit.exchange.chainer_arrays import from_chainer_arrays, to_chainer_arrays
from rmsjit.exchange.keras_file import from_keras_file, to_keras_file
from rmsjit.exchange.keras_variables import from_keras_optimizer, to_keras_optimizer
from rmsjit.exchange.optax_state import from_optax_state, to_optax_state
from rmsjit.exchange.torch_state import from_torch_state_dict, to_torch_state_dict

__all__ = [
    "from_chainer_arrays",
    "from_keras_file",
    "from_keras_optimizer",
    "from_optax_state",
    "from_torch_state_dict",
    "to_chainer_arrays",
    "to_keras_file",
    "to_keras_optimizer",
    "to_optax_state",
    "to_torch_state_dict",
]
