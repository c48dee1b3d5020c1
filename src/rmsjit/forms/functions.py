"""The functions of `rmsjit.forms`, made from the rows of its table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from rmsjit.forms.formula import formula
from rmsjit.forms.library import REQUIRED, Library, roles
from rmsjit.forms.table import LIBRARIES
from rmsjit.optimizers.arguments import refuse_variables
from rmsjit.optimizers.keras_legacy import RMSprop
from rmsjit.text import nearest

FormFunction = Callable[..., RMSprop]
OPTIONS = (  # arguments of `RMSprop` that every function takes, where the library has none of them
    "clipvalue",
    "clipnorm",
    "global_clipnorm",
    "maximize",
    "grad_scale",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
    "gradient_accumulation_reduction",
    "loss_scale",
    "master_weights",
    "rounding",
    "state_dtype",
    "seed",
    "sparse",
    "nonfinite",
    "track_norms",
    "num_threads",
    "slot_allocator",
    "strategy",
    "name",
)
EXAMPLE_RATE = 0.01  # where a library has no default
_ROLES = roles(LIBRARIES)


def function_of(library: Library) -> FormFunction:
    """The function that makes an optimizer of a library's form by the library's own arguments."""
    signature = signature_of(library)

    def make(*args: Any, **kwargs: Any) -> RMSprop:
        given = _bound(library, signature, args, kwargs)
        own = {argument.name for argument in library.arguments}
        options = {name: value for name, value in given.items() if name not in own}
        form, numbers = library.chosen({k: v for k, v in given.items() if k in own})
        return RMSprop(**numbers, **options, form=form)

    make.__name__ = make.__qualname__ = library.name
    make.__module__ = "rmsjit.forms"
    make.__signature__ = signature  # type: ignore[attr-defined]
    make.__doc__ = documentation(library)
    return make


def signature_of(library: Library) -> inspect.Signature:
    """The library's arguments in its order, then rmsjit's own by keyword."""
    by_position, by_keyword = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    parameters = [
        inspect.Parameter(a.name, by_keyword if a.keyword_only else by_position, default=a.default)
        for a in library.arguments
    ]
    taken = {argument.name for argument in library.arguments} | library.numbers.keys()
    defaults = inspect.signature(RMSprop).parameters
    parameters += [
        inspect.Parameter(name, by_keyword, default=defaults[name].default)
        for name in OPTIONS
        if name not in taken
    ]
    return inspect.Signature(parameters, return_annotation=RMSprop)


def _bound(
    library: Library, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, or a `TypeError` that says what is wrong with them."""
    for name in kwargs:
        if name not in signature.parameters:
            near = meant(library, name, signature.parameters)
            instead = f"; the nearest is {near!r}" if near else ""
            if _ROLES.get(name) == {"weight_decay"}:
                instead = "; the library's RMSprop does not decay weights, rmsjit.RMSprop can"
            raise TypeError(f"{library.name}() has no argument {name!r}{instead}")
    for value in args[:1]:
        refuse_variables(next(iter(signature.parameters)), value)
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"{library.name}(): {error}") from None


def meant(library: Library, name: str, names: Iterable[str]) -> str:
    """The argument that was meant by a misspelled name, or by one of another library, or ""."""
    for number in sorted(_ROLES.get(name, ())):
        if number in library.numbers:
            return library.numbers[number].name
    return nearest(name, names)


def example_arguments(library: Library) -> dict[str, Any]:
    """Values for the arguments that have no default."""
    return {a.name: EXAMPLE_RATE for a in library.arguments if a.default is REQUIRED}


def words(library: Library) -> dict[str, str]:
    """What a library calls the numbers, by the arguments of `rmsjit.RMSprop`."""
    return {number: argument.name for number, argument in library.numbers.items()}


def documentation(library: Library) -> str:
    """The docstring of a library's function."""
    form = library.chosen(example_arguments(library)).form
    lines = [
        f"RMSprop as it is computed by {library.title.replace('`', '``')}.",
        "",
        f"Read from {library.source}.  By default, with ``g`` the clipped gradient::",
        "",
        *(f"    {line}" for line in formula(form, words(library))),
        "",
        *([library.note, ""] if library.note else []),
        "Parameters",
        "----------",
        *(line for a in library.arguments for line in _parameter(a.name, a.default, a.meaning)),
        "**options",
        "    As for `rmsjit.RMSprop`: " + ", ".join(_options(library)) + ".",
        "",
        *_ENDING,
        *_example(library),
    ]
    return "\n".join(lines)


_ENDING = [
    "Returns",
    "-------",
    "RMSprop",
    "    With ``form`` set to this library's.",
    "",
    "Raises",
    "------",
    "TypeError",
    "    If an argument is unknown, or of a wrong type.",
    "ValueError",
    "    If a number is out of its range, or an argument has a value that rmsjit does not have.",
    "",
]


def _options(library: Library) -> list[str]:
    own = {argument.name for argument in library.arguments}
    return [name for name in signature_of(library).parameters if name not in own]


def _parameter(name: str, default: Any, meaning: str) -> list[str]:
    return [name if default is REQUIRED else f"{name} : default {default!r}", f"    {meaning}"]


def _example(library: Library) -> list[str]:
    arguments = ", ".join(f"{k}={v!r}" for k, v in example_arguments(library).items())
    return [
        "Examples",
        "--------",
        ">>> import numpy as np",
        ">>> import rmsjit",
        f">>> opt = rmsjit.forms.{library.name}({arguments})",
        ">>> w = np.ones(3)",
        ">>> opt.apply_gradients([(np.full(3, 0.5), w)]).numpy()",
        "np.int64(1)",
    ]
