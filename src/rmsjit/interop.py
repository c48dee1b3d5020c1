"""Conversion of optimizer state to and from the formats of other libraries.

tf-keras needs no conversion: the lists of `rmsjit.RMSprop.get_weights` and `set_weights` contain
the same arrays in the same order as those of ``tf_keras.optimizers.legacy.RMSprop``.
"""

from rmsjit.exchange.torch_state import from_torch_state_dict, to_torch_state_dict

__all__ = ["from_torch_state_dict", "to_torch_state_dict"]
