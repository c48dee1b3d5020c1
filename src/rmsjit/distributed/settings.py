"""What a strategy is constructed with, checked."""

from __future__ import annotations

from dataclasses import dataclass

from rmsjit.distributed.incoming import Incoming
from rmsjit.rule.hyperparameters import StepNumbers

DEFAULT_BUCKET_BYTES = 1 << 22
REDUCTIONS = ("sum", "mean")


@dataclass(frozen=True)
class Settings:
    """How gradients are reduced and state is held; the same on every rank."""

    reduce: str = "sum"
    shard_state: bool = False
    bucket_bytes: int = DEFAULT_BUCKET_BYTES

    def __post_init__(self) -> None:
        if self.reduce not in REDUCTIONS:
            raise ValueError(f'reduce must be "sum" or "mean", got {self.reduce!r}')
        if isinstance(self.bucket_bytes, bool) or not isinstance(self.bucket_bytes, int):
            raise TypeError(f"bucket_bytes must be an integer, got {self.bucket_bytes!r}")
        if not 1 << 10 <= self.bucket_bytes <= 1 << 30:
            raise ValueError(f"bucket_bytes must be from 2**10 to 2**30, got {self.bucket_bytes}")

    def scale(self, ranks: int) -> float:
        """What a sum over ranks is multiplied by."""
        return 1.0 / ranks if self.reduce == "mean" else 1.0


class Scales:
    """Where the factor of a mean over ranks is applied.

    It rides along in the step, at no cost.  Only where there are half types, whose sums may
    overflow where their means would not, sums are multiplied before they are rounded.

    Attributes
    ----------
    of_sums, of_step : float
        One of them is 1.
    """

    def __init__(self, settings: Settings, incoming: Incoming, ranks: int) -> None:
        precisions = [incoming.precisions[k] for k in incoming.present]
        has_half = any(precision.name.endswith("float16") for precision in precisions)
        scale = settings.scale(ranks)
        self.of_sums = scale if has_half else 1.0
        self.of_step = 1.0 if has_half else scale
        self._given: StepNumbers | None = None
        self._numbers: StepNumbers | None = None

    def numbers(self, agreed: StepNumbers) -> StepNumbers:
        """The numbers of a step on sums; the same object for the same object."""
        if self.of_step == 1.0:
            return agreed
        if agreed is not self._given or self._numbers is None:
            self._given = agreed
            self._numbers = agreed._replace(clipvalue=agreed.clipvalue / self.of_step)
        return self._numbers
