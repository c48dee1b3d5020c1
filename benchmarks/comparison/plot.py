"""results.png: GB/s over size, with a named line for some libraries and a band for the floor."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison.cases import CASES, FLOOR, RMSJIT
from benchmarks.comparison.registry import LABELS
from benchmarks.comparison.results import Results, Where

# What people would use instead, at most six, so that the lines can be told apart; RESULTS.md has
# all.
_SHOWN = (RMSJIT, "torch-compile", "optax", "keras", "tf-keras", "numpy-inplace", "torch-foreach")
_GAP = 0.036  # of the height, between two names


def draw(machines: Sequence[Results], path: Path) -> bool:
    """Draw the plain dense cases, a panel for each machine; False if there are too few."""
    curves = [(results.where, _curve(results)) for results in machines]
    curves = [(where, curve) for where, curve in curves if len(curve) > 1]
    if not curves:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size, count = (9, 5 * len(curves)), len(curves)
    figure, panels = plt.subplots(count, figsize=size, sharex=True, layout="constrained")
    for axes, (where, curve) in zip([panels] if count == 1 else panels, curves, strict=True):
        _draw_panel(axes, where, curve)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return True


def _curve(results: Results):
    """The elements and the figures of each case."""
    return [
        (case.size, results.figures[case.name])
        for case in sorted(CASES, key=lambda case: case.size)
        if case.name in results.figures and _on_the_curve(case)
    ]


def _draw_panel(axes, where: Where, curve) -> None:
    _draw_floor(axes, curve)
    lines = {name: _line(axes, curve, name) for name in _SHOWN if _has(curve, name)}
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="elements of one float32 variable",
        ylabel="GB/s that a fused step would move",
    )
    axes.margins(y=0.1)  # room for the name of the floor, which lies above it
    title = f"Speed of one plain RMSprop step on {where.settings['threads']} threads"
    axes.set_title(f"{title} of an {where.processor}", loc="left", fontsize=11)
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    _name_at_the_ends(axes, lines)


def _on_the_curve(case) -> bool:
    plain = case.variant == "plain" and case.dtype == "float32" and not case.by_norm
    return plain and case.variables == 1 and not case.sparse


def _has(curve, name) -> bool:
    return any(name in figures for _, figures in curve)


def _draw_floor(axes, curve) -> None:
    points = [(size, found[FLOOR]) for size, found in curve if FLOOR in found]
    sizes = [size for size, _ in points]
    low = [found.nbytes / found.high / 1e9 for _, found in points]
    high = [found.nbytes / found.low / 1e9 for _, found in points]
    axes.fill_between(sizes, low, high, color="0.8", linewidth=4, edgecolor="0.8")
    if points:
        middle = len(points) // 3
        axes.annotate(
            "a loop that only\nreads and writes",
            (sizes[middle], high[middle]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="right",
            color="0.45",
        )


def _line(axes, curve, name):
    points = [(size, found[name].speed / 1e9) for size, found in curve if name in found]
    ours = name == RMSJIT
    (line,) = axes.plot(
        *zip(*points, strict=True),
        marker="o",
        markersize=5 if ours else 3.5,
        linewidth=3 if ours else 1.4,
        color="black" if ours else None,
        zorder=3 if ours else 2,
    )
    return line


def _name_at_the_ends(axes, lines) -> None:
    """Write each name behind the end of its line, far enough from the name below."""
    axes.autoscale_view()  # else the limits are those before the lines
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = {name: to_axes.transform(line.get_xydata()[-1])[1] for name, line in lines.items()}
    lowest = 0.0
    for name in sorted(ends, key=ends.__getitem__):
        height = max(ends[name], lowest)
        lowest = height + _GAP
        axes.text(
            1.01,
            height,
            LABELS[name],
            transform=axes.transAxes,
            color=lines[name].get_color(),
            fontweight="bold" if name == RMSJIT else "normal",
            va="center",
        )
