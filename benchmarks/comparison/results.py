"""The samples of a run, and what remains of them: the figures of a machine."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.comparison.cases import Goal


@dataclass
class Where:
    """Where and how something was measured.

    Attributes
    ----------
    date : str
    machine : dict of str to str
    settings : dict of str to Any
    versions : dict of str to str
        Package versions.
    absent : dict of str to str
        The peers that were not measured, with the reason.
    """

    date: str
    machine: dict[str, str]
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def processor(self) -> str:
        return self.machine.get("CPU", "unknown processor")

    @property
    def file_name(self) -> str:
        """The processor in small letters, digits and hyphens."""
        return re.sub(r"[^a-z0-9]+", "-", self.processor.lower()).strip("-")


@dataclass(frozen=True)
class Figure:
    """The median of samples and their quartiles in seconds, and the bytes a call must move."""

    median: float
    low: float
    high: float
    nbytes: float = 0.0

    @property
    def speed(self) -> float:
        """Bytes per second."""
        return self.nbytes / self.median


@dataclass
class Samples:
    """Seconds per call of one method in one case, and the bytes a call must move."""

    seconds: list[float]
    nbytes: float = 0.0

    def figure(self) -> Figure:
        low, median, high = np.percentile(self.seconds, [25, 50, 75]).tolist()
        return Figure(median, low, high, self.nbytes)


@dataclass
class Run:
    """All samples of a run, by case and method."""

    where: Where
    samples: dict[str, dict[str, Samples]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write all samples as JSON."""
        _write(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Run":
        """Read what `save` wrote."""
        where, samples = _read(path, "samples", Samples)
        return cls(where, samples)

    @classmethod
    def pooled(cls, several: Sequence["Run"]) -> "Run":
        """The samples of several runs, which must have the same machine and versions.

        All samples of a process share the luck of its memory placement, so several runs say more
        than the same number of rounds in one run.
        """
        first, *others = several
        for other in others:
            facts = (first.where, other.where)
            if len({str((where.machine, where.versions)) for where in facts}) > 1:
                raise ValueError("the runs differ in machine or versions")
            for case, methods in other.samples.items():
                for name, found in methods.items():
                    mine = first.samples.setdefault(case, {}).setdefault(
                        name, Samples([], found.nbytes)
                    )
                    mine.seconds.extend(found.seconds)
        first.where.settings["rounds"] = sum(run.where.settings["rounds"] for run in several)
        first.where.settings["runs"] = len(several)
        return first

    def results(self) -> "Results":
        """The figures of all samples."""
        return Results(
            self.where,
            {
                case: {name: samples.figure() for name, samples in methods.items()}
                for case, methods in self.samples.items()
            },
        )


@dataclass
class Results:
    """The figures of one machine, by case and method: a file of `results/`."""

    where: Where
    figures: dict[str, dict[str, Figure]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the figures of a machine as JSON, in place of earlier ones."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{self.where.file_name}.json", asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what `save` wrote."""
        where, figures = _read(path, "figures", Figure)
        return cls(where, figures)

    @classmethod
    def all_in(cls, folder: Path) -> list["Results"]:
        """Those of all machines, the latest first."""
        found = [cls.load(path) for path in sorted(folder.glob("*.json"))]
        return sorted(found, key=lambda results: results.where.date, reverse=True)

    def find(self, key: tuple[str, str]) -> Figure | None:
        """The figure of a case and method."""
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


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def _read(path: Path, name: str, kind: Any) -> tuple[Where, dict[str, dict[str, Any]]]:
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Where(**fields["where"]), {
        case: {method: kind(**found) for method, found in methods.items()}
        for case, methods in fields[name].items()
    }
