"""The counts of steps that torch keeps for each parameter, as tensors of one element.

To add 1 to each takes longer than the update of a small parameter.  So counts made here lie side by
side, and one addition does for many of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rmsjit.torch.settings import number_of
from rmsjit.torch.tensors import check_memory

STEP = "step"  # the key of a count in the state of a parameter
_TOGETHER = 64  # few enough that pickle, which writes all of them with each, stays small


def fresh_counts(numbers: Sequence[float]) -> list[Tensor]:
    """Counts with these values, side by side."""
    counts: list[Tensor] = []
    for start in range(0, len(numbers), _TOGETHER):
        run = list(numbers[start : start + _TOGETHER])
        together = torch.tensor(run, dtype=_dtype(), device="cpu")
        counts += [together[k] for k in range(len(together))]
    return counts


def _dtype() -> Any:
    """The dtype in which torch counts."""
    wide = torch.get_default_dtype() == torch.float64
    return torch.float64 if wide else torch.float32


def check_count(count: Any, owner: str) -> None:
    """Raise an error if a step can't add 1 to a count.

    Raises
    ------
    TypeError
        If it is not an ordinary tensor of a real number.
    ValueError
        If it does not have one element.
    """
    if not isinstance(count, Tensor):
        raise TypeError(f"{_name(owner)} must be a tensor, got {count!r}")
    check_memory(count, _name(owner))
    loaded_count(count, owner)


def loaded_count(count: Any, owner: str) -> float:
    """The value of a count from a file: a number, or a tensor of one.

    Raises
    ------
    TypeError, ValueError
        If it is something else.
    """
    if isinstance(count, Tensor) and count.is_meta:
        check_memory(count, _name(owner))
    return number_of(_name(owner), count)


def _name(owner: str) -> str:
    return f"the state {STEP!r} of {owner}"


def merged(counts: Sequence[Tensor]) -> list[Tensor]:
    """The same counts as fewer tensors, each of all those that lie side by side."""
    runs: list[list[Tensor]] = []
    for count in counts:
        if runs and _follows(runs[-1][-1], count):
            runs[-1].append(count)
        else:
            runs.append([count])
    return [run[0].as_strided((len(run),), (1,)) if len(run) > 1 else run[0] for run in runs]


def _follows(one: Tensor, other: Tensor) -> bool:
    """Whether a count lies right behind another one in the same memory."""
    return bool(
        one.ndim == other.ndim == 0
        and one.dtype == other.dtype
        and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.storage_offset() + 1 == other.storage_offset()
    )
