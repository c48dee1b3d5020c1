"""What a minimisation returns: SciPy's ``OptimizeResult``, or the same without SciPy."""

from __future__ import annotations

from typing import Any


class Result(dict[str, Any]):
    """A dict whose keys are also attributes, as ``scipy.optimize.OptimizeResult`` is one.

    Examples
    --------
    >>> result = Result(x=1.0, success=True)
    >>> result.success, result["x"]
    (True, 1.0)
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} in {', '.join(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __dir__(self) -> list[str]:
        return sorted(self)

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:>{width}}: {value!r}" for name, value in self.items())


def result(**fields: Any) -> Any:
    """These fields as an ``OptimizeResult`` of SciPy if it is installed, else as a `Result`."""
    try:
        from scipy.optimize import OptimizeResult
    except ImportError:
        return Result(**fields)
    return OptimizeResult(**fields)
