"""The memory of one step of a plan: its gradients, numbers and scales, as kernels read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsjit.arrays.dtypes import Kinds
from rmsjit.arrays.layout import address_of
from rmsjit.rule.form import Form
from rmsjit.rule.hyperparameters import Numbers
from rmsjit.rule.numbers import RuleNumbers, lapsed, packed
from rmsjit.runtime.threads import Launch
from rmsjit.runtime.trials import Trials
from rmsjit.steps.act import Act
from rmsjit.steps.occurrences import Occurrences
from rmsjit.steps.pairs import Pairs
from rmsjit.steps.place import Place
from rmsjit.steps.roaming import Found, Locator, RoamingPlace


class Binding:
    """Memory for one step at a time; reused from step to step.

    It holds everything that kernels are called with, so a step of known variables allocates
    nothing.  Threads that step at the same time have a binding each.  A binding has no reference
    to its plan, which would be a reference cycle.

    Attributes
    ----------
    gradients : int64 array, shape (pairs,)
        Addresses of the gradients; for a sparse one, of its values.
    addresses : int64 array, shape (pairs, 1 + slots)
        Of the variables and their slots.
    occurrences : dict of int to Occurrences
        The rows that each sparse gradient names, by position.
    numbers : dict of str to ndarray, shape (groups, fields)
        The numbers of the step, by the dtype of the arithmetic.
    lapse_numbers : dict of str to float64 array, shape (groups, 4)
        What they do to rows that are not named; see `rmsjit.rule.numbers.lapsed`.
    totals : float64 array, shape (pairs, 2)
        The result of a pass over the gradients; see `rmsjit.steps.norms.Norms`.
    is_scaled : bool
        Whether a scale may differ from 1.
    noise : int64 array, shape (1 + 2 * pairs,)
        For stochastic rounding: the number of the step, and two words for each variable; see
        `rmsjit.steps.noise`.
    trials : Trials or None
        Told how long the step takes.
    acts, norm_acts : dict
        Acts made of these arrays, to be run again.
    place : Place
        Where the addresses are.
    alive : object
        Keeps the gradients behind the addresses alive.
    known : tuple or None
        Pairs that need not be read again as long as nothing moves; see `Bindings.bind_unmoved`.
    """

    def __init__(
        self, place: Place, computing: Iterable[str], groups: int, noise: NDArray[np.int64]
    ) -> None:
        count = len(place.addresses)
        self.place = place
        self.gradients = np.zeros(count, np.int64)
        self.addresses = place.addresses.copy()
        self.occurrences: dict[int, Occurrences] = {}
        fields = len(RuleNumbers._fields)
        self.numbers = {name: np.zeros((groups, fields), name) for name in computing}
        self.lapse_numbers = {name: np.zeros((groups, 4)) for name in computing}
        self.noise = noise.copy()
        self.alive: Any = None
        self.known: Pairs | None = None
        self._roaming: RoamingPlace | None = None
        self._read_call = place.reader.call_for(self.gradients)
        self.read_address = address_of(self._read_call)
        self.values: Numbers | None = None
        self.limit = 0.0
        self._scales: dict[str, NDArray[Any]] = {}
        self.is_scaled = False
        self.trials: Trials | None = None
        self.acts: dict[tuple[Launch, bool, bool], list[Act]] = {}
        self.norm_acts: dict[tuple[Launch, float], Act] = {}
        self.totals = np.zeros((count, 2))

    def move(self, place: Place) -> None:
        """Switch to another place of the same plan; the acts stay valid."""
        self.place = place
        self.addresses[...] = place.addresses
        place.reader.direct(self._read_call)

    def follow(self, found: Found, locator: Locator) -> None:
        """Move to variables that `locator` has found."""
        if self._roaming is None:
            self._roaming = RoamingPlace(self.place, self.addresses, locator)
        self._roaming.move(found)
        self.move(self._roaming)

    def scales_of(self, kinds: Kinds) -> NDArray[Any]:
        """An array for a scale of each gradient, in the dtype of the arithmetic."""
        if kinds.computing not in self._scales:
            self._scales[kinds.computing] = np.ones(len(self.gradients), kinds.computing)
        return self._scales[kinds.computing]

    def pack(self, values: Numbers, limit: float, form: Form) -> None:
        """Write the numbers of the step, and the bound on gradients, where kernels read them.

        There may be numbers of groups that have been added since: another plan will use them.

        Raises
        ------
        ValueError
            If a number overflows, or epsilon vanishes, in a dtype of the arithmetic.
        """
        rules = {
            name: np.concatenate([packed(one, limit, name, form) for one in values[: len(rows)]])
            for name, rows in self.numbers.items()
        }
        for name, rule in rules.items():
            self.numbers[name][...] = rule
            self.lapse_numbers[name][...] = [lapsed(one, form) for one in rule]
        self.values, self.limit = values, limit
