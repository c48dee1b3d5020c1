"""How messages and reports write values."""

from collections.abc import Iterable
from typing import Any


def nearest(word: str, words: Iterable[str], least: float = 0.6) -> str:
    """The most similar word to a misspelled one, or "" if none has this similarity, from 0 to 1."""
    import difflib  # which takes a millisecond, for errors only

    return next(iter(difflib.get_close_matches(word, sorted(words), n=1, cutoff=least)), "")


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
