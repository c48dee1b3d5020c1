"""The arguments of a strategy, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rmsjit.arrays.dtypes import Precision, dtype_named
from rmsjit.optimizers.arguments import Reduction
from rmsjit.rule.checks import choice, integer

DEFAULT_BUCKET_BYTES = 1 << 22


@dataclass(frozen=True)
class Settings:
    """How gradients are reduced and state is held; the same on every rank."""

    reduce: Reduction = "sum"
    shard_state: bool = False
    bucket_bytes: int = DEFAULT_BUCKET_BYTES
    wire_dtype: str | None = None

    def __post_init__(self) -> None:
        choice("reduce", self.reduce, "sum", "mean")
        if not isinstance(self.shard_state, bool):
            raise TypeError(f"shard_state must be True or False, got {self.shard_state!r}")
        if not 1 << 10 <= integer("bucket_bytes", self.bucket_bytes) <= 1 << 30:
            raise ValueError(f"bucket_bytes must be from 2**10 to 2**30, got {self.bucket_bytes}")
        if self.wire_dtype not in (None, "bfloat16"):
            raise ValueError(f'wire_dtype must be None or "bfloat16", got {self.wire_dtype!r}')
        if self.wire_dtype is not None:
            _check_is_installed(self.wire_dtype)

    def scales(self, ranks: int, precisions: Iterable[Precision]) -> Scales:
        """Where to divide by the number of ranks for a mean, for gradients of these dtypes."""
        scale = 1.0 / ranks if self.reduce == "mean" else 1.0
        if any(precision.is_half for precision in precisions):
            return Scales(of_sums=scale, of_step=1.0)
        return Scales(of_sums=1.0, of_step=scale)


def _check_is_installed(dtype: str) -> None:
    try:
        dtype_named(dtype)
    except ImportError as error:
        raise ImportError(f"wire_dtype={dtype!r}: {error}") from error


class Scales(NamedTuple):
    """The factors that turn sums over ranks into means; at least one of them is 1.

    The update applies the factor at no cost.  But a sum of half types may overflow where the mean
    would not, so these sums are multiplied before they are rounded.
    """

    of_sums: float
    of_step: float
