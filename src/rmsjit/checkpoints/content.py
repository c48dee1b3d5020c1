"""The content of a checkpoint, and its encoding as arrays and one JSON text.

The text, of format version 2::

    {"format": "rmsjit checkpoint", "version": 2, "rmsjit": <version of the package>,
     "variables": [{"name", "array", "dtype", "shape", "axes", "flipped", "same_memory_as"}, ...],
     "optimizer": {"class", "subclass", "config", "form", "iterations", "skipped_steps",
                   "weights": [{"variable", "name", "array", "dtype", "shape"}, ...],
                   "groups": [{"patterns", "variables", "settings"}, ...],
                   "functions": [<names>],
                   "loss_scale": {"value", "good_steps"},
                   "accumulated": {"calls", "sums": [<as weights>, ...]}}}

``array`` is the name of an array in the file.  It is null for a variable that shares the memory of
an earlier one, which ``same_memory_as`` names.  ``axes`` are the axes of a variable by descending
stride, ``flipped`` those with a negative stride.  ``weights`` are in the order of the optimizer's
weights; ``variable`` is null for weights that are not slots.  ``groups`` is left out if there are
none; ``variables`` are names of variables, ``settings`` arguments of `Optimizer.add_group`.
``functions``, likewise, are what the optimizer had that a file can't hold.
``loss_scale`` is there only for a dynamic one.
``accumulated`` is there only in the middle of a round of gradient accumulation; a sum is
"gradient", or for a table with sparse gradients "gradient" and "rows".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from numpy.typing import NDArray

from rmsjit._version import __version__
from rmsjit.arrays.dtypes import dtype_named
from rmsjit.arrays.layout import Layout
from rmsjit.checkpoints import schema
from rmsjit.checkpoints.array_file import Arrays, as_dtype
from rmsjit.rule.form import Form
from rmsjit.rule.loss_scale import ScaleState
from rmsjit.rule.presets import keras_legacy, tf1, with_precision, with_terms

FORMAT, VERSION = "rmsjit checkpoint", 2


@dataclass(frozen=True)
class SavedVariable:
    """A variable of a checkpoint; it may be a view of the memory of another one."""

    value: NDArray[Any]
    layout: Layout
    same_memory_as: str | None = None


@dataclass(frozen=True)
class SavedWeight:
    """A slot of a variable, or a weight of the optimizer itself if `variable` is None."""

    variable: str | None
    name: str
    value: NDArray[Any]


@dataclass(frozen=True)
class SavedGroup:
    """A group of variables that have settings of their own."""

    patterns: list[str]  # of names that `Variable` objects have
    variables: list[str]  # by their names in the checkpoint
    settings: dict[str, Any]


@dataclass(frozen=True)
class SavedOptimizer:
    """An optimizer without its weights."""

    class_name: str  # one of the two classes of rmsjit
    subclass: str  # the same, or a subclass that the user has defined
    config: dict[str, Any]  # the constructor's arguments
    form: Form
    iterations: int | None  # None if the class does not count them
    skipped_steps: int = 0
    groups: list[SavedGroup] | None = None  # None if the source does not tell
    loss_scale: ScaleState | None = None  # None if it never changes
    functions: tuple[str, ...] = ()  # the names of those that it had, which are not saved


@dataclass(frozen=True)
class SavedRound:
    """The sums of a round of gradient accumulation."""

    calls: int
    sums: list[SavedWeight]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file."""

    optimizer: SavedOptimizer
    variables: dict[str, SavedVariable]
    weights: list[SavedWeight]
    accumulated: SavedRound | None = None


def encoded(checkpoint: Checkpoint) -> tuple[str, Arrays]:
    """The JSON text and the arrays; raises `TypeError` if JSON does not support the config."""
    optimizer = checkpoint.optimizer
    _check_for_json("config", optimizer.config)
    groups = [vars(group) for group in optimizer.groups or ()]
    arrays: Arrays = {}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "rmsjit": __version__,
        "variables": [
            _variable_record(name, saved, arrays) for name, saved in checkpoint.variables.items()
        ],
        "optimizer": {
            "class": optimizer.class_name,
            "subclass": optimizer.subclass,
            "config": optimizer.config,
            "form": optimizer.form.to_dict(),
            "iterations": optimizer.iterations,
            "skipped_steps": optimizer.skipped_steps,
            "weights": [_weight_record(saved, arrays) for saved in checkpoint.weights],
            **({"groups": groups} if groups else {}),
            **({"functions": list(optimizer.functions)} if optimizer.functions else {}),
            **_scale_record(optimizer.loss_scale),
            **_round_record(checkpoint.accumulated, arrays),
        },
    }
    return json.dumps(content), arrays


def _check_for_json(place: str, value: Any) -> None:
    """Raise a `TypeError` that names the innermost value that JSON does not support."""
    try:
        json.dumps(value)
    except (RecursionError, TypeError, ValueError) as error:
        if not isinstance(error, TypeError):  # such as a list that contains itself
            raise TypeError(f"{place}: {error}") from error
        parts: Any = {}
        if isinstance(value, dict):
            parts = {repr(key): part for key, part in value.items()}
        elif isinstance(value, (list, tuple)):
            parts = dict(enumerate(value))
        for key, part in parts.items():
            _check_for_json(f"{place}[{key}]", part)
        raise TypeError(f"{place}: {error}") from error


def decoded(text: str, arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
    """The inverse of `encoded`; raises `ValueError` for anything that it has not written."""
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        version = content["version"]
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"it was not written by rmsjit.save: {error}") from error
    if isinstance(version, bool) or version not in (1, VERSION):
        raise ValueError(
            f"its format version is {version!r} (of rmsjit {content.get('rmsjit')}), "
            f"and this rmsjit reads versions 1 and {VERSION}"
        )
    try:
        schema.check(content)
        return _checkpoint(content, arrays)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"it is damaged: {error}") from error


def _checkpoint(content: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
    optimizer = dict(content["optimizer"])
    records, accumulated = optimizer.pop("weights"), optimizer.pop("accumulated", None)
    sums = [] if accumulated is None else accumulated["sums"]
    _check_names(content["variables"], records, sums, arrays)
    variables: dict[str, SavedVariable] = {}
    for record in content["variables"]:
        variables[record["name"]] = _saved_variable(record, variables, arrays)
    weights = [SavedWeight(r["variable"], r["name"], _value(r, arrays)) for r in records]
    groups = [SavedGroup(**record) for record in optimizer.pop("groups", [])]
    _check_groups(groups, variables)
    form = _form(optimizer["form"], content["version"])
    scale = optimizer.pop("loss_scale", None)
    changed = {
        "form": form,
        "groups": groups,
        "loss_scale": scale and ScaleState(**scale),
        "functions": tuple(optimizer.pop("functions", ())),
    }
    saved = SavedOptimizer(class_name=optimizer.pop("class"), **optimizer | changed)
    if saved.subclass == saved.class_name:
        _check_config_of_form(saved)
    if accumulated is None:
        return Checkpoint(saved, variables, weights)
    own = [SavedWeight(r["variable"], r["name"], _value(r, arrays)) for r in sums]
    return Checkpoint(saved, variables, weights, SavedRound(accumulated["calls"], own))


def _check_names(
    variables: list[dict[str, Any]],
    weights: list[dict[str, Any]],
    sums: list[dict[str, Any]],
    arrays: Mapping[str, NDArray[Any]],
) -> None:
    """Raise `ValueError` unless all names are unique and records and arrays match."""
    _check_unique("variable", [record["name"] for record in variables])
    slots = [(r["name"], r["variable"]) for r in weights if r["variable"] is not None]
    _check_unique("slot", slots)
    of_sums = [(r["name"], r["variable"]) for r in sums]
    _check_unique("sum", of_sums)
    with_memory = {r["name"] for r in variables if r["same_memory_as"] is None}
    for slot, variable in slots + of_sums:
        if variable not in with_memory:
            raise ValueError(f"slot {slot!r} belongs to a variable {variable!r} without value")
    names = [r["array"] for r in (*variables, *weights, *sums) if r["array"] is not None]
    _check_unique("array", names)
    for name in arrays.keys() ^ set(names):
        raise ValueError(f"array {name!r} is {'unknown' if name in arrays else 'missing'}")


def _check_groups(groups: list[SavedGroup], variables: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the variables of groups are there, each in one of them."""
    named = [name for group in groups for name in group.variables]
    _check_unique("variable of groups", named)
    for name in named:
        if name not in variables:
            raise ValueError(f"a group has a variable {name!r}, which is missing")


def _check_unique(kind: str, names: list[Any]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{kind} {name!r} occurs twice")
        seen.add(name)


def fits(form: Form, made: Form) -> bool:
    """Whether an optimizer that was constructed with the form `made` can have `form` later.

    Setting a momentum later adds its slot, and setting it to 0 does not remove the slot.
    """
    if _additions(form) != _additions(made):
        return False
    form, made = form.without_additions, made.without_additions
    family = [keras_legacy(centered=made.centered, momentum=used) for used in (False, True)]
    family.append(family[0].with_momentum())
    return form in (made, made.with_momentum()) or (made in family and form in family)


def _additions(form: Form) -> tuple[Any, ...]:
    """What an optimizer adds to any form; momentum that comes later is stored as rms is."""
    rms = form.slot("rms")
    return form.has_average, form.has_master, form.rounding, rms.dtype, rms.rounding


def _check_config_of_form(saved: SavedOptimizer) -> None:
    """Raise `ValueError` if the configuration contradicts the form, for rmsjit's own classes."""
    form, config = saved.form, saved.config
    if saved.class_name == "RMSPropOptimizer":
        made = with_terms(
            tf1(centered=config["centered"]),
            decays=config.get("weight_decay", 0.0) > 0,
            decoupled=config.get("decoupled_weight_decay", True),
            clips=config.get("clip_weights") is not None,
        )
    elif "form" in config:
        made = Form.from_dict(config["form"])
    else:
        made = keras_legacy(centered=config["centered"], momentum=config["momentum"] > 0)
    if config.get("use_ema"):
        made = made.with_average()
    master, rounding = config.get("master_weights", False), config.get("rounding", "nearest")
    state = config.get("state_dtype", {})
    made = with_precision(made, master_weights=master, rounding=rounding, state_dtype=state)
    if not fits(form, made) or form.centered != config["centered"]:
        raise ValueError(f"the configuration is for {made}, but the state for {form}")
    if config["momentum"] > 0 and not form.has_momentum:
        raise ValueError(f"the momentum is {config['momentum']}, but the state is for {form}")


def _form(settings: dict[str, Any], version: int) -> Form:
    if version != 1:
        return Form.from_dict(settings)
    return Form.with_slots(  # version 1 had these settings only
        *settings["slots"],
        rms_start=settings["rms_start"],
        epsilon="inside" if settings["epsilon_inside"] else "outside",
        creation="by_variable" if settings["by_variable"] else "by_slot",
    )


def _variable_record(name: str, saved: SavedVariable, arrays: Arrays) -> dict[str, Any]:
    key = None
    if saved.same_memory_as is None:
        key = "variables/" + _quoted(name)
        arrays[key] = saved.value
    return {
        "name": name,
        "array": key,
        "dtype": saved.value.dtype.name,
        "shape": saved.value.shape,
        "axes": saved.layout.axes,
        "flipped": _flipped_axes(saved.layout),
        "same_memory_as": saved.same_memory_as,
    }


def _saved_variable(
    record: dict[str, Any],
    earlier: Mapping[str, SavedVariable],
    arrays: Mapping[str, NDArray[Any]],
) -> SavedVariable:
    layout = _layout(record)
    sharing = record["same_memory_as"]
    if (sharing is None) != (record["array"] is not None):
        raise ValueError(f"{record['name']!r} must have either an array or the memory of another")
    if sharing is None:
        return SavedVariable(_value(record, arrays), layout)
    first = earlier.get(sharing)
    if first is None or first.same_memory_as is not None:
        raise ValueError(f"{record['name']!r} shares the memory of {sharing!r}, which has none")
    if first.value.dtype != dtype_named(record["dtype"]):
        raise ValueError(f"{record['name']!r} is of another dtype than {sharing!r}, its memory")
    flat = first.layout.canonical(first.value).reshape(-1)
    return SavedVariable(layout.logical(flat, tuple(record["shape"])), layout, sharing)


def _flipped_axes(layout: Layout) -> list[int]:
    flips = layout.flips or [slice(None)] * len(layout.axes)
    return [axis for axis, flip in zip(layout.axes, flips, strict=True) if flip.step == -1]


def _layout(record: dict[str, Any]) -> Layout:
    axes, flipped = tuple(record["axes"]), record["flipped"]
    if sorted(axes) != list(range(len(record["shape"]))) or not {*flipped} <= {*axes}:
        raise ValueError(
            f"{record['name']!r} has the axes {axes}, flipped {flipped}, for the shape "
            f"{record['shape']}"
        )
    return Layout(axes, tuple(slice(None, None, -1 if k in flipped else None) for k in axes))


def _scale_record(state: ScaleState | None) -> dict[str, Any]:
    return {} if state is None else {"loss_scale": state._asdict()}


def _round_record(saved: SavedRound | None, arrays: Arrays) -> dict[str, Any]:
    if saved is None:
        return {}
    sums = [_weight_record(one, arrays, "accumulated") for one in saved.sums]
    return {"accumulated": {"calls": saved.calls, "sums": sums}}


def _weight_record(saved: SavedWeight, arrays: Arrays, kind: str = "slots") -> dict[str, Any]:
    if saved.variable is None:
        key = f"weights/{len(arrays)}/{_quoted(saved.name)}"  # names need not be unique
    else:
        key = f"{kind}/{_quoted(saved.name, safe='')}/{_quoted(saved.variable)}"
    arrays[key] = saved.value
    return {
        "variable": saved.variable,
        "name": saved.name,
        "array": key,
        "dtype": saved.value.dtype.name,
        "shape": saved.value.shape,
    }


def _quoted(name: str, safe: str = "/ :()[]{},;=+@#!$&'") -> str:
    """A name as printable ASCII, for zip files; different names stay different."""
    return quote(name, safe, errors="surrogatepass")


def _value(record: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    try:
        value = as_dtype(arrays[record["array"]], dtype_named(record["dtype"]))
    except ValueError as error:
        raise ValueError(f"{record['array']}: {error}") from None
    if value.shape != tuple(record["shape"]):
        raise ValueError(f"{record['array']} is of shape {value.shape}, not {record['shape']}")
    return value
