"""What `Slot` and `Form` share as values: the check of a setting, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

_NONE = object()


def check_choice(holder: Any, name: str, allowed: tuple[Any, ...]) -> None:
    """Raise `ValueError` if a frozen setting does not have one of the allowed values."""
    value = getattr(holder, name)
    known = next((one for one in allowed if _is_same(value, one)), _NONE)
    if known is _NONE:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    object.__setattr__(holder, name, known)  # not one of a subclass, which is shown otherwise


def _is_same(value: Any, one: Any) -> bool:
    kinds = (bool, np.bool_) if isinstance(one, bool) else type(one)
    return isinstance(value, kinds) and bool(value == one)


def changed_settings(value: Any, without: str) -> dict[str, Any]:
    """The settings that differ from the defaults, but for one."""
    settings = {one.name: one.default for one in fields(value) if one.name != without}
    return {k: getattr(value, k) for k, v in settings.items() if getattr(value, k) != v}


def as_call(name: str, arguments: Iterable[str], settings: Mapping[str, Any]) -> str:
    """The call that makes a value."""
    return f"{name}({', '.join([*arguments, *(f'{k}={v!r}' for k, v in settings.items())])})"
