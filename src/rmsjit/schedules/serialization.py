"""Schedules as dictionaries for JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from rmsjit.schedules import combined, decays, one_cycle, plateau, restarts
from rmsjit.schedules.base import DataSchedule, LearningRateSchedule


def _schedules_of(*modules: ModuleType) -> list[type[DataSchedule]]:
    """The public schedules that modules define."""
    return [
        value
        for module in modules
        for value in vars(module).values()
        if getattr(value, "__module__", "") == module.__name__
        and isinstance(value, type)
        and issubclass(value, DataSchedule)
        and not value.__name__.startswith("_")
    ]


_OF_KERAS: dict[str, Any] = {cls.__name__: cls for cls in _schedules_of(decays)}
_OF_RMSJIT: dict[str, Any] = {  # by the names under which Keras would register them
    f"rmsjit>{cls.__name__}": cls for cls in _schedules_of(combined, one_cycle, plateau, restarts)
}
_BY_CLASS_NAME = _OF_KERAS | {cls.__name__: cls for cls in _OF_RMSJIT.values()}
_REGISTERED = {cls: name for name, cls in _OF_RMSJIT.items()}


def serialize(
    learning_rate_schedule: LearningRateSchedule, use_legacy_format: bool = False
) -> dict[str, Any]:
    """Describe a schedule as tf-keras does: a dictionary, which is valid JSON if the config is.

    ``use_legacy_format`` keeps only ``class_name`` and ``config``. Raises ``TypeError`` if
    ``learning_rate_schedule`` is not a schedule.
    """
    cls = type(learning_rate_schedule)
    if not issubclass(cls, LearningRateSchedule):
        raise TypeError(f"learning_rate_schedule must be a schedule, got a {cls.__name__}")
    legacy = {"class_name": cls.__name__, "config": _plain(learning_rate_schedule.get_config())}
    if use_legacy_format:
        return legacy
    module, registered_name = _origin(cls)
    return {"module": module} | legacy | {"registered_name": registered_name}


def _origin(cls: type) -> tuple[str | None, str | None]:
    """The module and the registered name that Keras's format has for a class."""
    if _OF_KERAS.get(cls.__name__) is cls:
        return "keras.optimizers.schedules", None
    if cls in _REGISTERED:
        return "rmsjit.schedules", _REGISTERED[cls]
    return (None if cls.__module__ == "__main__" else cls.__module__), cls.__name__


def deserialize(
    config: Mapping[str, Any],
    custom_objects: Mapping[str, Any] | None = None,
    use_legacy_format: bool = False,
) -> LearningRateSchedule:
    """Make a schedule from the result of ``serialize``, here or in tf-keras, in either format.

    ``custom_objects`` maps class names or registered names to further schedule classes; no module
    is ever imported. Raises ``ValueError`` for an unknown class (tf-keras returns its name), and
    ``TypeError`` for a dictionary or a custom object of the wrong kind.

    >>> from rmsjit.schedules import ExponentialDecay
    >>> deserialize(serialize(ExponentialDecay(0.1, 100, 0.96))).decay_steps
    100
    """
    if not isinstance(config, Mapping) or not {"class_name", "config"} <= config.keys():
        raise TypeError(f"config must be a dictionary that serialize() makes, got {config!r}")
    name, registered_name = config["class_name"], config.get("registered_name")
    known: dict[Any, Any] = dict(_BY_CLASS_NAME if registered_name is None else _OF_RMSJIT)
    known |= custom_objects or {}
    cls = known.get(registered_name, known.get(name))
    if cls is None:
        raise ValueError(f"config must name a known class or one of custom_objects, got {name!r}")
    if not (isinstance(cls, type) and issubclass(cls, LearningRateSchedule)):
        raise TypeError(f"custom_objects must have a schedule class for {name!r}, got {cls!r}")
    arguments = config["config"]
    if issubclass(cls, DataSchedule):  # other classes revive their own
        arguments = _revived(arguments, custom_objects)
    made: LearningRateSchedule = cls.from_config(arguments)
    return made


def _revived(value: Any, custom_objects: Mapping[str, Any] | None) -> Any:
    """Make the schedules within the config of a schedule."""
    if isinstance(value, (list, tuple)):
        return [_revived(item, custom_objects) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "class_name" in value:
        return deserialize(value, custom_objects)
    return {key: _revived(item, custom_objects) for key, item in value.items()}


def _plain(value: Any) -> Any:
    """Convert what JSON does not know: NumPy scalars and arrays, and schedules."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(map(_plain, value))
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return serialize(value) if isinstance(value, LearningRateSchedule) else value
