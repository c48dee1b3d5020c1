"""The configuration of `RMSprop`: its arguments in tf-keras's format, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from rmsjit.optimizers.arguments import with_schedule
from rmsjit.optimizers.groups import group_configs
from rmsjit.rule.form import Form
from rmsjit.rule.presets import keras_legacy

if TYPE_CHECKING:
    from rmsjit.optimizers.keras_legacy import RMSprop

Made = TypeVar("Made", bound="RMSprop")

_OWN_PART = "rmsjit"  # of a configuration: a name that no argument of Keras has
_SINCE_KERAS_2_11 = {  # only in configurations of the optimizers that replaced the legacy ones
    "ema_momentum",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
    "is_legacy_optimizer",
    "jit_compile",
    "loss_scale_factor",
    "use_ema",
}


def config_of(optimizer: RMSprop) -> dict[str, Any]:
    """The whole configuration; see `RMSprop.get_config`."""
    config = own_config_of(optimizer)
    further = {"groups": group_configs(optimizer._store), _OWN_PART: optimizer._settings.used()}
    return config | {name: part for name, part in further.items() if part}


def own_config_of(optimizer: RMSprop) -> dict[str, Any]:
    """The configuration without groups of variables, and without how steps are taken."""
    return arguments_of(optimizer, optimizer._hyperparameters.serialized)


def arguments_of(optimizer: RMSprop, shown: Callable[[str], Any]) -> dict[str, Any]:
    """The constructor's arguments; `shown` gives the value of a hyperparameter by name."""
    bounds = _values(optimizer, "clipnorm", "clipvalue", "global_clipnorm")
    arguments: dict[str, Any] = {"name": optimizer._name}
    arguments |= {name: bound for name, bound in bounds.items() if bound is not None}
    for name in ("learning_rate", "decay", "rho", "momentum", "epsilon"):
        arguments[name] = shown(name)
    arguments |= optimizer._arguments_of_gradient_scale()
    if optimizer.use_ema:
        arguments |= _values(optimizer, "use_ema", "ema_momentum", "ema_overwrite_frequency")
    if optimizer.gradient_accumulation_steps is not None:
        steps, reduction = "gradient_accumulation_steps", "gradient_accumulation_reduction"
        arguments |= _values(optimizer, steps, reduction)
    arguments |= optimizer._arguments_of_scale() | optimizer._arguments_of_precision()
    return arguments | {"centered": optimizer.centered} | _arguments_of_form(optimizer, shown)


def _values(optimizer: RMSprop, *names: str) -> dict[str, Any]:
    return {name: getattr(optimizer, name) for name in names}


def _arguments_of_form(optimizer: RMSprop, shown: Callable[[str], Any]) -> dict[str, Any]:
    """The arguments that tf-keras does not have, unless the form is tf-keras's own."""
    form = optimizer.form.without_additions
    if form == keras_legacy(centered=form.centered, momentum=form.has_momentum):
        return {}
    late = keras_legacy(centered=form.centered, momentum=False).with_momentum()
    if form == late and optimizer._momentum_came_later:
        return {}
    return {
        "form": form.to_dict(),
        "weight_decay": shown("weight_decay"),
        "clip_weights": optimizer.clip_weights,
    }


def from_config(
    cls: type[Made], config: dict[str, Any], custom_objects: dict[str, Any] | None
) -> Made:
    """A new optimizer of a class; see `RMSprop.from_config`."""
    arguments = dict(config)
    groups = arguments.pop("groups", ())
    own = arguments.pop(_OWN_PART, {})
    _refuse_newer_keras(arguments, inspect.signature(cls).parameters)
    if "lr" in arguments:
        arguments["learning_rate"] = arguments.pop("lr")
    if isinstance(arguments.get("form"), dict):
        arguments["form"] = Form.from_dict(arguments["form"])
    optimizer = cls(**with_schedule(arguments, custom_objects), **own)
    for group in groups:
        optimizer.add_group(**with_schedule(group, custom_objects))
    return optimizer


def _refuse_newer_keras(config: dict[str, Any], known: Iterable[str]) -> None:
    """Raise `TypeError`, with the equivalent `form`, for a configuration of Keras's new RMSprop."""
    unknown = sorted(_SINCE_KERAS_2_11 & config.keys() - set(known))
    if not unknown or config.get("is_legacy_optimizer"):
        config.pop("is_legacy_optimizer", None)
        return
    if "jit_compile" in unknown or "is_legacy_optimizer" in unknown:
        title, form = "tf_keras.optimizers.RMSprop since 2.11", "tf_keras"
    else:
        title, form = "keras.optimizers.RMSprop of Keras 3", "keras"
    raise TypeError(
        f"this is the configuration of {title} (it has {', '.join(unknown)}), and not of the "
        f"legacy optimizer: rmsjit.forms.from_config(config) makes an optimizer of its form, "
        f"rmsjit.forms.{form}, which always has epsilon inside the root"
    )
