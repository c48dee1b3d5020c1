"""The schema of a checkpoint's text: every name, type and range is checked before use.

Files may come from untrusted sources.  Any error is a `ValueError` that names the field, never
another exception from the code that uses its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from rmsjit.checkpoints.array_file import DTYPES
from rmsjit.rule.form import Form
from rmsjit.rule.slot import ROUNDINGS, SLOT_DTYPES, STATE_DTYPES, Slot

Check = Callable[[str, Any], None]

CLASS_NAMES = ("RMSprop", "RMSPropOptimizer")
_MOST = 2**64 - 1  # of the widest counter
_MOST_AXES = 64  # of NumPy
_SHOWN = 60  # characters of a wrong value in messages


def check(content: Any) -> None:
    """Raise `ValueError` unless this is the content of a checkpoint, as `encoded` writes it."""
    version = content["version"]
    _fields("it", content, _CONTENT)
    for position, record in enumerate(content["variables"]):
        _fields(f"variables[{position}]", record, _VARIABLE)
    optimizer = content["optimizer"]
    _fields("optimizer", optimizer, _OPTIMIZER, optional=_OPTIONAL)
    for position, record in enumerate(optimizer["weights"]):
        _fields(f"weights[{position}]", record, _WEIGHT)
    for position, record in enumerate(optimizer.get("groups", ())):
        _fields(f"groups[{position}]", record, _GROUP)
        settings = record["settings"]
        _fields(f"groups[{position}].settings", settings, _SETTINGS, optional=_SETTINGS.keys())
    if "loss_scale" in optimizer:
        _fields("loss_scale", optimizer["loss_scale"], _SCALE)
    if "accumulated" in optimizer:
        _fields("accumulated", optimizer["accumulated"], _ROUND)
        for position, record in enumerate(optimizer["accumulated"]["sums"]):
            _fields(f"accumulated.sums[{position}]", record, _SUM)
    check_form("form", optimizer["form"], version)
    _check_class(optimizer)
    if optimizer["subclass"] == optimizer["class"]:
        _check_config(optimizer["class"], optimizer["config"])


def check_form(where: str, settings: Any, version: int = 2) -> None:
    """Raise `ValueError` unless these are settings of a `Form`; they may still be inconsistent."""
    if version == 1:
        _fields(where, settings, _FORM_1)
        return
    _fields(where, settings, _FORM, optional=_FORM.keys() - {"slots"})
    for position, slot in enumerate(settings["slots"]):
        if not isinstance(slot, str):
            _fields(f"{where}.slots[{position}]", slot, _SLOT)


def _check_class(optimizer: Mapping[str, Any]) -> None:
    name, subclass = optimizer["class"], optimizer["subclass"]
    if subclass in CLASS_NAMES and subclass != name:
        raise ValueError(f"a {subclass} is not a {name}")
    if (name == "RMSprop") != (optimizer["iterations"] is not None):
        expected = "a count" if name == "RMSprop" else "null"
        raise _wrong("optimizer.iterations", f"{expected} for a {name}", optimizer["iterations"])


def _check_config(name: str, config: Mapping[str, Any]) -> None:
    """Check the configuration of one of rmsjit's own classes; subclasses check their own."""
    known = _CONFIG_RMSPROP if name == "RMSprop" else _CONFIG_TF1
    needed = _NEEDED_RMSPROP if name == "RMSprop" else _NEEDED_TF1
    _fields("config", config, known, optional=known.keys() - needed)
    if config.get("form") is not None:
        check_form("config.form", config["form"])


def _fields(
    where: str, record: Any, checks: Mapping[str, Check], optional: Any = frozenset()
) -> None:
    """Check a record that must have exactly these fields, some of which are optional."""
    _dictionary(where, record)
    missing = [name for name in checks if name not in record and name not in optional]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(map(repr, missing))}")
    unknown = [name for name in record if name not in checks]
    if unknown:
        raise ValueError(f"{where} has {_brief(unknown[0])}, which is unknown")
    for name, value in record.items():
        checks[name](f"{where}.{name}", value)


def _wrong(where: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{where} must be {expected}, got {_brief(value)}")


def _brief(value: Any) -> str:
    if isinstance(value, int) and abs(value) > _MOST:  # Python refuses to format very long ones
        return "a huge integer"
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else f"{value!s:.200}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


# --- kinds of values ------------------------------------------------------------------------


def _that(expected: str, holds: Callable[[Any], bool]) -> Check:
    def checked(where: str, value: Any) -> None:
        if not holds(value):
            raise _wrong(where, expected, value)

    return checked


def _optional(check: Check) -> Check:
    return lambda where, value: None if value is None else check(where, value)


def _dictionary_of(check: Check) -> Check:
    def check_all(where: str, value: Any) -> None:
        _dictionary(where, value)
        for key, one in value.items():
            check(f"{where}[{_brief(key)}]", one)

    return check_all


def _one_of(*allowed: Any) -> Check:
    def is_allowed(value: Any) -> bool:
        return any(type(value) is type(one) and value == one for one in allowed)

    return _that(f"one of {', '.join(map(repr, allowed))}", is_allowed)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_AXES and all(map(_is_count, value))


def _is_finite(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


_string = _that("a string", lambda value: isinstance(value, str))
_strings = _that(
    "a list of strings",
    lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
)
_list = _that("a list", lambda value: isinstance(value, list))
_dictionary = _that("a dictionary", lambda value: isinstance(value, dict))
_flag = _that("true or false", lambda value: isinstance(value, bool))
_count = _that("an integer from 0 to 2**64 - 1", _is_count)
_counts = _that(f"a list of at most {_MOST_AXES} non-negative integers", _are_counts)
_number = _that("a finite number", _is_finite)
_scale = _that(
    "a positive number in the range of float32",
    lambda value: _is_finite(value) and 0 < value <= float(np.finfo(np.float32).max),
)
_start = _that(
    "a finite number", lambda value: value in ("epsilon", "variable") or _is_finite(value)
)
# A rate may be a schedule, which is checked when it is made.
_rate = _that("a finite number", lambda value: isinstance(value, dict) or _is_finite(value))
# It is checked when it is made.
_loss_scale = _that("a number or a dictionary", lambda v: isinstance(v, dict) or _is_finite(v))
_dtype = _one_of(*DTYPES)

# --- records --------------------------------------------------------------------------------

_CONTENT: dict[str, Check] = {
    "format": _string,
    "version": _one_of(1, 2),
    "rmsjit": _string,
    "variables": _list,
    "optimizer": _dictionary,
}
_ARRAY: dict[str, Check] = {"array": _string, "dtype": _dtype, "shape": _counts}
_VARIABLE: dict[str, Check] = {
    **_ARRAY,
    "name": _string,
    "array": _optional(_string),
    "axes": _counts,
    "flipped": _counts,
    "same_memory_as": _optional(_string),
}
_WEIGHT: dict[str, Check] = {**_ARRAY, "variable": _optional(_string), "name": _string}
_OPTIMIZER: dict[str, Check] = {
    "class": _one_of(*CLASS_NAMES),
    "subclass": _string,
    "config": _dictionary,
    "form": _dictionary,
    "iterations": _optional(_count),
    "skipped_steps": _count,
    "weights": _list,
    "groups": _list,
    "functions": _strings,
    "loss_scale": _dictionary,
    "accumulated": _dictionary,
}
_OPTIONAL = {"groups", "functions", "loss_scale", "accumulated"}
_GROUP: dict[str, Check] = {"patterns": _strings, "variables": _strings, "settings": _dictionary}
_SETTINGS: dict[str, Check] = {
    "learning_rate": _rate,
    **dict.fromkeys(("lr_multiplier", "weight_decay", "rho", "momentum", "epsilon"), _number),
    "frozen": _flag,
}
_SCALE: dict[str, Check] = {"value": _scale, "good_steps": _count}
_ROUND: dict[str, Check] = {"calls": _count, "sums": _list}
_SUM: dict[str, Check] = {**_ARRAY, "variable": _string, "name": _one_of("gradient", "rows")}
_SLOT: dict[str, Check] = {
    "name": _string,
    "start": _start,
    "dtype": _one_of(*SLOT_DTYPES),
    "zero_gradient": _string,
    "rounding": _string,
}
assert _SLOT.keys() == {one.name for one in fields(Slot)}
_FORM: dict[str, Check] = {  # `Form` itself checks which strings are valid
    one.name: _flag if isinstance(one.default, bool) else _optional(_string) for one in fields(Form)
} | {"slots": _list, "float32_numbers": _list}
_FORM_1: dict[str, Check] = {
    "epsilon_inside": _flag,
    "rms_start": _number,
    "slots": _list,
    "by_variable": _flag,
}
_CONFIG: dict[str, Check] = {
    "learning_rate": _rate,
    "decay": _number,
    "momentum": _number,
    "epsilon": _number,
    "centered": _flag,
    "name": _string,
    "sparse": _one_of("rows", "exact"),
    "nonfinite": _one_of("propagate", "skip", "raise"),
    "weight_decay": _number,
    "clip_weights": _optional(_number),
    "maximize": _flag,
    "grad_scale": _number,
    "master_weights": _flag,
    "rounding": _one_of(*ROUNDINGS),
    "state_dtype": _dictionary_of(_one_of(*STATE_DTYPES)),
    "seed": _count,
}
_CONFIG_TF1 = {**_CONFIG, "use_locking": _flag, "decoupled_weight_decay": _flag}
_CONFIG_RMSPROP = {
    **_CONFIG,
    "rho": _number,
    "clipnorm": _number,
    "clipvalue": _number,
    "global_clipnorm": _number,
    "form": _dictionary,
    "use_ema": _flag,
    "ema_momentum": _number,
    "ema_overwrite_frequency": _optional(_count),
    "gradient_accumulation_steps": _count,
    "gradient_accumulation_reduction": _one_of("mean", "sum"),
    "loss_scale": _loss_scale,
}
_NEEDED = {"learning_rate", "decay", "momentum", "epsilon", "centered", "name"}
_NEEDED_TF1 = _NEEDED | {"use_locking"}
_NEEDED_RMSPROP = _NEEDED | {"rho"}
