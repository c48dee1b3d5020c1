"""What a form is in words: for the table in the documents, the command line, and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rmsjit.forms.formula import formula
from rmsjit.forms.functions import example_arguments, words
from rmsjit.forms.library import (
    REQUIRED,
    Argument,
    Choice,
    Chosen,
    Library,
    Number,
    Setting,
)
from rmsjit.rule.form import Form

Say = Callable[[Chosen], str]
NOTHING = "-"
_DECAYS = {
    None: NOTHING,
    "coupled": "g + wd*p",
    "decoupled": "p*(1 - lr*wd)",
    "subtracted": "p - p*wd*lr",
    "independent": "p*(1 - wd)",
}


def _starts(chosen: Chosen) -> str:
    start = chosen.form.slot("rms").start
    return start if isinstance(start, str) else f"{start:g}"


def _rate(chosen: Chosen) -> str:
    return chosen.form.learning_rate if chosen.form.has_momentum else NOTHING


def _extras(chosen: Chosen) -> str:
    form = chosen.form
    has = {
        "Nesterov": form.nesterov,
        "bias correction": form.bias_correction,
        "clipped weights": form.clip_weights,
    }
    return ", ".join(name for name, there in has.items() if there) or NOTHING


def _setting(name: str) -> Say:
    return lambda chosen: _plain(getattr(chosen.form, name))


def _plain(value: Any) -> str:
    """A setting in text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or NOTHING
    return NOTHING if value is None else str(value)


# What a user chooses a form by, then what only decides the last bits.
ASPECTS: dict[str, Say] = {
    "slots": lambda chosen: ", ".join(chosen.form.slot_names),
    "epsilon and the root": _setting("epsilon"),
    "learning rate and momentum": _rate,
    "rms starts from": _starts,
    "weight decay": lambda chosen: _DECAYS[chosen.form.weight_decay],
    "more": _extras,
    "square of complex g": _setting("complex_square"),
}
ROUNDING: dict[str, Say] = {
    "1 - rho": _setting("one_minus_rho"),
    "average of rms": _setting("rms_average"),
    "average of mg": _setting("mg_average"),
    "c*g*g": _setting("square"),
    "lr*g/d": _setting("quotient"),
    "products and sums fused": _setting("fused"),
    "kept in float32": _setting("float32_numbers"),
}
# Values of arguments that change a form, by what the argument is.
_TELLING: dict[str, tuple[Any, ...]] = {
    "momentum": (0.9, 0.0),
    "weight_decay": (0.1,),
    "clip_weights": (1.0,),
    "rms_start": (1.0,),
    "nesterov": (True,),
    "bias_correction": (True,),
}


def default(library: Library) -> Chosen:
    """The form of a library by its own defaults."""
    return library.chosen(example_arguments(library))


def variants(library: Library) -> Iterator[tuple[str, Chosen]]:
    """What one argument at a time makes of a form: how it is given, and the form."""
    given = example_arguments(library)
    for argument in library.arguments:
        for value in _telling_values(argument):
            if value != argument.default:
                yield f"{argument.name}={value}", _variant(library, given, argument.name, value)


def _telling_values(argument: Argument) -> Iterable[Any]:
    if isinstance(argument, Choice):
        return argument.settings
    if isinstance(argument, (Number, Setting)):
        return _TELLING.get(argument.of, ())
    return ()


def _variant(library: Library, given: Mapping[str, Any], name: str, value: Any) -> Chosen:
    """A form with one argument changed; with momentum where this argument needs it."""
    more = {"momentum": 0.9} if name == "nesterov" else {}
    return library.chosen({**given, **more, name: value})


def aspect(library: Library, say: Say) -> str:
    """What a form says of something by default, and what else an argument makes it say."""
    usual = say(default(library))
    others: dict[str, str] = {}
    for label, chosen in variants(library):
        said = say(chosen)
        if said not in (usual, NOTHING) and said not in others:
            others[said] = label
    changes = "; ".join(f"{said} with {label}" for said, label in others.items())
    if usual == NOTHING:
        return changes or NOTHING
    return f"{usual} ({changes})" if changes else usual


def default_of(library: Library, number: str) -> str:
    """The library's default of a number of the rule."""
    argument = library.numbers.get(number)
    if argument is None:
        return NOTHING
    if argument.default is REQUIRED:
        return "given"
    value = argument.default
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def facts(library: Library, arguments: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Everything about a form, by name; by default, or for the arguments of a call."""
    names = "learning_rate", "rho", "epsilon", "momentum"
    numbers = {name: default_of(library, name) for name in names}
    found = {f"default of {name}": value for name, value in numbers.items()}
    if arguments is None:
        return found | {name: aspect(library, say) for name, say in (ASPECTS | ROUNDING).items()}
    chosen = library.chosen({**example_arguments(library), **arguments})
    return found | {name: say(chosen) for name, say in (ASPECTS | ROUNDING).items()}


def differences(one: Library, other: Library) -> list[tuple[str, str, str]]:
    """What differs between two forms: its name, and what each of them says."""
    ours, theirs = facts(one), facts(other)
    return [(name, ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]]


def formulas(library: Library, arguments: Mapping[str, Any]) -> dict[str, list[str]]:
    """The formula for the arguments of a call; and, if there are none, with momentum and centered.

    Returns
    -------
    dict
        Lines of formulas by the arguments that they are for.
    """
    shown = {_call(arguments): library.chosen({**example_arguments(library), **arguments}).form}
    more = _with_all(library)
    if not arguments and more:
        shown[_call(more)] = library.chosen({**example_arguments(library), **more}).form
    return {label: formula(form, words(library)) for label, form in _different(shown).items()}


def _with_all(library: Library) -> dict[str, Any]:
    """The arguments by which a form has momentum and is centered."""
    momentum = library.numbers.get("momentum")
    found: dict[str, Any] = {} if momentum is None else {momentum.name: 0.9}
    for argument in library.arguments:
        if isinstance(argument, Choice) and argument.settings.get(True, {}).get("centered"):
            found[argument.name] = True
    return found


def _different(shown: Mapping[str, Form]) -> dict[str, Form]:
    kept: dict[str, Form] = {}
    for label, form in shown.items():
        if form not in kept.values():
            kept[label] = form
    return kept


def _call(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
