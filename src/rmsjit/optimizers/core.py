"""What all mixins of the optimizers use: the parts of an optimizer, and its engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from numpy.typing import NDArray

from rmsjit.optimizers.elsewhere import ForeignNames
from rmsjit.rule.clipping import Clipping
from rmsjit.rule.hyperparameters import Hyperparameters
from rmsjit.runtime import forks
from rmsjit.runtime.once import computed_once
from rmsjit.state.slots import SlotStore
from rmsjit.steps.settings import StepSettings

if TYPE_CHECKING:
    from rmsjit.steps.engine import Engine


class Core(ForeignNames):
    """The parts of an optimizer, which its constructor sets."""

    _name: str
    _store: SlotStore
    _hyperparameters: Hyperparameters
    _clipping: Clipping
    _settings: StepSettings
    _counter: NDArray[Any] | None = None  # of the steps, if it counts them
    _counts_steps = False  # as schedules need

    @computed_once
    def _engine(self) -> Engine:
        """Takes the steps; made at the first one, so that only this imports Numba."""
        with forks.importing():
            from rmsjit.steps.engine import Engine

        return Engine(self._store, self._settings)

    def apply_gradients(self, *arguments: Any, **options: Any) -> Any:
        """Update variables in place, given (gradient, variable) pairs."""
        raise NotImplementedError

    def _refuse(self, error: BaseException) -> NoReturn:
        """Raise an error that occurs before the step, after telling the other ranks."""
        if self._settings.strategy is not None:
            self._engine.refuse(error)
        raise error

    @property
    def _takes_calls_together(self) -> bool:
        """Whether this thread is within `one_step`."""
        return False

    def _refuse_to_move(self, what: str) -> None:
        """Raise `RuntimeError` if state can't be moved now; by default it always can."""

    @property
    def _divides_slots(self) -> bool:
        """Whether the strategy divides slots among processes."""
        return getattr(self._settings.strategy, "shard_state", False)

    def _refuse_divided(self, what: str) -> None:
        """Raise `NotImplementedError` where no process has a whole slot."""
        if self._divides_slots:
            raise NotImplementedError(
                f"{what} needs whole slots, which no rank has with shard_state=True: use "
                f"strategy.save and strategy.load, or strategy.gathered"
            )
