"""Tables of addresses, by which kernels find variables and slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.layout import address_of
from rmsjit.kernels import dense
from rmsjit.rule.form import MG, MOMENTUM, RMS

_COLUMNS = {RMS: dense.RMS, MG: dense.MG, MOMENTUM: dense.MOMENTUM}


def table_of(
    variables: Sequence[NDArray[Any]], slots: Sequence[Mapping[str, NDArray[Any]]]
) -> NDArray[np.int64]:
    """One row for each variable; zero where there is no slot.

    Returns
    -------
    int64 array, shape (variables, `rmsjit.kernels.dense.TABLE_COLUMNS`)
    """
    table = np.zeros((len(variables), dense.TABLE_COLUMNS), np.int64)
    for row, variable, own in zip(table, variables, slots, strict=True):
        row[dense.VARIABLE] = address_of(variable)
        for name, slot in own.items():
            row[_COLUMNS[name]] = address_of(slot)
    return table
