"""The compiled code.  It knows addresses and numbers, nothing of optimizers."""
