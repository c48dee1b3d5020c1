"""Automatic differentiation on the autograd package: tapes, `gather`, gradients of losses.

`hooks` and `nested` are light and known to all of rmsjit; what imports autograd is imported by the
module that defines it.
"""
