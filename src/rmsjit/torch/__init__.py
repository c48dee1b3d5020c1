"""RMSprop for PyTorch's parameters on the CPU, as a ``torch.optim.Optimizer``.

Imported only by who asks for it: ``import rmsjit.torch``.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("rmsjit.torch needs PyTorch: pip install torch") from error

from rmsjit.torch.optimizer import RMSprop

__all__ = ["RMSprop"]
