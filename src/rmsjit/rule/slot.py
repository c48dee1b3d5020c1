"""`Slot`: an array that a form of the rule keeps for each variable; and the usual ones.

A form (`rmsjit.rule.form`) is a set of slots and how they are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from numpy.typing import NDArray

from rmsjit.arrays.blocks import MAPS
from rmsjit.arrays.dtypes import ARITHMETIC
from rmsjit.rule.values import as_call, changed_settings, check_choice

DECAY, CARRY, STAY = "decay", "carry", "stay"
NO_CLOSED_FORM = "no closed form"
STOCHASTIC = "stochastic"
HALVES = ("float16", "bfloat16")
PACKED = tuple(MAPS)
SLOT_DTYPES = (None, ARITHMETIC, *PACKED, *HALVES, "float32", "float64")
_MAP_OF_SLOT = {"rms": "unsigned 8bit", "momentum": "fine 8bit"}  # see `rmsjit.arrays.blocks`
ROUNDINGS = ("nearest", STOCHASTIC)
STATE_DTYPES = ("bfloat16", "8bit", "float32", "float64")  # float16 has no room for squares


def is_packed(dtype: str | None) -> bool:
    """Whether a slot of this dtype is kept in blocks of 8 bits."""
    return dtype in PACKED


@dataclass(frozen=True, repr=False)
class Slot:
    """One array that the rule keeps for each variable.

    Parameters
    ----------
    name : str
    start : float or {"epsilon", "variable"}, default 0.0
        The initial value of every element; "variable" for a copy of the variable.
    dtype : str, optional
        Such as "float64"; by default, that of the variable.  "arithmetic" is float32 for half types
        and otherwise the variable's.
    zero_gradient : {"decay", "carry", "stay", "no closed form"}
        What a step with a zero gradient does to it: multiplies it by rho, multiplies it by the
        momentum factor, or nothing; "no closed form" for anything else, which ``sparse="exact"``
        refuses.
    rounding : {"nearest", "stochastic"}
        How values are rounded to a half type, as for `Form`; slots in 8 bits need "stochastic".

    Examples
    --------
    >>> Slot("rms", start=1.0, zero_gradient="decay")
    Slot('rms', start=1.0, zero_gradient='decay')
    """

    name: str
    start: float | str = 0.0
    dtype: str | None = None
    zero_gradient: str = NO_CLOSED_FORM
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        check_choice(self, "zero_gradient", (DECAY, CARRY, STAY, NO_CLOSED_FORM))
        check_choice(self, "dtype", SLOT_DTYPES)
        check_choice(self, "rounding", ROUNDINGS)
        if is_packed(self.dtype) and self.rounding != STOCHASTIC:
            raise ValueError(f'rounding must be "stochastic" in 8 bits, got {self.rounding!r}')
        if self.start not in ("epsilon", "variable") and not _is_finite(self.start):
            raise ValueError(
                f'start must be a finite number, "epsilon" or "variable", got {self.start!r}'
            )

    def __repr__(self) -> str:
        """The settings that differ from the defaults; also part of the key of cached kernels."""
        return as_call("Slot", [repr(self.name)], changed_settings(self, without="name"))

    def in_dtype(self, dtype: str | None) -> Slot:
        """This slot in a dtype; stochastic below 32 bits, and in 8 with its own map."""
        if is_packed(dtype):
            dtype = _MAP_OF_SLOT.get(self.name, "8bit")
        is_short = dtype in (*HALVES, *PACKED)
        return replace(self, dtype=dtype, rounding=STOCHASTIC if is_short else "nearest")

    def of_small_variables(self) -> Slot:
        """This slot as it is beside small variables, where nothing is kept in 8 bits."""
        return self.in_dtype(ARITHMETIC) if is_packed(self.dtype) else self

    def of_variables(self, *, half: bool) -> Slot:
        """This slot as it is beside variables of a half type, or of another type.

        Only what is stored in few bits is rounded.
        """
        is_short = self.dtype in (*HALVES, *PACKED) or (self.dtype is None and half)
        return self if is_short else replace(self, rounding="nearest")

    def first_values(self, epsilon: float, variable: NDArray[Any]) -> float | NDArray[Any]:
        """The initial value of every element, or of each, beside this variable."""
        if self.start == "variable":
            return variable
        return epsilon if isinstance(self.start, str) else self.start


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


RMS = Slot("rms", zero_gradient=DECAY)
MG = Slot("mg", zero_gradient=DECAY)
MOMENTUM = Slot("momentum", zero_gradient=CARRY)
AVERAGE = Slot("average", start="variable")  # of the variable over the steps
MASTER = Slot("master", start="variable", dtype=ARITHMETIC, zero_gradient=STAY)
KNOWN = {slot.name: slot for slot in (RMS, MG, MOMENTUM, AVERAGE, MASTER)}


def slot_to_json(slot: Slot) -> str | dict[str, Any]:
    """A slot as a dict, or as its name if it is one of ours."""
    if slot == KNOWN.get(slot.name):
        return slot.name
    return {one.name: getattr(slot, one.name) for one in fields(Slot)}


def slot_from_json(value: Any) -> Slot:
    """The slot from a result of `slot_to_json`."""
    return KNOWN[value] if isinstance(value, str) else Slot(**value)
