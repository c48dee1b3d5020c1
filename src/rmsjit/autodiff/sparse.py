"""Products of constant scipy.sparse matrices with recorded values.

For ``A @ x`` the gradient with respect to ``x`` is ``A.T @ g``, for ``x @ A`` it is ``g @ A.T``.
scipy is never imported here: a caller who has a sparse matrix has already imported it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rmsjit.autodiff.autograd_names import defjvp, defvjp, primitive


def from_left(matrix: Any, x: Any) -> Any:
    """``matrix @ x``."""
    _check(x)
    if matrix.ndim == 1:
        return _from_left(matrix.reshape((1, -1)).tocsr(), x)[0]
    return _from_left(matrix, x)


def from_right(x: Any, matrix: Any) -> Any:
    """``x @ matrix``."""
    _check(x)
    if matrix.ndim == 1:
        return _from_right(x, matrix.reshape((-1, 1)).tocsr())[..., 0]
    return _from_right(x, matrix)


def _check(x: Any) -> None:
    if np.ndim(x) not in (1, 2):
        raise TypeError(
            f"a tape can only record products of sparse matrices with 1-d or 2-d arrays, got an "
            f"array of shape {np.shape(x)}"
        )


@primitive  # type: ignore[untyped-decorator]  # autograd has no types
def _from_left(matrix: Any, x: Any) -> Any:
    return np.asarray(matrix @ x)


@primitive  # type: ignore[untyped-decorator]
def _from_right(x: Any, matrix: Any) -> Any:
    return np.asarray(x @ matrix)


defvjp(_from_left, lambda ans, matrix, x: lambda g: _from_left(matrix.T, g), argnums=(1,))
defvjp(_from_right, lambda ans, x, matrix: lambda g: _from_right(g, matrix.T), argnums=(0,))
defjvp(_from_left, lambda g, ans, matrix, x: _from_left(matrix, g), argnums=(1,))
defjvp(_from_right, lambda g, ans, x, matrix: _from_right(g, matrix), argnums=(0,))
