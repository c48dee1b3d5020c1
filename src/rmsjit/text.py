"""How messages and reports write values."""

from typing import Any


def brief(value: Any) -> str:
    """How error messages show a wrong value."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def human_size(size: float) -> str:
    """A number of bytes with a readable unit.

    >>> human_size(999), human_size(4_300_000)
    ('999 B', '4.1 MiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
