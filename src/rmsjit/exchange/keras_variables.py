"""The variables of Keras's RMSprop optimizers: what each is called, and what it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmsjit.arrays.tensors import array_of_tensor
from rmsjit.checkpoints.compare import Variables
from rmsjit.exchange.keras_rounds import (
    TITLES,
    Place,
    places_of,
    refuse_other_rounds,
    state_from,
    values_and_count,
)
from rmsjit.exchange.losses import refuse_losses
from rmsjit.exchange.state import (
    check_arguments,
    check_kind,
    dtype_name,
    next_numbers,
    refuse_unbuilt,
    state_of,
    write_state,
)
from rmsjit.forms.table import BY_NAME
from rmsjit.optimizers.base import Optimizer
from rmsjit.rule.form import Form
from rmsjit.rule.slot import MG, MOMENTUM, RMS

_LEGACY_SLOTS = {name: name for name in (RMS.name, MOMENTUM.name, MG.name)}
_OF_RMSPROP = {"rho", "momentum", "epsilon", "centered"}  # in the configuration; Adam has others
_IGNORED = {"learning_rate"}  # a hyperparameter that Keras keeps in a variable


@dataclass(frozen=True)
class _Naming:
    """How one of the Keras optimizers calls its variables, without its own name before them."""

    library: str
    pattern: str
    slots: Mapping[str, str]
    counter: str = "iteration"
    separator: str = "/"

    def title(self, variable: str, slot: str) -> str:
        name = variable.removesuffix(":0").replace("/", self.separator)
        return self.pattern.format(variable=name, slot=self.slots[slot])


_KERAS = _Naming("keras.optimizers.RMSprop", "{variable}_{slot}", TITLES, separator="_")
_TF_KERAS = _Naming("tf_keras.optimizers.RMSprop", "{slot}/{variable}", TITLES)
_LEGACY = _Naming(
    "tf_keras.optimizers.legacy.RMSprop", "{variable}/{slot}", _LEGACY_SLOTS, counter="iter"
)


def from_keras_optimizer(keras_optimizer: Any, variables: Variables, optimizer: Any) -> Any:
    """Continue with the state of an optimizer of Keras 3 or tf-keras, by names.

    Of Keras 3, averages (`use_ema`) and gradients that wait for a step travel as well.

    Parameters
    ----------
    keras_optimizer : keras.optimizers.RMSprop
        Or ``tf_keras.optimizers.RMSprop``, or its ``legacy.RMSprop``; built, or after a step.
    variables : dict of str to ndarray or Variable
        By the names that they have in Keras: ``v.path`` in Keras 3, ``v.name`` in tf-keras.
        Their values are left alone.
    optimizer : RMSprop or train.RMSPropOptimizer
        Must have the same form and slots; its state is replaced, not its hyperparameters.

    Returns
    -------
    RMSprop or train.RMSPropOptimizer
        `optimizer`.

    Raises
    ------
    TypeError
        If an argument is of a wrong type, or `keras_optimizer` no RMSprop.
    ValueError
        If the form differs (the message lists all that would be lost), or the names or shapes of
        the variables do.  Nothing is changed then.

    See Also
    --------
    to_keras_optimizer : The reverse, with an example.
    from_keras_file : From a file.
    """
    check_arguments(optimizer, variables)
    naming, found = _variables_of(keras_optimizer)
    config = keras_optimizer.get_config()
    refuse_other_form(config, form_of(config, naming is _LEGACY), naming.library, optimizer)
    places = _places(naming, found, optimizer, variables)
    values = {place: array_of_tensor(found[title]) for place, title in places.items()}
    count = int(array_of_tensor(found[naming.counter]))
    write_state(state_from(values, count, optimizer, variables), optimizer, variables)
    return optimizer


def to_keras_optimizer(optimizer: Any, variables: Variables, keras_optimizer: Any) -> None:
    """Continue in Keras 3 or tf-keras with the state of an optimizer of rmsjit, by names.

    Parameters
    ----------
    optimizer : RMSprop or train.RMSPropOptimizer
    variables : dict of str to ndarray or Variable
        All that the optimizer has stepped, by the names that they have in Keras, as for
        `from_keras_optimizer`.
    keras_optimizer : keras.optimizers.RMSprop
        Built, with the same slots; its state is replaced, not its hyperparameters.

    Raises
    ------
    TypeError, ValueError
        As `from_keras_optimizer` does; or if a variable has taken no step and is not built.

    See Also
    --------
    from_keras_optimizer : The reverse.

    Examples
    --------
    ::

        named = {v.path: v.numpy() for v in model.trainable_variables}  # train these, then
        model.optimizer.build(model.trainable_variables)
        rmsjit.interop.to_keras_optimizer(opt, named, model.optimizer)
    """
    state = state_of(optimizer, variables, has_rounds=True)
    naming, found = _variables_of(keras_optimizer)
    config = keras_optimizer.get_config()
    refuse_other_form(config, form_of(config, naming is _LEGACY), naming.library, optimizer)
    refuse_unbuilt(state, optimizer, variables)
    places = _places(naming, found, optimizer, variables)
    held, count = values_and_count(state, list(places), optimizer, variables)
    values = {title: held[place] for place, title in places.items()}
    for title, value in values.items():
        check_kind(title, value, found[title])
    counter = found[naming.counter]
    counter.assign(np.array(count, dtype_name(counter)))
    for title, value in values.items():
        found[title].assign(value)


def form_of(config: Mapping[str, Any], is_legacy: bool = False) -> Form:
    """The form that a Keras optimizer of this configuration has.

    Raises
    ------
    TypeError
        If it is the configuration of no RMSprop.
    """
    if not config.keys() >= _OF_RMSPROP:
        raise TypeError(
            f"the optimizer of Keras must be an RMSprop, got one with the settings {[*config]}"
        )
    momentum, centered = float(config["momentum"]) > 0, bool(config["centered"])
    form = keras_form(momentum=momentum, centered=centered, is_legacy=is_legacy)
    return form.with_average() if config.get("use_ema") else form


def keras_form(*, momentum: bool, centered: bool, is_legacy: bool = False) -> Form:
    """The form with these slots in Keras 3 and tf-keras, with the weight decay that it may have."""
    row = BY_NAME["tf_keras_legacy" if is_legacy else "keras"]
    used = {"momentum": float(momentum), "centered": centered, "weight_decay": 1.0}
    return row.chosen(used).form


def refuse_other_form(
    config: Mapping[str, Any], there: Form, library: str, optimizer: Optimizer
) -> None:
    """Raise `ValueError` if the run could not continue unchanged between the two."""
    if config.get("use_ema") and "jit_compile" in config:
        raise ValueError(
            f"{library} of tf-keras has use_ema, whose averages start differently here"
        )
    refuse_other_rounds(config, library, optimizer)
    numbers = next_numbers(optimizer)
    refuse_losses(
        optimizer._store.form,
        there,
        library,
        momentum=numbers.momentum or float(config.get("momentum", 0)),
        weight_decay=numbers.weight_decay or float(config.get("weight_decay") or 0),
    )


def _variables_of(keras_optimizer: Any) -> tuple[_Naming, dict[str, Any]]:
    """How a Keras optimizer calls its variables, and each by that name."""
    if not hasattr(keras_optimizer, "variables") or not hasattr(keras_optimizer, "get_config"):
        raise TypeError(
            f"keras_optimizer must be an optimizer of Keras, got {type(keras_optimizer).__name__}"
        )
    held = keras_optimizer.variables
    held = list(held() if callable(held) else held)
    scope = f"{keras_optimizer.get_config()['name']}/"
    titles = [
        getattr(v, "path", v.name).removesuffix(":0").removeprefix(scope)  # Keras 3 has paths
        for v in held
    ]
    if len(set(titles)) != len(titles):
        twice = sorted({title for title in titles if titles.count(title) > 1})
        raise ValueError(
            f"variables in Keras need names of their own, got {', '.join(twice)} twice"
        )
    if _LEGACY.counter in titles:
        naming = _LEGACY
    else:
        naming = _KERAS if all(hasattr(v, "path") for v in held) else _TF_KERAS
    return naming, dict(zip(titles, held, strict=True))


def _places(
    naming: _Naming, found: Iterable[str], optimizer: Optimizer, variables: Variables
) -> dict[Place, str]:
    """The name in Keras of all that it has of each variable, all of which there must be."""
    needed = places_of(optimizer._store.form, optimizer, variables)
    places = {(slot, name): naming.title(name, slot) for slot, name in needed}
    known = {*places.values(), naming.counter, *_IGNORED}
    missing = sorted({*places.values(), naming.counter} - set(found))
    unknown = sorted(set(found) - known)
    if missing or unknown or len(set(places.values())) != len(places):
        raise ValueError(
            f"the variables of {naming.library} must be those of the slots here; only here: "
            f"{', '.join(missing) or 'none'}; only there: {', '.join(unknown) or 'none'} "
            f"(build() makes slots there; name variables here as they are there)"
        )
    return places
