"""The two public optimizers, with the interfaces of tf-keras and of TensorFlow 1."""
