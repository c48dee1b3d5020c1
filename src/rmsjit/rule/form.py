"""`Form`: a published form of RMSprop, as a value.

Every library computes RMSprop in its own way.  A `Form` describes it: where epsilon and the
learning rate enter, which slots there are, how each operation is rounded.  Kernels are made from it
(`rmsjit.kernels.rule`), so what a form lacks costs nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rmsjit.arrays.dtypes import ARITHMETIC, Kinds, Precision, kinds_of
from rmsjit.rule.slot import (
    AVERAGE,
    KNOWN,
    MASTER,
    MG,
    MOMENTUM,
    NO_CLOSED_FORM,
    RMS,
    ROUNDINGS,
    STOCHASTIC,
    Slot,
    is_packed,
    slot_from_json,
    slot_to_json,
)
from rmsjit.rule.values import as_call, changed_settings, check_choice

_CHOICES = {
    "epsilon": ("outside", "inside"),
    "learning_rate": ("inside", "outside"),
    "weight_decay": (None, "coupled", "decoupled", "subtracted", "independent"),
    "one_minus_rho": ("rounded", "exact"),
    "rms_average": ("weighted", "difference"),
    "mg_average": ("weighted", "difference"),
    "square": ("weighted", "first"),
    "complex_square": ("product", "modulus"),
    "quotient": ("rate_last", "rate_first", "reciprocal", "rate_over"),
    "creation": ("by_slot", "by_variable"),
    "rounding": ROUNDINGS,
}

_SWITCHES = ("nesterov", "bias_correction", "clip_weights", "clamp", "fused")
_NUMBERS = ("learning_rate", "decay", "rho", "momentum", "epsilon", "weight_decay")


@dataclass(frozen=True, repr=False)
class Form:
    """One published form of RMSprop.

    With ``g`` the clipped gradient, ``p`` the variable and ``c = 1 - rho``::

        g  <- g + weight_decay*p                         coupled weight decay
        p  <- p * (1 - lr*weight_decay)                  decoupled weight decay
        rms <- rho*rms + c*g*g
        mg  <- rho*mg  + c*g                             with a slot "mg"
        v   = max(rms - mg*mg, 0)   or   rms
        d   = sqrt(v) + epsilon     or   sqrt(v + epsilon)
        momentum <- factor*momentum + lr*g/d             with a slot "momentum"
        p  <- p - momentum          or   p - lr*g/d
        average <- ema_momentum*average + (1 - ema_momentum)*p     with a slot "average"

    With a slot "master", ``p`` is that slot, and the variable is ``p`` rounded to its dtype.

    Parameters
    ----------
    slots : tuple of Slot
        In the order of creation.  "rms" must be among them; "mg" makes the form centered;
        "average" is a moving average of the variable; "master" holds the float32 value of a
        variable of a half type, and other variables do not get it.
    epsilon : {"outside", "inside"}
        ``sqrt(v) + epsilon``, or ``sqrt(v + epsilon)``.
    learning_rate : {"inside", "outside"}
        Whether the momentum accumulates ``lr*g/d``, or ``g/d`` and is multiplied by ``lr`` when
        it is used.
    nesterov : bool
        Step by ``factor*momentum + lr*g/d`` instead of by the new momentum.
    bias_correction : bool
        Divide ``rms`` and ``mg`` by ``1 - rho**t`` at step ``t``, before ``v``.
    weight_decay : None or {"coupled", "decoupled", "subtracted", "independent"}
        Added to the gradient; or the variable shrinks before the step, to ``p * (1 - lr*wd)``,
        ``p - p*wd*lr`` (the same except for rounding), or ``p * (1 - wd)``.
    clip_weights : bool
        Clip every element of the variable after the step.
    clamp : bool
        Replace ``rms - mg*mg`` by 0 if rounding makes it negative, which would give NaN.
    complex_square : {"product", "modulus"}
        ``g*g``, as TensorFlow computes, or ``|g|**2``, which descends.
    one_minus_rho : {"rounded", "exact"}
        Computed in the dtype of the arithmetic, or in float64 and then rounded.
    rms_average, mg_average : {"weighted", "difference"}
        ``rho*a + c*b``, or ``a + (b - a)*c``.
    square : {"weighted", "first"}
        ``(c*g)*g``, or ``c*(g*g)``.
    quotient : {"rate_last", "rate_first", "reciprocal", "rate_over"}
        ``lr*(g/d)``, ``(lr*g)/d``, ``lr*(g*(1/d))``, or ``(lr/d)*g``.
    fused : bool
        Round a product and the following sum once (FMA), where libraries do.
    float32_numbers : tuple of str
        The hyperparameters that a library keeps in float32 whatever the dtype of the variable, so
        that a float64 variable is updated with a rate of 0.0010000000474974513 instead of 0.001.
        "decay" is that of the learning rate.
    creation : {"by_slot", "by_variable"}
        Whether the first slot of all variables is created before their second, or all slots of one
        variable before those of the next; the order of weights and checkpoints.
    rounding : {"nearest", "stochastic"}
        How a variable of a half type is rounded when it is stored: to the nearest number, or up
        with a probability equal to the part that is rounded away, and otherwise down.

    Raises
    ------
    ValueError
        If a setting has another value, or two contradict each other.

    Examples
    --------
    PyTorch's, with momentum:

    >>> import rmsjit
    >>> form = rmsjit.Form.with_slots("rms", "momentum", learning_rate="outside")
    >>> form.centered, form.has_momentum, form.epsilon
    (False, True, 'outside')
    """

    slots: tuple[Slot, ...] = (RMS,)
    epsilon: str = "outside"
    learning_rate: str = "inside"
    nesterov: bool = False
    bias_correction: bool = False
    weight_decay: str | None = None
    clip_weights: bool = False
    clamp: bool = True
    complex_square: str = "product"
    one_minus_rho: str = "rounded"
    rms_average: str = "weighted"
    mg_average: str = "weighted"
    square: str = "weighted"
    quotient: str = "rate_last"
    fused: bool = False
    float32_numbers: tuple[str, ...] = ()
    creation: str = "by_slot"
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(self.slots))
        for name, allowed in _CHOICES.items():
            check_choice(self, name, allowed)
        names = self.slot_names
        if RMS.name not in names or len(set(names)) != len(names):
            raise ValueError(f'slots must have different names, "rms" among them, got {names}')
        for name in _SWITCHES:
            check_choice(self, name, (False, True))
        self._check_float32_numbers()
        for slot in self.slots:
            known = KNOWN.get(slot.name, slot)
            if slot.zero_gradient not in (known.zero_gradient, NO_CLOSED_FORM):
                raise ValueError(
                    f"zero_gradient of the slot {slot.name!r} must be {known.zero_gradient!r}, "
                    f"got {slot.zero_gradient!r}"
                )
        if not self.has_momentum and (self.nesterov or self.learning_rate == "outside"):
            raise ValueError(
                f'nesterov and learning_rate="outside" need a slot "momentum", got slots {names}'
            )

    def _check_float32_numbers(self) -> None:
        given: Any = self.float32_numbers
        if isinstance(given, str) or not set(given) <= set(_NUMBERS):
            raise ValueError(
                f"float32_numbers must be some of {', '.join(map(repr, _NUMBERS))}, got {given!r}"
            )
        object.__setattr__(self, "float32_numbers", tuple(given))

    def __repr__(self) -> str:
        """The settings that differ from the defaults; also part of the key of cached kernels."""
        slots = f"slots={self.slots}"
        if all(slot == KNOWN.get(slot.name) for slot in self.slots):
            return as_call("Form.with_slots", map(repr, self.slot_names), self._changed())
        return as_call("Form", [slots], self._changed())

    def _changed(self) -> dict[str, Any]:
        """The settings other than slots that differ from the defaults."""
        return changed_settings(self, without="slots")

    @classmethod
    def with_slots(cls, *names: str, rms_start: float | str = 0.0, **settings: Any) -> Form:
        """A form with some of the slots "rms", "mg", "momentum", "average" and "master".

        Parameters
        ----------
        *names : str
            In the order of creation.
        rms_start : float or "epsilon", default 0.0
            The initial value of ``rms``.
        **settings
            As for `Form`.
        """
        unknown = [name for name in names if name not in KNOWN]
        if unknown:
            raise ValueError(
                f"names must be among {', '.join(KNOWN)}, got {unknown[0]!r}; a slot of your own "
                "is a Slot among slots"
            )
        slots = [KNOWN[name] for name in names]
        slots = [replace(slot, start=rms_start) if slot is RMS else slot for slot in slots]
        return cls(tuple(slots), **settings)

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The names of the slots, in the order of creation."""
        return tuple(slot.name for slot in self.slots)

    @property
    def centered(self) -> bool:
        """Whether steps are normalised by the variance."""
        return MG.name in self.slot_names

    @property
    def has_momentum(self) -> bool:
        return MOMENTUM.name in self.slot_names

    def index(self, name: str) -> int:
        """The position of a slot."""
        return self.slot_names.index(name)

    def slot(self, name: str) -> Slot:
        """The slot of this name."""
        return self.slots[self.index(name)]

    def with_momentum(self) -> Form:
        """This form with a momentum slot, as wide as master weights, otherwise unchanged."""
        if self.has_momentum:
            return self
        momentum = MOMENTUM.in_dtype(ARITHMETIC if self.has_master else None)
        return replace(self, slots=(*self.slots, momentum))

    def with_state(self, dtypes: Mapping[str, str | None]) -> Form:
        """This form with other dtypes of some slots, below 32 bits rounded stochastically."""
        slots = [
            slot.in_dtype(dtypes[slot.name]) if slot.name in dtypes else slot for slot in self.slots
        ]
        return replace(self, slots=tuple(slots))

    @property
    def is_random(self) -> bool:
        """Whether steps round stochastically."""
        return STOCHASTIC in (self.rounding, *(slot.rounding for slot in self.slots))

    @property
    def is_packed(self) -> bool:
        """Whether a slot is kept in blocks of 8 bits."""
        return any(is_packed(slot.dtype) for slot in self.slots)

    @property
    def starts_from_epsilon(self) -> bool:
        """Whether the initial value of a slot is epsilon."""
        return any(slot.start == "epsilon" for slot in self.slots)

    @property
    def has_average(self) -> bool:
        """Whether there is a moving average of the variable."""
        return AVERAGE.name in self.slot_names

    def with_average(self) -> Form:
        """This form with a moving average of the variable, otherwise unchanged."""
        return self if self.has_average else replace(self, slots=(*self.slots, AVERAGE))

    def without_average(self) -> Form:
        """The form that `with_average` has made this one from."""
        return replace(self, slots=tuple(slot for slot in self.slots if slot != AVERAGE))

    @property
    def has_master(self) -> bool:
        """Whether there are master weights."""
        return MASTER.name in self.slot_names

    def with_master(self) -> Form:
        """This form with master weights, and other slots as wide as these; else unchanged."""
        if self.has_master:
            return self
        wide = [replace(slot, dtype=slot.dtype or ARITHMETIC) for slot in self.slots]
        return replace(self, slots=(*wide, MASTER))

    def without_master(self) -> Form:
        """The form that `with_master` has made this one from, or this one if there is none."""
        narrow = replace(self, slots=self._narrow_slots())
        return narrow if {*narrow.with_master().slots} == {*self.slots} else self

    def _narrow_slots(self) -> tuple[Slot, ...]:
        """The slots but for master weights, none wider than the variable because of these."""
        own = [slot for slot in self.slots if slot.name != MASTER.name]
        return tuple(replace(s, dtype=None) if s.dtype == ARITHMETIC else s for s in own)

    @property
    def without_additions(self) -> Form:
        """This form without what an optimizer adds to any.

        That is the average, master weights, stochastic rounding and the dtypes of reduced state.
        """
        plain = self.without_master().without_average()
        reduced = {slot.name: None for slot in plain.slots if slot.rounding == STOCHASTIC}
        return replace(plain.with_state(reduced), rounding="nearest")

    def of_variables(self, *, half: bool, small: bool = False) -> Form:
        """This form as it is for variables of a half type, or of another type.

        Only half types have master weights, and are rounded when they are stored.  Small variables
        have no slots in 8 bits.
        """
        if small and self.is_packed:
            return self._of_small_variables.of_variables(half=half)
        return self._of_half_variables if half else self._of_wide_variables

    @functools.cached_property
    def _of_small_variables(self) -> Form:
        return replace(self, slots=tuple(slot.of_small_variables() for slot in self.slots))

    @functools.cached_property
    def _of_half_variables(self) -> Form:
        return replace(self, slots=tuple(slot.of_variables(half=True) for slot in self.slots))

    @functools.cached_property
    def _of_wide_variables(self) -> Form:
        slots = tuple(slot.of_variables(half=False) for slot in self._narrow_slots())
        return replace(self, slots=slots, rounding="nearest")

    @functools.cached_property
    def arithmetic(self) -> Form:
        """This form without what kernels do not depend on, so that forms can share them.

        Its slots are sorted by name, as in every table that kernels read, but "master" is the last:
        so the tables of variables that do not have it begin alike.
        """
        slots = [replace(slot, start=0.0) for slot in self.slots]
        slots.sort(key=lambda slot: (slot.name == MASTER.name, slot.name))
        decay = "decoupled" if self.weight_decay == "independent" else self.weight_decay
        unused = {"one_minus_rho", "float32_numbers", "creation"}
        if not self.centered:
            unused |= {"mg_average", "clamp"}
        if self.learning_rate == "outside":
            unused.add("quotient")
        if self.rms_average == "difference":
            unused.add("square")
        defaults: dict[str, Any] = {
            one.name: one.default for one in fields(self) if one.name in unused
        }
        return replace(self, slots=tuple(slots), weight_decay=decay, **defaults)

    @functools.cached_property
    def _arithmetic_of_real_numbers(self) -> Form:
        """The same for real variables: their squares are also those of the modulus.

        With fused operations they are rounded in other places.
        """
        form = self.arithmetic
        return form if form.fused else replace(form, complex_square="product")

    def compiled_for(self, precision: Precision, small: bool = False) -> tuple[Form, Kinds]:
        """The form and the types that kernels for variables of a precision are compiled from."""
        form = self.of_variables(half=precision.is_half, small=small)
        is_real = precision.components == 1
        form = form._arithmetic_of_real_numbers if is_real else form.arithmetic
        return form, kinds_of(precision, tuple(slot.dtype for slot in form.slots))

    @property
    def without_closed_form(self) -> str | None:
        """Why several steps with a zero gradient can't be taken as one; None if they can."""
        if self.has_average:
            return "the average of the weights depends on every step in between"
        if self.is_random:
            return "stochastic rounding depends on every step in between"
        for slot in self.slots:
            if slot.zero_gradient == NO_CLOSED_FORM:
                return f"the slot {slot.name!r} has no closed form under a zero gradient"
        if self.weight_decay == "coupled":
            return "coupled weight decay makes every gradient differ from zero"
        if self.clip_weights:
            return "clipping of weights depends on every step in between"
        return None

    def to_dict(self) -> dict[str, Any]:
        """The slots and the settings that differ from the defaults, as values for JSON."""
        return {"slots": [slot_to_json(slot) for slot in self.slots], **self._changed()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Form:
        """The form from a result of `to_dict`.

        Raises
        ------
        TypeError, ValueError, KeyError
            If `settings` is not one.
        """
        slots = [slot_from_json(slot) for slot in settings["slots"]]
        return cls(tuple(slots), **{k: v for k, v in settings.items() if k != "slots"})

    def differences(self, other: Form) -> Iterator[tuple[str, Any, Any]]:
        """The settings in which two forms differ: the name, and the value in each."""
        for name in (one.name for one in fields(self)):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                yield name, ours, theirs
