"""results.png: GB/s over size, with a line for each library and a band for the floor."""

from pathlib import Path

from benchmarks.comparison.cases import CASES, FLOOR, RMSJIT
from benchmarks.comparison.registry import LABELS
from benchmarks.comparison.results import Results

_MARKERS = "osv^D<>phXd*"
_COLOURS = 10  # in the colour cycle


def draw(results: Results, path: Path) -> bool:
    """Draw the plain dense cases; return False if there are too few."""
    curve = [
        (case.size, results.figures[case.name])
        for case in sorted(CASES, key=lambda case: case.size)
        if case.name in results.figures and _on_the_curve(case)
    ]
    if len(curve) < 2:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    _draw_floor(axes, curve)
    for number, name in enumerate(_by_last_speed(curve)):
        points = [(size, found[name].speed / 1e9) for size, found in curve if name in found]
        ours = name == RMSJIT
        axes.plot(
            *zip(*points, strict=True),
            label=LABELS[name],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=6 if ours else 4,
            linewidth=3 if ours else 1.2,
            linestyle="-" if ours or number < _COLOURS else "--",
            color="black" if ours else None,
            zorder=3 if ours else 2,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="elements of one float32 variable",
        ylabel="GB/s that a fused step would move",
        title=f"One plain RMSprop step, {results.settings['threads']} threads "
        f"({results.machine.get('CPU', '')})",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def _on_the_curve(case) -> bool:
    plain = case.variant == "plain" and case.dtype == "float32" and not case.by_norm
    return plain and case.variables == 1 and not case.sparse


def _draw_floor(axes, curve) -> None:
    points = [(size, found[FLOOR]) for size, found in curve if FLOOR in found]
    sizes = [size for size, _ in points]
    low, high = (
        [found.nbytes / found.quartiles[which] / 1e9 for _, found in points] for which in (1, 0)
    )
    axes.fill_between(sizes, low, high, color="tab:gray", alpha=0.5, linewidth=2)
    axes.fill_between([], [], color="tab:gray", alpha=0.5, label="floor loop, quartiles")


def _by_last_speed(curve) -> list[str]:
    """The methods by speed at the largest size, like the right ends of the lines."""
    last = {name: found.speed for _, figures in curve for name, found in figures.items()}
    last.pop(FLOOR, None)
    return sorted(last, key=last.__getitem__, reverse=True)
