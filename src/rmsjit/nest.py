"""Nested structures of variables: lists, tuples and dictionaries, as in ``tf.nest``.

Models keep their parameters in structures such as ``{"dense": [W, b]}``, and libraries return
gradients in the same structure.  `pairs` makes (gradient, variable) pairs of the two, which is what
optimizers take.  `RMSprop.step` does so by itself.

Anything but a list, a tuple, a dictionary or its ``values()`` is a leaf.
"""

from collections.abc import Iterable, Iterator, Mapping, ValuesView
from typing import Any, NamedTuple

__all__ = ["flatten", "pack_like", "pairs"]

_SEQUENCES = (list, tuple, ValuesView)
_CONTAINERS = (*_SEQUENCES, Mapping)


class Match(NamedTuple):
    """A leaf of a structure and its counterpart in another one.

    Attributes
    ----------
    path : str
        What follows the name of either structure to get there, as in ``['dense'][0]``.
    leaf, other : object
    """

    path: str
    leaf: Any
    other: Any


def flatten(structure: Any) -> list[Any]:
    """The leaves of a nested structure in order; dictionaries are visited by sorted key.

    Parameters
    ----------
    structure : nested structure

    Returns
    -------
    list

    Examples
    --------
    >>> flatten([1, {"b": 3, "a": (2,)}])
    [1, 2, 3]
    """
    return [match.leaf for match in matches(structure, None)]


def variables_in(given: Any) -> list[Any]:
    """The variables of an argument that takes several: a structure, another iterable, or one.

    Parameters
    ----------
    given : nested structure, iterable, array or Variable
        An array or `rmsjit.Variable` is one variable, and not a sequence of its rows.

    Returns
    -------
    list
    """
    if isinstance(given, _CONTAINERS) or hasattr(given, "__array__"):
        return flatten(given)
    return list(given)


def pack_like(structure: Any, leaves: Iterable[Any]) -> Any:
    """The leaves packed into the form of `structure`: the inverse of `flatten`.

    Parameters
    ----------
    structure : nested structure
    leaves : iterable
        In the order of `flatten`.

    Returns
    -------
    nested structure

    Raises
    ------
    ValueError
        If there are more or fewer leaves than the structure has.
    TypeError
        If the keys of a dictionary can't be sorted.

    Examples
    --------
    >>> pack_like([1, {"b": 3, "a": (2,)}], "xyz")
    ['x', {'b': 'z', 'a': ('y',)}]
    """
    leaves, count = list(leaves), len(flatten(structure))
    if len(leaves) != count:
        raise ValueError(f"leaves must be {count}, as many as the structure has, got {len(leaves)}")
    return _packed(structure, iter(leaves))


def _packed(structure: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(structure, Mapping):
        packed = {key: _packed(structure[key], leaves) for key in _sorted_keys(structure)}
        return {key: packed[key] for key in structure}
    if isinstance(structure, _CONTAINERS):
        parts = [_packed(part, leaves) for part in structure]
        if not isinstance(structure, tuple):
            return parts
        named = hasattr(structure, "_fields")
        return type(structure)(*parts) if named else tuple(parts)
    return next(leaves)


def pairs(gradients: Any, params: Any) -> list[tuple[Any, Any]]:
    """The (gradient, variable) pairs of two structures, for ``apply_gradients``.

    Parameters
    ----------
    gradients : nested structure
        Of the structure of `params`.  None in place of a variable, a list or a dictionary means
        that there is no gradient for what is there.
    params : nested structure of ndarray or Variable
        None is no variable, as for the bias of a layer without one; its gradient must be None.

    Returns
    -------
    list of (gradient, variable)
        In the order of `flatten`.

    Raises
    ------
    ValueError
        If the structures differ; the error names the place, such as ``gradients['dense'][0]``.

    Examples
    --------
    >>> import numpy as np
    >>> import rmsjit
    >>> params = {"W": np.ones((2, 2)), "b": np.ones(2)}
    >>> gradients = {"b": np.ones(2), "W": np.ones((2, 2))}
    >>> opt = rmsjit.train.RMSPropOptimizer(0.1)
    >>> opt.apply_gradients(pairs(gradients, params))
    >>> params["b"]
    array([0.9, 0.9])
    """
    return [(match.other, match.leaf) for match in matched_gradients(gradients, params)]


def matched_gradients(gradients: Any, params: Any) -> list[Match]:
    """The variables of `params` with their gradients, and the path of each; see `pairs`."""
    found = []
    for match in matches(params, gradients, "params", "gradients"):
        if match.leaf is not None:
            found.append(match)
        elif match.other is not None:
            raise ValueError(
                f"gradients{match.path} must be None, as params{match.path} is, got "
                f"{type(match.other).__name__}"
            )
    return found


def matches(
    structure: Any, other: Any, name: str = "the structure", other_name: str = "the other"
) -> Iterator[Match]:
    """The leaves of `structure`, each with its counterpart in `other`.

    If `other` is None where `structure` has a container, the leaves below it are matched with None.

    Parameters
    ----------
    structure, other : nested structure
    name, other_name : str
        How errors call them.

    Raises
    ------
    ValueError
        If the two structures differ.

    Examples
    --------
    >>> [tuple(match) for match in matches([1, {"a": 2}], ["x", None])]
    [('[0]', 1, 'x'), ("[1]['a']", 2, None)]
    """
    return _matches(structure, other, name, other_name, "")


def _matches(structure: Any, other: Any, name: str, other_name: str, path: str) -> Iterator[Match]:
    if not isinstance(structure, _CONTAINERS):
        yield Match(path, structure, other)
        return
    parts = _parts(structure)
    if other is None:
        others: Mapping[Any, Any] = dict.fromkeys(parts)
    else:
        _check_alike(structure, other, f"{name}{path}", f"{other_name}{path}")
        others = _parts(other)
    for key, part in parts.items():
        yield from _matches(part, others[key], name, other_name, f"{path}[{key!r}]")


def _sorted_keys(structure: Mapping[Any, Any]) -> list[Any]:
    try:
        return sorted(structure)
    except TypeError as error:
        raise TypeError(
            f"the keys of a dictionary must be comparable, got {list(structure)} ({error})"
        ) from None


def _parts(structure: Any) -> dict[Any, Any]:
    """What a container holds, by key or position, in the order of `flatten`."""
    if isinstance(structure, Mapping):
        return {key: structure[key] for key in _sorted_keys(structure)}
    return dict(enumerate(structure))


def _check_alike(structure: Any, other: Any, name: str, other_name: str) -> None:
    """Raise `ValueError` unless two containers have parts at the same places."""
    is_mapping = isinstance(structure, Mapping)
    if not isinstance(other, Mapping if is_mapping else _SEQUENCES):
        title = "a dictionary" if is_mapping else "a list or tuple"
        raise ValueError(f"{other_name} must be {title}, as {name} is, got {type(other).__name__}")
    if is_mapping and set(structure) != set(other):
        raise ValueError(
            f"{other_name} must have the keys of {name}, {list(structure)}, got {list(other)}"
        )
    if len(structure) != len(other):
        raise ValueError(
            f"{other_name} must have the length of {name}, {len(structure)}, got {len(other)}"
        )
