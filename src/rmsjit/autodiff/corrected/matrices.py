"""Decompositions and products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmsjit.autodiff.autograd_names import anp, getval
from rmsjit.autodiff.corrected.arguments import Function, autograds, ndim_of, refused, shape_of


def _cholesky(a: Any, **keywords: Any) -> Any:
    """autograd has no rule for complex numbers, but computes one."""
    if np.iscomplexobj(getval(a)):
        raise refused(np.linalg.cholesky, "complex numbers", "autograd has only the real rule")
    return anp.linalg.cholesky(a, **keywords)


def _pinv(a: Any, *args: Any, **keywords: Any) -> Any:
    """autograd has no rule for complex numbers, but the one for real ones holds for inverses."""
    height, width = shape_of(a)[-2:]
    if height != width and np.iscomplexobj(getval(a)):
        raise refused(np.linalg.pinv, "complex numbers", "use inv of a.conj().T @ a")
    return anp.linalg.pinv(a, *args, **keywords)


def _kron(a: Any, b: Any) -> Any:
    """autograd expects matrices."""
    ndim = max(ndim_of(a), ndim_of(b))
    if ndim <= 2:
        return anp.kron(a, b)
    shapes = [(1,) * (ndim - ndim_of(x)) + shape_of(x) for x in (a, b)]
    outer = anp.reshape(a, [n for length in shapes[0] for n in (length, 1)])
    inner = anp.reshape(b, [n for length in shapes[1] for n in (1, length)])
    return anp.reshape(outer * inner, [m * n for m, n in zip(*shapes, strict=True)])


def _named_parts(function: Any) -> Function:
    """autograd's version, but with a named tuple as the result, as NumPy's has."""
    version = autograds(function)

    def parts(*args: Any, **keywords: Any) -> Any:
        value = version(*args, **keywords)
        kind = type(value._value)
        return kind(*(value[i] for i in range(len(value)))) if issubclass(kind, tuple) else value

    return parts


_parts_of_slogdet = _named_parts(np.linalg.slogdet)


def _slogdet(a: Any) -> Any:
    """autograd takes the sign for a constant, which it is for real numbers only."""
    parts = _parts_of_slogdet(a)
    if not np.iscomplexobj(getval(a)):
        return parts
    size = shape_of(a)[-1]
    unit = anp.linalg.det(a * np.exp(-getval(parts[1]) / size)[..., None, None])  # of modulus 1
    return type(parts)(unit / anp.abs(unit), parts[1])


VERSIONS: dict[Any, Function] = {
    np.kron: _kron,
    np.linalg.cholesky: _cholesky,
    np.linalg.eig: _named_parts(np.linalg.eig),
    np.linalg.eigh: _named_parts(np.linalg.eigh),
    np.linalg.pinv: _pinv,
    np.linalg.slogdet: _slogdet,
    np.linalg.svd: _named_parts(np.linalg.svd),
}
