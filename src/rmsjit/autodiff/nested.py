"""Nested structures of variables: lists, tuples and dictionaries, as in `tf.nest`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, ValuesView
from typing import Any

_CONTAINERS = (list, tuple, Mapping, ValuesView)


def flatten(structure: Any) -> list[Any]:
    """The leaves of a nested structure in order; dictionaries are visited by sorted key.

    Anything but a list, a tuple, a dictionary or its ``values()`` is a leaf.

    Examples
    --------
    >>> flatten([1, {"b": 3, "a": (2,)}])
    [1, 2, 3]
    """
    return [leaf for leaf, _ in zip_leaves(structure, None)]


def pack_like(structure: Any, leaves: Iterable[Any]) -> Any:
    """The leaves packed into the form of `structure`: the inverse of `flatten`.

    Examples
    --------
    >>> pack_like([1, {"b": 3, "a": (2,)}], "xyz")
    ['x', {'b': 'z', 'a': ('y',)}]
    """
    leaves = iter(leaves)
    if isinstance(structure, Mapping):
        packed = {key: pack_like(structure[key], leaves) for key in sorted(structure)}
        return {key: packed[key] for key in structure}
    if isinstance(structure, _CONTAINERS):
        parts = [pack_like(part, leaves) for part in structure]
        if not isinstance(structure, tuple):
            return parts
        named = hasattr(structure, "_fields")
        return type(structure)(*parts) if named else tuple(parts)
    return next(leaves)


def zip_leaves(structure: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """Pairs of the leaves of `structure` and their counterparts in `other`.

    If `other` is None where `structure` has a container, the leaves below it are paired with None.

    Raises
    ------
    ValueError
        If the two structures do not match.

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


def _parts(structure: Any) -> list[Any]:
    if isinstance(structure, Mapping):
        return [structure[key] for key in sorted(structure)]
    if isinstance(structure, _CONTAINERS):
        return list(structure)
    raise ValueError(f"expected a list, tuple or dictionary, got {type(structure).__name__}")
