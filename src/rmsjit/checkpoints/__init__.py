"""The implementation of `rmsjit.save` and `rmsjit.load`."""
