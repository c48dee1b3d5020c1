"""Writing RESULTS.md, for users, and GOALS.md, for the developers."""

from collections.abc import Iterator

from benchmarks.comparison.cases import CASES, GOALS, RMSJIT, STARTUP, Goal
from benchmarks.comparison.registry import LABELS
from benchmarks.comparison.results import Figures, Results

_HEAD = """# rmsjit beside other libraries

Written by `python -m benchmarks.compare`; benchmarks/README.md describes the method. Times are
medians of {rounds} interleaved rounds in {runs} runs, with their quartiles; in each run every peer
had a fresh process with {threads} threads. "x rmsjit" is the median divided by that of rmsjit, so
5.0 means five times as slow. GB/s counts what a fused step must read and write, not what a peer
actually moves.
"""

_GOALS_HEAD = """# Goals of the benchmarks

Written by `python -m benchmarks.compare` from the same measurements as RESULTS.md ({date}). The
goals were set before anything was measured; what was not reached stays here.
"""


def markdown(results: Results) -> str:
    """The content of RESULTS.md."""
    lines = [_HEAD.format(**results.settings)]
    lines += _machine(results)
    for case in CASES:
        if case.name in results.figures:
            lines += ["", f"## {case.title}", "", *_table(results.figures[case.name])]
    if STARTUP in results.figures:
        lines += ["", "## Whole processes", "", *_startup(results.figures[STARTUP])]
    return "\n".join(lines) + "\n"


def _machine(results: Results) -> Iterator[str]:
    yield "## Where and when\n"
    facts = {"Date": results.date, **results.machine}
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    for name, fact in {**facts, "Versions": versions}.items():
        yield f"- {name}: {fact}"
    for peer, reason in results.absent.items():
        yield f"- Not measured: {LABELS[peer]} ({reason})"


def goals(results: Results) -> str:
    """The content of GOALS.md."""
    return "\n".join([_GOALS_HEAD.format(date=results.date), *_goals(results)]) + "\n"


def _goals(results: Results) -> Iterator[str]:
    titles = {case.name: case.title for case in CASES} | {STARTUP: "a whole process"}
    yield "| case | figure | goal | measured | reached |"
    yield "| --- | --- | ---: | ---: | --- |"
    for goal in GOALS:
        value = results.reached(goal)
        if value is None:
            continue
        case = titles[goal.case]
        sign = "at most" if goal.at_most else "at least"
        scale = 1 if goal.under else 1e6
        yield (
            f"| {case} | {_named(goal)} | {sign} {goal.bound * scale:g} | {value * scale:.3g} | "
            f"{'yes' if is_reached(goal, value) else '**no**'} |"
        )


def is_reached(goal: Goal, value: float) -> bool:
    """Whether the figure meets the goal."""
    return value <= goal.bound if goal.at_most else value >= goal.bound


def _named(goal: Goal) -> str:
    for name, label in LABELS.items():
        if goal.text == f"times as fast as {name}":
            return f"times as fast as {label}"
    return goal.text


def _table(figures: dict[str, Figures]) -> Iterator[str]:
    yield "| | median | quartiles | x rmsjit | GB/s |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    ours = figures.get(RMSJIT)
    for name, found in sorted(figures.items(), key=lambda item: item[1].median):
        ratio = f"{found.median / ours.median:.2f}" if ours and _same_work(found, ours) else ""
        yield f"| {_label(name)} | {_times(found)} | {ratio} | {found.speed / 1e9:.1f} |"


def _same_work(found: Figures, ours: Figures) -> bool:
    """Whether the bytes are comparable: a pass over a whole table is not a step on some rows."""
    return found.nbytes < 3 * ours.nbytes


def _startup(figures: dict[str, Figures]) -> Iterator[str]:
    yield "| python -c ... | median | quartiles |"
    yield "| --- | ---: | ---: |"
    for name, found in figures.items():
        yield f"| {name} | {_times(found)} |"


def _label(name: str) -> str:
    return f"**{LABELS[name]}**" if name == RMSJIT else LABELS[name]


def _times(found: Figures) -> str:
    unit, scale = "µs", 1e-6
    for larger, its_scale in (("ms", 1e-3), ("s", 1.0)):
        if found.median >= its_scale:
            unit, scale = larger, its_scale
    low, high = (seconds / scale for seconds in found.quartiles)
    return f"{found.median / scale:.3g} {unit} | {low:.3g} to {high:.3g}"
