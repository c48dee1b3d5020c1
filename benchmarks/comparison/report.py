"""Writing RESULTS.md and a page for each machine, for users, and GOALS.md, for the developers."""

from collections.abc import Iterator, Sequence
from statistics import geometric_mean

from benchmarks.comparison.cases import CASES, GOALS, RMSJIT, STARTUP, Goal
from benchmarks.comparison.registry import LABELS
from benchmarks.comparison.results import Figure, Results

_HEAD = """# rmsjit beside other libraries

Written by `python -m benchmarks.compare`; benchmarks/README.md describes the method. A figure is
the time of a step divided by that of rmsjit on the same machine, so 5.0 means five times as slow;
the row of rmsjit has its own times. All times, quartiles, GB/s and versions of each machine are in
`benchmarks/results/`.
"""

_MACHINE_HEAD = """# rmsjit beside other libraries on {processor}

Written by `python -m benchmarks.compare`; benchmarks/README.md describes the method. Times are
medians of {rounds} interleaved rounds in {runs} runs, with their quartiles; in each run every peer
had a fresh process with {threads} threads. "x rmsjit" is the median divided by that of rmsjit, so
5.0 means five times as slow. GB/s counts what a fused step must read and write, not what a peer
actually moves.
"""

_GOALS_HEAD = """# Goals of the benchmarks

Written by `python -m benchmarks.compare` from the same measurements as RESULTS.md. The goals were
set before anything was measured; what was not reached stays here, in bold.
"""


# --- all machines ---------------------------------------------------------------------------


def side_by_side(machines: Sequence[Results]) -> str:
    """The content of RESULTS.md."""
    lines = [_HEAD, *_machines(machines)]
    for case in CASES:
        found = [results.figures.get(case.name, {}) for results in machines]
        if any(found):
            lines += ["", f"## {case.title}", "", *_ratios(machines, found)]
    return "\n".join(lines) + "\n"


def _machines(machines: Sequence[Results]) -> Iterator[str]:
    yield "| machine | threads | caches | date |"
    yield "| --- | ---: | --- | --- |"
    for results in machines:
        where = results.where
        caches, threads = where.machine.get("Caches", ""), where.settings["threads"]
        yield f"| {where.processor} | {threads} | {caches} | {where.date} |"


def _ratios(machines: Sequence[Results], found: Sequence[dict[str, Figure]]) -> Iterator[str]:
    yield "| | " + " | ".join(results.where.processor for results in machines) + " |"
    yield "| --- |" + " ---: |" * len(machines)
    methods = sorted({name for figures in found for name in figures})
    for name in sorted(methods, key=lambda name: _typical(name, found)):
        cells = (_ratio(name, figures) for figures in found)
        yield f"| {_label(name)} | {' | '.join(cells)} |"


def _typical(name: str, found: Sequence[dict[str, Figure]]) -> float:
    """The geometric mean of how many times as long as the fastest a method takes."""
    return geometric_mean(
        figures[name].median / min(figure.median for figure in figures.values())
        for figures in found
        if name in figures
    )


def _ratio(name: str, figures: dict[str, Figure]) -> str:
    """The time of a method relative to rmsjit's; for rmsjit its time."""
    figure, ours = figures.get(name), figures.get(RMSJIT)
    if figure is None:
        return ""
    if name == RMSJIT:
        return _time(figure)
    return f"{figure.median / ours.median:.2f}" if ours and _same_work(figure, ours) else ""


def goals(machines: Sequence[Results]) -> str:
    """The content of GOALS.md."""
    return "\n".join([_GOALS_HEAD, *_goals(machines)]) + "\n"


def _goals(machines: Sequence[Results]) -> Iterator[str]:
    titles = {case.name: case.title for case in CASES} | {STARTUP: "a whole process"}
    yield "| case | figure | goal | " + " | ".join(m.where.processor for m in machines) + " |"
    yield "| --- | --- | ---: |" + " ---: |" * len(machines)
    for goal in GOALS:
        values = [results.reached(goal) for results in machines]
        if all(value is None for value in values):
            continue
        scale = 1 if goal.under else 1e6
        sign = "at most" if goal.at_most else "at least"
        cells = [
            "" if value is None else _marked(f"{value * scale:.3g}", is_reached(goal, value))
            for value in values
        ]
        yield (
            f"| {titles[goal.case]} | {_named(goal)} | {sign} {goal.bound * scale:g} | "
            f"{' | '.join(cells)} |"
        )


def _marked(text: str, reached: bool) -> str:
    return text if reached else f"**{text}**"


def is_reached(goal: Goal, value: float) -> bool:
    """Whether the figure meets the goal."""
    return value <= goal.bound if goal.at_most else value >= goal.bound


def _named(goal: Goal) -> str:
    for name, label in LABELS.items():
        if goal.text == f"times as fast as {name}":
            return f"times as fast as {label}"
    return goal.text


# --- one machine ----------------------------------------------------------------------------


def of_machine(results: Results) -> str:
    """The page of a machine."""
    where = results.where
    lines = [_MACHINE_HEAD.format(processor=where.processor, **where.settings)]
    lines += _facts(results)
    for case in CASES:
        if case.name in results.figures:
            lines += ["", f"## {case.title}", "", *_table(results.figures[case.name])]
    if STARTUP in results.figures:
        lines += ["", "## Whole processes", "", *_startup(results.figures[STARTUP])]
    return "\n".join(lines) + "\n"


def _facts(results: Results) -> Iterator[str]:
    where = results.where
    yield "## Where and when\n"
    versions = ", ".join(f"{name} {version}" for name, version in where.versions.items())
    for name, fact in {"Date": where.date, **where.machine, "Versions": versions}.items():
        yield f"- {name}: {fact}"
    for peer, reason in where.absent.items():
        yield f"- Not measured: {LABELS[peer]} ({reason})"


def _table(figures: dict[str, Figure]) -> Iterator[str]:
    yield "| | median | quartiles | x rmsjit | GB/s |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    ours = figures.get(RMSJIT)
    for name, found in sorted(figures.items(), key=lambda item: item[1].median):
        ratio = f"{found.median / ours.median:.2f}" if ours and _same_work(found, ours) else ""
        yield f"| {_label(name)} | {_times(found)} | {ratio} | {found.speed / 1e9:.1f} |"


def _same_work(found: Figure, ours: Figure) -> bool:
    """Whether the bytes are comparable: a pass over a whole table is not a step on some rows."""
    return found.nbytes < 3 * ours.nbytes


def _startup(figures: dict[str, Figure]) -> Iterator[str]:
    yield "| python -c ... | median | quartiles |"
    yield "| --- | ---: | ---: |"
    for name, found in figures.items():
        yield f"| {name} | {_times(found)} |"


def _label(name: str) -> str:
    return f"**{LABELS[name]}**" if name == RMSJIT else LABELS[name]


def _times(found: Figure) -> str:
    _, scale = _unit(found.median)
    return f"{_time(found)} | {found.low / scale:.3g} to {found.high / scale:.3g}"


def _time(found: Figure) -> str:
    unit, scale = _unit(found.median)
    return f"{found.median / scale:.3g} {unit}"


def _unit(seconds: float) -> tuple[str, float]:
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    return next((unit for unit in units if seconds >= unit[1]), units[-1])
