"""Fourier transforms of real numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmsjit.autodiff.corrected.arguments import (
    Function,
    autograds,
    given_by_name,
    refuse_out,
    refused,
    signature,
)


def _real_fft(function: Any) -> Function:
    """autograd knows the size, axis and norm by position only, and no norm "backward"."""
    version = autograds(function)
    _, size, axis, *_ = signature(function).parameters.values()

    def transform(a: Any, *args: Any, **keywords: Any) -> Any:
        given = given_by_name(function, (a, *args), keywords)
        refuse_out(function, given)
        kind = given.get("norm")
        if kind == "forward":
            raise refused(function, 'norm="forward"', "scale the result of the default norm")
        sizes, axes = (given.get(each.name, each.default) for each in (size, axis))
        return version(a, sizes, axes, None if kind == "backward" else kind)

    return transform


VERSIONS: dict[Any, Function] = {
    np.fft.irfft: _real_fft(np.fft.irfft),
    np.fft.irfft2: _real_fft(np.fft.irfft2),
    np.fft.irfftn: _real_fft(np.fft.irfftn),
    np.fft.rfft: _real_fft(np.fft.rfft),
    np.fft.rfft2: _real_fft(np.fft.rfft2),
    np.fft.rfftn: _real_fft(np.fft.rfftn),
}
