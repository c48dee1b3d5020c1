"""The optimizer's state in the formats of other libraries.

For tf-keras the lists of `rmsjit.RMSprop.get_weights` and `set_weights` are the format: those of
``tf_keras.optimizers.legacy.RMSprop`` hold the same arrays in the same order.
"""

from rmsjit.checkpoints.exchange import from_torch_state_dict, to_torch_state_dict

__all__ = ["from_torch_state_dict", "to_torch_state_dict"]
