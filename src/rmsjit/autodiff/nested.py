"""Nested structures of variables: lists, tuples and dictionaries, as `tf.nest` sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, ValuesView
from typing import Any

_CONTAINERS = (list, tuple, Mapping, ValuesView)


def flatten(structure: Any) -> list[Any]:
    """The leaves of a nested structure in order; a dictionary's by its sorted keys.

    Anything but a list, a tuple, a dictionary or its ``values()`` is a leaf.

    Examples
    --------
    >>> flatten([1, {"b": 3, "a": (2,)}])
    [1, 2, 3]
    """
    return list(_leaves(structure))


def pack_like(structure: Any, leaves: Iterable[Any]) -> Any:
    """The leaves in a structure like the one that `flatten` would take apart into them.

    Examples
    --------
    >>> pack_like([1, {"b": 3, "a": (2,)}], "xyz")
    ['x', {'b': 'z', 'a': ('y',)}]
    """
    return _packed(structure, iter(leaves))


def zip_leaves(structure: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """The leaves of `structure`, each with its counterpart in `other`.

    Where `other` is None instead of a structure, so are the counterparts of its leaves.

    Raises
    ------
    ValueError
        If `other` has not the form of `structure`.

    Examples
    --------
    >>> list(zip_leaves([1, (2,)], ["a", None]))
    [(1, 'a'), (2, None)]
    """
    if not isinstance(structure, _CONTAINERS):
        yield structure, other
        return
    parts = _parts(structure)
    others = [None] * len(parts) if other is None else _parts(other)
    if len(parts) != len(others):
        raise ValueError(f"expected a structure of {len(parts)} parts, got one of {len(others)}")
    for part, counterpart in zip(parts, others, strict=True):
        yield from zip_leaves(part, counterpart)


def _leaves(structure: Any) -> Iterator[Any]:
    if isinstance(structure, _CONTAINERS):
        for part in _parts(structure):
            yield from _leaves(part)
    else:
        yield structure


def _parts(structure: Any) -> list[Any]:
    if isinstance(structure, Mapping):
        return [structure[key] for key in sorted(structure)]
    if isinstance(structure, _CONTAINERS):
        return list(structure)
    raise ValueError(f"expected a list, tuple or dictionary, got {type(structure).__name__}")


def _packed(structure: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(structure, Mapping):
        packed = {key: _packed(structure[key], leaves) for key in sorted(structure)}
        return {key: packed[key] for key in structure}
    if isinstance(structure, _CONTAINERS):
        parts = [_packed(part, leaves) for part in structure]
        if not isinstance(structure, tuple):
            return parts
        named = hasattr(structure, "_fields")
        return type(structure)(*parts) if named else tuple(parts)
    return next(leaves)
