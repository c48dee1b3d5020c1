"""Learning rate, decay factor, momentum, epsilon: their values at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.rule.checks import (
    as_number,
    in_unit_interval,
    is_of_step,
    is_schedule,
    nonnegative,
    positive,
)
from rmsjit.rule.numbers import StepNumbers
from rmsjit.variables import Variable

if TYPE_CHECKING:
    from rmsjit.rule.averaging import Averaging
    from rmsjit.rule.group_settings import GroupSettings

Numbers = tuple[StepNumbers, ...]  # of the optimizer, then of each group of variables


class Hyperparameters:
    """The source of the numbers of each step.

    Parameters
    ----------
    given : dict
        Checked values by their names in `StepNumbers`: a number, a function without arguments or
        of the step or, for the learning rate, a schedule.  Also "decay", which lowers the rate
        over the steps.
    names : dict, optional
        The names in error messages, where the optimizer's arguments are named differently.
    counts_steps : bool
        Whether the rule needs the step number.
    in_float32 : collection of str
        The names of those that are rounded to float32 before they are used.
    averaging : Averaging, optional
        How the average of the weights follows them.
    calls_per_step : int
        How many gradients are accumulated for a step.  As in Keras 3, a schedule is given the
        number of calls before the one that takes the step.

    Attributes
    ----------
    constant : tuple of StepNumbers or None
        Set by the first call of `at` if the numbers can't change from step to step.
    groups : tuple of GroupSettings
        Those of variables that have settings of their own.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        names: Mapping[str, str] | None = None,
        counts_steps: bool = False,
        in_float32: Collection[str] = (),
        averaging: Averaging | None = None,
        calls_per_step: int = 1,
    ) -> None:
        self._given = {"decay": 0.0, "weight_decay": 0.0, "clip_weights": math.inf, **given}
        self._names = dict(names or {})
        self._of_step = {name for name, value in self._given.items() if is_of_step(name, value)}
        self._used: dict[str, float] = {}  # what each function last returned
        self._counts_steps = counts_steps
        self._in_float32 = frozenset(in_float32)
        self.averaging = averaging
        self._calls_per_step = calls_per_step
        self._latest: Numbers | None = None
        self.constant: Numbers | None = None
        self._groups: tuple[GroupSettings, ...] = ()
        self._version = object()  # another one after each change

    def __getitem__(self, name: str) -> Any:
        return self._given[name]

    def __setitem__(self, name: str, value: Any) -> None:
        of_step = self._of_step - {name} | ({name} if is_of_step(name, value) else set())
        given = {**self._given, name: value}
        self._used.pop(name, None)
        # In one line, in which no signal handler runs.
        self._of_step, self._given, self._version, self.constant = of_step, given, object(), None

    @property
    def of_step(self) -> Collection[str]:
        """The names of those that are functions of the step."""
        return self._of_step

    @property
    def groups(self) -> tuple[GroupSettings, ...]:
        """The settings of each group of variables."""
        return self._groups

    def add_group(self, settings: GroupSettings) -> None:
        """Add the settings of a group of variables."""
        self._groups = (*self._groups, settings)
        self.changed()

    def changed(self) -> None:
        """Compute the numbers again, since a setting has changed."""
        self._version, self.constant = object(), None

    def at(self, counter: NDArray[Any] | None) -> Numbers:
        """The numbers of the next step, where `counter` is the number of steps taken.

        The first are those of variables in no group, then come those of each group.  Returns the
        same object as at the step before if the numbers have not changed.

        Raises
        ------
        TypeError, ValueError
            If a function or schedule does not return a number in the allowed range, or a function
            is one of the step and there is no counter.
        """
        if self.constant is not None:
            return self.constant
        if counter is None:
            self._refuse_functions_of_the_step()
        version, given, groups = self._version, self._given, self._groups
        numbers = self._of_groups(counter) if groups else (self._numbers(counter, self.now),)
        if numbers == self._latest:
            assert self._latest is not None
            numbers = self._latest
        self._latest = numbers
        varies = given["decay"] or self._counts_steps or self.averaging
        if (
            not varies
            and all(isinstance(value, float) for value in given.values())
            and all(group.is_constant for group in groups)
        ):
            self.constant = numbers
            if self._version is not version:  # a function or another thread has changed a setting
                self.constant = None
        return numbers

    def seen_at(self, counter: NDArray[Any] | None) -> Numbers:
        """Like `at`, with the values that functions last returned, so it has no side effects."""
        return self.constant or self._of_groups(counter, last=True)

    def _of_groups(self, counter: NDArray[Any] | None, last: bool = False) -> Numbers:
        """The numbers of the optimizer and of all groups; each function is called once."""
        value_of, read = self.last if last else self.now, dict[str, float]()

        def inherited(name: str, iterations: int) -> float:
            if name not in read:
                read[name] = value_of(name, iterations)
            return read[name]

        numbers = [self._numbers(counter, inherited)]
        for group in self.groups:
            own = self._numbers(counter, group.over(inherited, last))
            calls = self._calls(0 if counter is None else int(counter))
            numbers.append(group.multiplied(own, last, calls))
        return tuple(numbers)

    def _numbers(
        self, counter: NDArray[Any] | None, value_of: Callable[[str, int], float]
    ) -> StepNumbers:
        iterations = 0 if counter is None else int(counter)
        read = self._rounding(value_of) if self._in_float32 else value_of
        return StepNumbers(
            self._rate(iterations, read),
            in_unit_interval(self._name("rho"), read("rho", iterations)),
            in_unit_interval(self._name("momentum"), read("momentum", iterations)),
            positive(self._name("epsilon"), read("epsilon", iterations)),
            nonnegative("weight_decay", read("weight_decay", iterations)),
            self._given["clip_weights"],
            iterations + 1.0 if self._counts_steps else 1.0,
            *self._of_average(iterations),
        )

    def _rate(self, iterations: int, read: Callable[[str, int], float]) -> float:
        rate = read("learning_rate", self._calls(iterations))
        return rate / (1.0 + read("decay", iterations) * iterations)

    def _calls(self, iterations: int) -> int:
        """The number of calls before the one that ends the next step."""
        return (iterations + 1) * self._calls_per_step - 1

    def current_rate(self, counter: NDArray[Any] | None) -> float | None:
        """The learning rate of the next step, without calling a function that takes no step.

        Such a function may return another value at each call, so the value that it last returned
        counts; None if there is none.  The same holds for any function if steps are not counted.
        """
        given = self._given["learning_rate"]
        is_function = callable(given) and not is_schedule(given)
        read: Callable[[str, int], float]
        if not is_function or ("learning_rate" in self._of_step and counter is not None):
            read = self._value
        elif "learning_rate" in self._used:
            read = self.last
        else:
            return None
        read = self._rounding(read) if self._in_float32 else read
        return self._rate(0 if counter is None else int(counter), read)

    def _of_average(self, steps: int) -> tuple[float, float]:
        """The numbers of the average of the weights."""
        if self.averaging is None:
            return 0.0, 0.0
        return self.averaging.momentum_at(steps), float(self.averaging.overwrites_at(steps))

    def now(self, name: str, iterations: int = 0) -> float:
        """The current value; schedules and functions of the step depend on `iterations`."""
        value = self._value(name, iterations)
        given = self._given[name]
        if callable(given) and not is_schedule(given):
            self._used[name] = value
        return value

    def _value(self, name: str, iterations: int) -> float:
        """The same, without noting what a function returns."""
        given, title = self._given[name], self._name(name)
        if isinstance(given, float):
            return given
        if isinstance(given, Variable):
            return as_number(title, given)
        if is_schedule(given):
            return as_number(f"{title} (from {given!r})", given(iterations))
        function = getattr(given, "__qualname__", repr(given))
        arguments = (iterations,) if name in self._of_step else ()
        call = f"{function}({', '.join(map(str, arguments))})"
        return as_number(f"{title} (from {call})", given(*arguments))

    def last(self, name: str, iterations: int = 0) -> float:
        """The value that the last step used.

        A function may return another value at each call, so it is called only if it has not been
        called since it was set.
        """
        used = self._used.get(name)
        return self.now(name, iterations) if used is None else used

    @property
    def functions(self) -> list[str]:
        """The names that the user knows of those that are functions, and not schedules."""
        given = self._given.items()
        return [self._name(k) for k, one in given if callable(one) and not is_schedule(one)]

    def used(self) -> dict[str, float]:
        """What each function last returned."""
        return dict(self._used)

    def recall(self, used: Mapping[str, float]) -> None:
        """Take these for what functions last returned."""
        self._used = dict(used)

    def serialized(self, name: str) -> Any:
        """A value for JSON: the configuration of a schedule, or the current number.

        Raises
        ------
        TypeError
            If a schedule can't be serialised.
        """
        given = self._given[name]
        if not is_schedule(given):
            return self.last(name)
        from rmsjit import schedules

        try:
            return schedules.serialize(given)
        except NotImplementedError as error:
            raise TypeError(f"{name} can't be serialised: {error}") from error

    def _refuse_functions_of_the_step(self) -> None:
        own = [(self._name(name), self._given[name]) for name in sorted(self._of_step)]
        of_groups = [
            (f"{name} of a group", group.get(name))
            for group in self._groups
            for name in group.of_step
        ]
        for title, given in own + of_groups:
            raise ValueError(
                f"{title} must not be a function of the step where steps are not counted, got "
                f"{given!r}: pass a global_step"
            )

    def _rounding(self, value_of: Callable[[str, int], float]) -> Callable[[str, int], float]:
        """The same, with the numbers that the form keeps in float32 rounded to it."""

        def rounded(name: str, iterations: int) -> float:
            value = value_of(name, iterations)
            if name not in self._in_float32:
                return value
            with np.errstate(all="ignore"):  # one that overflows is refused where it is packed
                return float(np.float32(value))

        return rounded

    def _name(self, name: str) -> str:
        return self._names.get(name, name)
