"""Names of other libraries: errors that say how to write them here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from rmsjit.text import nearest

F = TypeVar("F", bound=Callable[..., Any])

_PAIRS = "opt.apply_gradients([(gradient, variable)])"
_TORCH = "rmsjit.torch.RMSprop is an optimizer of PyTorch"
_ATTRIBUTES = {
    "zero_grad": f"there is nothing to set to zero, since gradients are given to {_PAIRS}",
    "param_groups": f"opt.groups has the groups, opt.add_group makes one; {_TORCH}",
    "add_param_group": f"opt.add_group makes a group; {_TORCH}",
    "state_dict": (
        "rmsjit.save(path, opt, variables) saves all state, opt.get_weights() returns it, and "
        "rmsjit.interop.to_torch_state_dict makes one of PyTorch"
    ),
    "load_state_dict": (
        "rmsjit.load(path, opt, variables) loads what rmsjit.save has saved, opt.set_weights sets "
        "the state, and rmsjit.interop.from_torch_state_dict takes one of PyTorch"
    ),
    "update": f"{_PAIRS} updates variables in place; there is no state to pass around",
    "init": "opt.build(variables) makes the slots; there is no state to pass around",
}
_ARGUMENTS = {
    "lr": "learning_rate",
    "step_size": "learning_rate",
    "alpha": "rho",
    "gamma": "rho",
    "smoothing_constant": "rho",
    "eps": "epsilon",
}


class _ForeignName:
    """An attribute that is not there: reading it raises `AttributeError` with a hint."""

    def __init__(self, name: str, hint: str) -> None:
        self._name, self._hint = name, hint

    def __get__(self, optimizer: Any, owner: type) -> Any:
        raise AttributeError(
            f"{owner.__name__!r} object has no attribute {self._name!r}: {self._hint}",
            name=self._name,
            obj=optimizer,
        )


class ForeignNames:
    """Answers attributes that other libraries' optimizers have by what to write instead.

    Each is a descriptor, because a method ``__getattr__`` would slow down every attribute of an
    optimizer: Python keeps no inline caches for classes that have one.
    """

    def __dir__(self) -> list[str]:
        """The names of attributes that are there."""
        return sorted(set(super().__dir__()) - _ATTRIBUTES.keys())


for _name, _hint in _ATTRIBUTES.items():  # not in the class, where type checkers would see them
    setattr(ForeignNames, _name, _ForeignName(_name, _hint))


def explaining_arguments(**own: str) -> Callable[[F], F]:
    """A decorator of a method, which then explains arguments that it does not have.

    Parameters
    ----------
    **own : str
        The names of the method's arguments that differ from those of `RMSprop`.
    """

    def decorated(method: F) -> F:
        @functools.wraps(method)
        def explained(self: Any, *args: Any, **kwargs: Any) -> Any:
            known = _names_of(method)
            for name in kwargs:
                if name not in known:
                    owner = type(self).__name__
                    if method.__name__ != "__init__":
                        owner += f".{method.__name__}"
                    raise TypeError(f"{owner} has no argument {name!r}{_instead(name, known, own)}")
            return method(self, *args, **kwargs)

        return cast(F, explained)

    return decorated


@functools.cache
def _names_of(method: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(method).parameters) - {"self"}


def _instead(name: str, known: Iterable[str], own: Mapping[str, str]) -> str:
    """What may have been meant by an argument that is not there."""
    meant = _ARGUMENTS.get(name, name)
    here = own.get(meant, meant)
    if here in known:
        return (
            f": it is called {here!r} here, and the functions of rmsjit.forms take the arguments "
            f"of other libraries"
        )
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""
