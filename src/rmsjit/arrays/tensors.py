"""Tensors of other libraries as NumPy arrays; none of these libraries is imported for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rmsjit.arrays.dtypes import dtype_named


def array_of_tensor(value: Any) -> NDArray[Any]:
    """A tensor of torch, TensorFlow, Keras or JAX as an array, on the CPU and without its gradient.

    Parameters
    ----------
    value : tensor or array_like

    Returns
    -------
    ndarray
        A view of the tensor's memory where the library can give one.
    """
    if hasattr(value, "detach"):
        return _array_of_torch(value)
    if hasattr(value, "numpy"):
        value = value.numpy()
    return np.asarray(value)


def new_array(value: Any, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """A value in new memory, also where ``value.__array__`` takes no `copy`, as that of torch."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__array__"):
        return np.array(value, dtype)
    return np.asarray(value, dtype).copy()


def _array_of_torch(tensor: Any) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) != "torch.bfloat16":
        array: NDArray[Any] = tensor.resolve_conj().resolve_neg().numpy()
        return array
    import torch  # it is there; and its bridge to NumPy does not know bfloat16

    bits: NDArray[Any] = tensor.view(torch.int16).numpy()
    return bits.view(dtype_named("bfloat16"))


def torch_tensor(array: NDArray[Any]) -> Any:
    """A copy of an array as a tensor of torch.

    Raises
    ------
    ImportError
        If torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError("a state_dict of torch needs torch: pip install torch") from error
    copied = np.array(array, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)
