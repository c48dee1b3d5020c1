"""Automatic differentiation, built on the autograd package: tapes, `gather`, gradients of losses.

`hooks` is light and used throughout rmsjit.  Modules that import autograd are
imported only when they are needed.
"""
