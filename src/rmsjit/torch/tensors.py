"""Parameters, their state and their gradients as NumPy arrays over the same memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rmsjit.arrays.tensors import array_of_tensor
from rmsjit.indexed_slices import IndexedSlices
from rmsjit.torch.reader import reader_for

_DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)


def check_parameter(parameter: Tensor, name: str) -> None:
    """Check that the memory of a parameter can be updated.

    One that torch will make only when a lazy module is first used is checked then.

    Raises
    ------
    TypeError
        If it is not an ordinary dense tensor of one of rmsjit's dtypes.
    ValueError
        If it is not on the CPU.
    """
    if is_lazy(parameter):
        return
    if parameter.device.type != "cpu":
        raise ValueError(
            f"{name} must be on the CPU, got one on the device {str(parameter.device)!r}; "
            f"torch.optim.RMSprop trains it there"
        )
    if parameter.layout != torch.strided or is_traceable_wrapper_subclass(parameter):
        raise TypeError(
            f"{name} must be an ordinary dense tensor, got a {type(parameter).__name__} of the "
            f"layout {parameter.layout}"
        )
    if parameter.dtype not in _DTYPES:
        raise TypeError(
            f"{name} must have one of the dtypes {', '.join(map(str, _DTYPES))}, got "
            f"{parameter.dtype}"
        )
    if parameter.is_neg():
        raise TypeError(
            f"{name} must not be a negative view of other memory, such as z.conj().imag"
        )
    if parameter.is_inference():
        raise TypeError(f"{name} must not be an inference tensor, which torch can't train")
    check_memory(parameter, name)


def check_memory(tensor: Tensor, name: str) -> None:
    """Raise `TypeError` if the elements of a tensor are nowhere in memory.

    This is so for wrappers of other tensors, and where memory has been freed.
    """
    if not _has_memory(tensor):
        raise TypeError(
            f"{name} must be an ordinary dense tensor with memory on the CPU, got a "
            f"{type(tensor).__name__} without such memory, of the shape {(*tensor.shape,)}, the "
            f"layout {tensor.layout} and the device {str(tensor.device)!r}"
        )


def _has_memory(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    if is_traceable_wrapper_subclass(tensor):
        return False
    try:
        return bool(tensor.data_ptr() != 0 or tensor.numel() == 0)
    except RuntimeError:  # the answer of some kinds that have none
        return False


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Make tensors without a history that can be changed anywhere.

    Those made in inference mode can't be changed outside of it.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def array_of(tensor: Tensor) -> NDArray[Any]:
    """An array over the memory of a parameter or of its state.

    Complex numbers are pairs of real ones on a last axis, as torch's RMSprop treats them.
    """
    tensor = tensor.detach()
    return array_of_tensor(torch.view_as_real(tensor) if tensor.is_complex() else tensor)


def gradient_of(gradient: Tensor, parameter_name: str) -> NDArray[Any] | IndexedSlices:
    """A gradient of any layout, for the array of its parameter; copied only if it must be.

    Raises
    ------
    TypeError
        If it has no memory that can be read.
    """
    if gradient.layout == torch.strided:
        gradient = _in_memory(gradient)
        check_memory(gradient, f"the gradient of {parameter_name}")
        return _as_real(array_of_tensor(gradient))
    rows = IndexedSlices.from_torch(gradient)
    if not gradient.is_complex():
        return rows
    shape = None if rows.dense_shape is None else (*rows.dense_shape, 2)
    return IndexedSlices(_as_real(rows.values), rows.indices, shape)


def _in_memory(gradient: Tensor) -> Tensor:
    """A gradient whose elements are not in memory yet, but can be."""
    if hasattr(gradient, "wait"):  # the result of a collective operation that may still run
        gradient = gradient.wait()
    return gradient.clone() if gradient._is_zerotensor() else gradient


def _as_real(array: NDArray[Any]) -> NDArray[Any]:
    """Complex numbers as pairs of real ones on a last axis."""
    if array.dtype.kind != "c":
        return array
    whole = np.array(array, order="C", copy=None)  # np.ascontiguousarray would add an axis to 0-d
    pairs: NDArray[Any] = whole[..., np.newaxis].view(array.real.dtype)
    return pairs


class Layouts:
    """How parameters lie in memory, to be compared with their gradients."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._layouts = list(map(_layout_of, tensors))
        self._shapes = list(map(Tensor.size, tensors))
        self._dtypes = [tensor.dtype for tensor in tensors]
        self._filled = np.array(list(map(Tensor.numel, tensors))) > 0
        self._single = [k for k, tensor in enumerate(tensors) if tensor.numel() == 1]
        self._contiguous = all(map(Tensor.is_contiguous, tensors))
        self._has_complex = any(map(Tensor.is_complex, tensors))
        self._reader = reader_for(tensors)
        self._positive = b""  # the addresses of gradients that were no negative views

    def addresses_of(self, gradients: Sequence[Tensor]) -> NDArray[np.int64] | None:
        """The addresses of gradients that have the memory layout of these tensors.

        Returns
        -------
        int64 array, shape (tensors,), or None
            None if one differs in layout, or has no memory.  Never for complex ones, which may
            still have to be conjugated.
        """
        if self._has_complex:
            return None
        found = None
        if self._reader is not None:
            found = self._reader.addresses(gradients)
            if not self._reader.is_useful:
                self._reader = None
        if found is None:
            found = self._addresses_by_methods(gradients)
        return None if found is None or self._any_is_negative(gradients, found) else found

    def _addresses_by_methods(self, gradients: Sequence[Tensor]) -> NDArray[np.int64] | None:
        try:
            if not self._fit(gradients):
                return None
            found = addresses(gradients)
        except RuntimeError:  # a sparse tensor has no strides, and some have no address
            return None
        return found if (found[self._filled] != 0).all() else None

    def _fit(self, gradients: Sequence[Tensor]) -> bool:
        """Whether gradients lie in memory as these tensors do, by their methods."""
        if not self._contiguous:
            return list(map(_layout_of, gradients)) == self._layouts
        return (
            all(map(Tensor.is_contiguous, gradients))
            and list(map(Tensor.size, gradients)) == self._shapes
            and [gradient.dtype for gradient in gradients] == self._dtypes
        )

    def _any_is_negative(self, gradients: Sequence[Tensor], found: NDArray[np.int64]) -> bool:
        """Whether a gradient is a negative view of other memory, such as ``z.conj().imag``.

        Such a view skips every second number.  So if gradients are where those of the last step
        were, only one of a single number can have become such a view.
        """
        where = found.tobytes()
        if where == self._positive:
            return any(gradients[k].is_neg() for k in self._single)
        if any(map(Tensor.is_neg, gradients)):
            return True
        self._positive = where
        return False


def _layout_of(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype


class KnownMemory:
    """Where some tensors were and how they lay there, to see whether they still do."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._reader = reader_for(tensors)
        self._addresses = addresses(tensors).tobytes()
        self._layouts = list(map(_layout_of, tensors))

    def is_unchanged(self) -> bool:
        """Whether all tensors are where and as they were."""
        found = self._reader.addresses(self._tensors) if self._reader else None
        if found is not None:
            return found.tobytes() == self._addresses
        try:
            if list(map(_layout_of, self._tensors)) != self._layouts:
                return False
            return addresses(self._tensors).tobytes() == self._addresses
        except RuntimeError:  # one has no address any more
            return False


def addresses(tensors: Sequence[Tensor]) -> NDArray[np.int64]:
    """Where dense tensors begin."""
    return np.array(list(map(Tensor.data_ptr, tensors)), np.int64)
