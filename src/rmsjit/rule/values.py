"""What `Slot` and `Form` share as values: the check of a setting, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any


def check_choice(holder: Any, name: str, allowed: tuple[Any, ...]) -> None:
    """Raise `ValueError` if a setting does not have one of the allowed values."""
    value = getattr(holder, name)
    if not any(value == one and type(value) is type(one) for one in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def changed_settings(value: Any, without: str) -> dict[str, Any]:
    """The settings that differ from the defaults, but for one."""
    settings = {one.name: one.default for one in fields(value) if one.name != without}
    return {k: getattr(value, k) for k, v in settings.items() if getattr(value, k) != v}


def as_call(name: str, arguments: Iterable[str], settings: Mapping[str, Any]) -> str:
    """The call that makes a value."""
    return f"{name}({', '.join([*arguments, *(f'{k}={v!r}' for k, v in settings.items())])})"
