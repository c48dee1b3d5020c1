"""Half precision: master weights, rounding, and reduced state."""

from __future__ import annotations

from typing import Any

from rmsjit.optimizers.arguments import checked_flag, checked_rounding, checked_state_dtype
from rmsjit.optimizers.core import Core
from rmsjit.optimizers.fixed import fixed_at_construction
from rmsjit.rule.form import Form
from rmsjit.rule.presets import with_precision
from rmsjit.rule.slot import STOCHASTIC


class Precision(Core):
    """The settings of half types, which are those of the form."""

    _state_dtype: dict[str, str]

    @fixed_at_construction
    def master_weights(self) -> bool:
        """Whether variables of half types have float32 master weights."""
        return self._store.form.has_master

    @fixed_at_construction
    def rounding(self) -> str:
        """How variables of half types are rounded: "nearest" or "stochastic"."""
        return self._store.form.rounding

    @fixed_at_construction
    def state_dtype(self) -> dict[str, str]:
        """The dtypes of slots that were asked for, by name."""
        return dict(self._state_dtype)

    @fixed_at_construction
    def seed(self) -> int:
        """The seed of the random bits of stochastic rounding."""
        return self._settings.seed

    def _with_precision(
        self, form: Form, master_weights: Any, rounding: Any, state_dtype: Any
    ) -> Form:
        """A form with what the arguments about half types ask for."""
        self._state_dtype = checked_state_dtype(state_dtype, form)
        return with_precision(
            form,
            master_weights=checked_flag("master_weights", master_weights),
            rounding=checked_rounding(rounding),
            state_dtype=self._state_dtype,
        )

    def _arguments_of_precision(self) -> dict[str, Any]:
        """The arguments for half types, as far as they are used."""
        form, used = self._store.form, dict[str, Any]()
        if form.has_master:
            used["master_weights"] = True
        if form.rounding == STOCHASTIC:
            used["rounding"] = STOCHASTIC
        if self._state_dtype:
            used["state_dtype"] = self.state_dtype
        if form.is_random:
            used["seed"] = self._settings.seed
        return used
