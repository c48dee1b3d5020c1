"""Optimizers from the configurations that other libraries write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rmsjit.forms.functions import function_of
from rmsjit.forms.library import Library
from rmsjit.forms.table import BY_NAME, LIBRARIES
from rmsjit.optimizers.keras_legacy import RMSprop

_KNOWN_CLASSES = ("RMSprop", "RMSProp", "Keras>RMSprop", "Custom>RMSprop")
_OTHER_RULES = {  # the names that Keras gives its other optimizers
    *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "ftrl", "gradient_descent"),
    *("lamb", "lion", "loss_scale_optimizer", "muon", "nadam", "sgd"),
}
_NOT_OF_THE_RULE = {  # its parameters, and what schedulers of PyTorch put into a group
    "params",
    "param_names",
    "initial_lr",
    "max_lr",
    "min_lr",
    "base_momentum",
    "max_momentum",
    "swa_lr",
}


def from_config(
    config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
) -> RMSprop:
    """An optimizer of the form that another library's configuration is of.

    Parameters
    ----------
    config : mapping
        What ``get_config()`` of an RMSprop of Keras 3 or of tf-keras returns (of the legacy one
        as well), or what their ``serialize`` does; a parameter group of PyTorch or of its
        look-alikes, with its parameters left out or not; or any other dictionary by whose names
        the library is known.
    custom_objects : mapping, optional
        Classes of schedules that rmsjit does not know, by name.

    Returns
    -------
    RMSprop
        Without state.

    Raises
    ------
    TypeError
        If it is the configuration of no form, or could be that of several which differ.
    ValueError
        If it asks for something that rmsjit does not have.

    Examples
    --------
    >>> import rmsjit
    >>> opt = rmsjit.forms.from_config(
    ...     {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0, "momentum": 0.9,
    ...      "centered": False, "capturable": False, "foreach": None, "maximize": False,
    ...      "differentiable": False})
    >>> opt.rho, opt.form.learning_rate
    (0.99, 'outside')
    """
    arguments = _arguments(config)
    if "form" in arguments or "rmsjit" in arguments:  # rmsjit's own
        return RMSprop.from_config(arguments, dict(custom_objects or {}))
    library = library_of(arguments)
    rate = library.numbers["learning_rate"].name
    if isinstance(arguments.get(rate), Mapping):
        arguments[rate] = _schedule(arguments[rate], custom_objects)
    arguments = {k: v for k, v in arguments.items() if k != "is_legacy_optimizer"}
    return function_of(library)(**arguments)


def library_of(arguments: Mapping[str, Any]) -> Library:
    """The library whose arguments these are.

    Raises
    ------
    TypeError
        If there is none, or several whose forms differ by more than their defaults.
    """
    legacy = arguments.get("is_legacy_optimizer")
    if legacy is not None:
        return BY_NAME["tf_keras_legacy" if legacy else "tf_keras"]
    fitting = [library for library in LIBRARIES if _fits(library, arguments)]
    if not fitting:
        raise TypeError(f"no form of rmsjit.forms has all of the arguments {sorted(arguments)}")
    chosen = [library.chosen(arguments) for library in fitting]
    if any(other != chosen[0] for other in chosen):
        names = ", ".join(library.name for library in fitting)
        raise TypeError(
            f"this may be a configuration of {names}, which differ: call the function of "
            "rmsjit.forms that you mean"
        )
    return fitting[0]


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments within a configuration, without those that are not of the rule."""
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping, got {type(config).__name__}")
    name = config.get("class_name")
    if name is not None:
        if name not in _KNOWN_CLASSES:
            raise TypeError(f"config must be one of RMSprop, got one of {name!r}")
        if not isinstance(config.get("config"), Mapping):
            raise TypeError(f"config must have the arguments under 'config', got {config!r}")
        config = config["config"]
    own = config.get("name")
    if isinstance(own, str) and own.lower() in _OTHER_RULES:
        raise TypeError(f"config must be one of RMSprop, got one of {own!r}")
    return {k: v for k, v in config.items() if k not in _NOT_OF_THE_RULE}


def _fits(library: Library, arguments: Mapping[str, Any]) -> bool:
    """Whether a library has all of these arguments, and all that it needs are there."""
    names = {argument.name for argument in library.arguments}
    needed = names - library.defaults.keys()
    return arguments.keys() <= names and needed <= arguments.keys()


def _schedule(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None) -> Any:
    from rmsjit import schedules

    return schedules.deserialize(dict(config), custom_objects=dict(custom_objects or {}))
