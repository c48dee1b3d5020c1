"""The measurements of a comparison."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.comparison.cases import Goal


@dataclass
class Figures:
    """Samples of one method in one case: seconds per call, and the bytes a call must move."""

    seconds: list[float]
    nbytes: float = 0.0

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.percentile(self.seconds, [25, 75])
        return float(low), float(high)

    @property
    def speed(self) -> float:
        """Bytes per second."""
        return self.nbytes / self.median


@dataclass
class Results:
    """The content of RESULTS.md.

    Attributes
    ----------
    date : str
    machine : dict of str to str
    settings : dict of str to Any
    versions : dict of str to str
        Package versions.
    absent : dict of str to str
        The peers that were not measured, with the reason.
    figures : dict
        By case and method.
    """

    date: str
    machine: dict[str, str]
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, Figures]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write all samples as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what `save` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["figures"] = {
            case: {name: Figures(**figures) for name, figures in methods.items()}
            for case, methods in fields["figures"].items()
        }
        return cls(**fields)

    @classmethod
    def pooled(cls, several: Sequence["Results"]) -> "Results":
        """The samples of several runs, which must have the same machine and versions.

        All samples of a process share the luck of its memory placement, so several runs say more
        than the same number of rounds in one run.
        """
        first, *others = several
        for other in others:
            if (other.machine, other.versions) != (first.machine, first.versions):
                raise ValueError("the runs differ in machine or versions")
            for case, methods in other.figures.items():
                for name, figures in methods.items():
                    mine = first.figures.setdefault(case, {}).setdefault(
                        name, Figures([], figures.nbytes)
                    )
                    mine.seconds.extend(figures.seconds)
        first.settings["rounds"] = sum(results.settings["rounds"] for results in several)
        first.settings["runs"] = len(several)
        return first

    def find(self, key: tuple[str, str]) -> Figures | None:
        """The figures of a case and method."""
        return self.figures.get(key[0], {}).get(key[1])

    def reached(self, goal: Goal) -> float | None:
        """The figure of a goal, or None if it was not measured."""
        over = self.find(goal.over)
        under = self.find(goal.under) if goal.under else None
        if over is None or (goal.under and under is None):
            return None
        if under is None:
            return over.median
        if goal.figure == "speed":
            return over.speed / under.speed
        return over.median / under.median
