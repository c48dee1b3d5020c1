"""The forms of RMSprop: settings of the one rule in `rmsjit.kernels.rule`.

A form says where epsilon stands, what the mean of squares starts from, and which slots there are.
The three are independent, so that a further library's RMSprop is a further setting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

RMS, MG, MOMENTUM = "rms", "mg", "momentum"


@dataclass(frozen=True)
class Form:
    """One published form of RMSprop.

    Attributes
    ----------
    epsilon_inside : bool
        ``sqrt(v + eps)`` if true, else ``sqrt(v) + eps``.
    rms_start : float
        What every element of the slot ``rms`` starts from.
    slots : tuple of str
        The slots of each variable, in the order in which they are created.
    by_variable : bool
        Whether all slots of one variable are created before those of the next; else all slots of
        one name before those of the next name.
    """

    epsilon_inside: bool
    rms_start: float
    slots: tuple[str, ...]
    by_variable: bool = False

    @property
    def centered(self) -> bool:
        return MG in self.slots

    @property
    def has_momentum(self) -> bool:
        return MOMENTUM in self.slots

    def start(self, slot: str) -> float:
        """The initial value of `slot`."""
        return self.rms_start if slot == RMS else 0.0

    def with_momentum(self) -> Form:
        """This form with a momentum slot, its epsilon where it was."""
        if self.has_momentum:
            return self
        return replace(self, slots=(*self.slots, MOMENTUM))


def keras_form(*, centered: bool, momentum: bool) -> Form:
    """`tf.keras.optimizers.legacy.RMSprop`, where momentum moves epsilon inside the root."""
    slots = [RMS, *([MOMENTUM] if momentum else []), *([MG] if centered else [])]
    return Form(epsilon_inside=momentum, rms_start=0.0, slots=tuple(slots))


def tf1_form(*, centered: bool) -> Form:
    """`tf.train.RMSPropOptimizer`, whose momentum slot is there at momentum 0 as well."""
    slots = [RMS, *([MG] if centered else []), MOMENTUM]
    return Form(epsilon_inside=True, rms_start=1.0, slots=tuple(slots), by_variable=True)
