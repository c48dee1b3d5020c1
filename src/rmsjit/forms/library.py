"""What a row of the table of forms is made of: a library, and its arguments.

An argument says by its class what it is for: a number of the rule, a setting of the form, or
nothing that rmsjit computes with.  `Library.chosen` puts the form and the numbers together that a
call with the library's own arguments stands for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rmsjit.optimizers.arguments import (
    checked_clip_weights,
    checked_factor,
    checked_flag,
    checked_rate,
    checked_weight_decay,
)
from rmsjit.rule.checks import is_used, nonnegative_number, positive_number
from rmsjit.rule.form import Form

REQUIRED = inspect.Parameter.empty
# Whether there is a momentum slot.  "when given" means unless the argument is None.
ALWAYS, WHEN_GIVEN, WHEN_USED, NEVER = "always", "when given", "when used", "never"
SLOT_ORDER = ("rms", "momentum", "mg")
_NEED_MOMENTUM = ("learning_rate", "nesterov")  # settings of a form


def _unchecked(name: str, value: Any) -> Any:
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "learning_rate": checked_rate,
    "rho": checked_factor,
    "momentum": checked_factor,
    "epsilon": positive_number,
    "weight_decay": checked_weight_decay,
    "loss_scale": positive_number,
    "decay": nonnegative_number,
    "clip_weights": checked_clip_weights,
    "clipvalue": nonnegative_number,
    "clipnorm": nonnegative_number,
    "global_clipnorm": nonnegative_number,
}


class Chosen(NamedTuple):
    """The form and the numbers that the arguments of a call mean.

    Attributes
    ----------
    form : Form
    numbers : dict
        Arguments of `rmsjit.RMSprop`.
    """

    form: Form
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Argument:
    """An argument of a library that changes no number.

    Parameters
    ----------
    name : str
        As the library spells it.
    default : object
        Required if left out.
    keyword_only : bool
    """

    name: str
    default: Any = REQUIRED
    keyword_only: bool = False

    @property
    def meaning(self) -> str:
        """What it is, in a line of documentation."""
        return "Accepted as there; changes no number here."

    def read(self, value: Any, numbers: dict[str, Any], settings: dict[str, Any]) -> None:
        """Add the meaning of `value` to the numbers or the settings.

        Raises
        ------
        TypeError, ValueError
            If it may not have this value.
        """


@dataclass(frozen=True)
class Number(Argument):
    """An argument that is a number of the rule.

    None is accepted only where it is the default, and means that there is no such term.

    Parameters
    ----------
    number : str
        The argument of `rmsjit.RMSprop`; the same name if left out.
    off : tuple
        Numbers by which the library says, too, that there is no such term.
    zero_is_default : bool
        Whether 0 and None stand for the default there.
    """

    number: str = ""
    off: tuple[float, ...] = ()
    zero_is_default: bool = False

    @property
    def of(self) -> str:
        """The argument of `rmsjit.RMSprop` that it is."""
        return self.number or self.name

    @property
    def meaning(self) -> str:
        return f"`{self.of}` of `rmsjit.RMSprop`."

    def read(self, value: Any, numbers: dict[str, Any], settings: dict[str, Any]) -> None:
        if self.zero_is_default and (value is None or not is_used(value)):
            value = self.default
        if (value is None and self.default is None) or _is_one_of(value, self.off):
            return
        _CHECKS.get(self.of, _unchecked)(self.name, value)
        numbers[self.of] = value


def _is_one_of(value: Any, numbers: Iterable[float]) -> bool:
    """Whether a value is a plain number that is one of some."""
    return isinstance(value, (int, float, np.number)) and value in tuple(numbers)


@dataclass(frozen=True)
class Switch(Argument):
    """An argument that is True or False, also in `rmsjit.RMSprop`, where it has the same name."""

    @property
    def meaning(self) -> str:
        return f"`{self.name}` of `rmsjit.RMSprop`."

    def read(self, value: Any, numbers: dict[str, Any], settings: dict[str, Any]) -> None:
        if checked_flag(self.name, value):
            numbers[self.name] = True


@dataclass(frozen=True)
class Setting(Argument):
    """An argument whose value is a setting of the form.

    Parameters
    ----------
    setting : str
        The setting; the same name if left out.
    """

    setting: str = ""

    @property
    def of(self) -> str:
        """The setting that it is."""
        return self.setting or self.name

    @property
    def meaning(self) -> str:
        return f"`{self.of}` of the form."

    def read(self, value: Any, numbers: dict[str, Any], settings: dict[str, Any]) -> None:
        settings[self.of] = value


@dataclass(frozen=True)
class Choice(Argument):
    """An argument whose values stand for settings of the form.

    Parameters
    ----------
    settings : mapping
        The settings by value.
    """

    settings: Mapping[Hashable, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def meaning(self) -> str:
        said = (
            f"{value!r}: {', '.join(f'{k} {v}' for k, v in chosen.items())}"
            for value, chosen in self.settings.items()
            if chosen
        )
        return "; ".join(said) + "."

    def read(self, value: Any, numbers: dict[str, Any], settings: dict[str, Any]) -> None:
        if not isinstance(value, Hashable) or value not in self.settings:
            allowed = ", ".join(map(repr, self.settings))
            raise ValueError(f"{self.name} must be one of {allowed}, got {value!r}")
        settings.update(self.settings[value])


def centered(name: str = "centered", **more: Any) -> Choice:
    """The usual argument that normalises by the variance, and what else that changes."""
    return Choice(name, False, settings={False: {}, True: {"centered": True, **more}})


@dataclass(frozen=True)
class Unsupported(Argument):
    """An argument that rmsjit has only one value for.

    Parameters
    ----------
    instead : str
        What to do for another one.
    """

    instead: str = ""

    @property
    def meaning(self) -> str:
        return f"Only {self.default!r}: {self.instead}."

    def read(self, value: Any, numbers: dict[str, Any], settings: dict[str, Any]) -> None:
        if value is not self.default and value != self.default:
            raise ValueError(f"{self.name} must be {self.default!r}, got {value!r}: {self.instead}")


@dataclass(frozen=True)
class Library:
    """The RMSprop of one library: a row of the table of forms.

    Parameters
    ----------
    name : str
        Of the function in `rmsjit.forms`.
    title : str
        What it is called there.
    source : str
        Where its arithmetic is defined.
    arguments : tuple of Argument
        In the library's order.
    settings : mapping
        Settings of `Form`, and "centered", "rms_start", "slots" (their order of creation) and
        "momentum": whether the momentum slot is there "when used", "when given", "always" or
        "never".
    with_momentum : mapping
        Settings that hold where there is a momentum slot.
    apart : mapping of (str, str) to str
        Numbers that may not be used together, and why.
    note : str
        What else a user should know.
    """

    name: str
    title: str
    source: str
    arguments: tuple[Argument, ...]
    settings: Mapping[str, Any]
    with_momentum: Mapping[str, Any] = field(default_factory=dict)
    apart: Mapping[tuple[str, str], str] = field(default_factory=dict)
    note: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        """The arguments that have a default."""
        return {a.name: a.default for a in self.arguments if a.default is not REQUIRED}

    @property
    def numbers(self) -> dict[str, Number]:
        """The arguments that are numbers, by those of `rmsjit.RMSprop`."""
        return {a.of: a for a in self.arguments if isinstance(a, Number)}

    def chosen(self, given: Mapping[str, Any]) -> Chosen:
        """The form and the numbers that a call stands for.

        Parameters
        ----------
        given : mapping
            Every argument that has no default, and any others.

        Raises
        ------
        TypeError, ValueError
            If an argument may not have its value.
        """
        numbers: dict[str, Any] = {}
        settings: dict[str, Any] = dict(self.settings)
        values = {**self.defaults, **given}
        for argument in self.arguments:
            argument.read(values[argument.name], numbers, settings)
        self._refuse_together(numbers)
        return self._put_together(numbers, settings)

    def _refuse_together(self, numbers: Mapping[str, Any]) -> None:
        for (one, other), reason in self.apart.items():
            if numbers.get(one) and numbers.get(other):
                raise ValueError(
                    f"{one} and {other} can't both be set, got {one}={numbers[one]!r} and "
                    f"{other}={numbers[other]!r}: {reason}"
                )

    def _put_together(self, numbers: dict[str, Any], settings: dict[str, Any]) -> Chosen:
        kept = settings.pop("momentum", WHEN_USED)
        has_momentum = {
            ALWAYS: True,
            WHEN_GIVEN: "momentum" in numbers,
            WHEN_USED: is_used(numbers.get("momentum", 0.0)),
            NEVER: False,
        }[kept]
        if has_momentum:
            settings.update(self.with_momentum)
        else:
            numbers.pop("momentum", None)
            settings = {k: v for k, v in settings.items() if k not in _NEED_MOMENTUM}
        if not is_used(
            numbers.get("weight_decay", 0.0)
        ):  # so that sparse="exact" has its closed form
            settings.pop("weight_decay", None)
        settings["clip_weights"] = numbers.get("clip_weights") is not None
        wanted = {"rms": True, "momentum": has_momentum, "mg": settings.pop("centered", False)}
        slots = [name for name in settings.pop("slots", SLOT_ORDER) if wanted[name]]
        return Chosen(Form.with_slots(*slots, **settings), numbers)


def roles(libraries: Iterable[Library]) -> dict[str, set[str]]:
    """What each argument of any library is in `rmsjit.RMSprop`; some names are several things."""
    found: dict[str, set[str]] = {}
    for library in libraries:
        for number, argument in library.numbers.items():
            found.setdefault(argument.name, set()).add(number)
            found.setdefault(number, set()).add(number)
    return found
