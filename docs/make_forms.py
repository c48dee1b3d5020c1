"""Write the generated parts of forms.md, and draw forms.png.

    python docs/make_forms.py            writes both
    python docs/make_forms.py --text     writes the text only

The tables are made from the rows of `rmsjit.forms`, and the figures are those that the tests hold
the forms to (`tests/form_figures.py`), so that neither can be wrong.
"""

import argparse
import pathlib
import re
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import form_figures  # noqa: E402
from golden import form_cases  # noqa: E402
from rmsjit import forms  # noqa: E402
from rmsjit.forms import description  # noqa: E402
from rmsjit.forms.table import BY_NAME, LIBRARIES  # noqa: E402

PAGE, PICTURE = HERE / "forms.md", HERE / "forms.png"
STEPS, DROP = 120, 60  # of the picture; the step at which the learning rate falls
RATE, RHO, MOMENTUM, EPSILON = 0.02, 0.97, 0.9, 0.1
# Ten forms by their own arguments, with the same numbers for all, and momentum where there is one.
DRAWN = {
    "torch": {"momentum": MOMENTUM},
    "keras": {"momentum": MOMENTUM},
    "tf1": {"momentum": MOMENTUM},
    "stable_baselines3": {"momentum": MOMENTUM},
    "optax, nesterov": {"momentum": MOMENTUM, "nesterov": True},
    "optax, bias_correction": {"momentum": MOMENTUM, "bias_correction": True},
    "chainer_graves": {},
    "pfrl": {"momentum": MOMENTUM},
    "mlx": {},
    "autograd": {},
}


# --- Text ------------------------------------------------------------------------------------


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def forms_table():
    """A row for each form: what a user chooses by."""
    numbers = ("learning_rate", "rho", "epsilon", "momentum")
    head = ["`rmsjit.forms.`", "library", "lr, rho, eps, momentum", *description.ASPECTS]
    rows = []
    for library in LIBRARIES:
        defaults = ", ".join(description.default_of(library, number) for number in numbers)
        said = [description.aspect(library, say) for say in description.ASPECTS.values()]
        rows.append([f"`{library.name}`", library.title, defaults, *said])
    return table(head, rows)


def rounding_table():
    """A row for each form: what decides the last bits."""
    rows = [
        [
            f"`{library.name}`",
            *(description.aspect(library, say) for say in description.ROUNDING.values()),
        ]
        for library in LIBRARIES
    ]
    return table(["", *(f"`{name}`" for name in description.ROUNDING)], rows)


def figures_table():
    """How close each form comes, over all of its cases; a row for each reason."""
    rows = []
    for library in LIBRARIES:
        live = library.name in form_cases.LIVE
        compared = "the library" if live else "a transcription"
        for why, found in figures_by_reason(library.name).items():
            units = max(figure.units for figure in found)
            equal = np.mean([figure.equal for figure in found])
            worst = (
                "every bit"
                if units == 0
                else f"{units:.0f} unit{'s' * (units > 1)}, {100 * equal:.0f} % of bits"
            )
            rows.append([f"`{library.name}`", compared, worst, why])
    return table(["", "compared with", "a step", "why not every bit"], rows)


def figures_by_reason(name):
    """The figures of variables and momentum, by the reason why they need not have every bit."""
    found = {}
    for case in form_figures.cases_of(name):
        figures = form_figures.figures_of(case, form_figures.twin_steps(case))
        for array in ("variable", "momentum"):
            if array in figures:
                why = form_figures.promise_of(case).why
                found.setdefault(why, []).append(figures[array])
    return found


def notes():
    """What else a user of a form should know."""
    return "\n".join(f"- `{library.name}`: {library.note}" for library in LIBRARIES if library.note)


PARTS = {
    "forms": forms_table,
    "notes": notes,
    "figures": figures_table,
    "rounding": rounding_table,
}


def page(text):
    """The text of the page with its generated parts made anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name}: written by make_forms.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"{PAGE.name} must have one part {name!r}, between {begin} and {end}")
        before, after = pattern.split(text)
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


# --- Picture ---------------------------------------------------------------------------------


def valley(point):
    """A curved valley, and its gradient; the minimum, 0, lies at (1, 1)."""
    x, y = point
    value = 0.5 * (1 - x) ** 2 + 5 * (y - x**2) ** 2
    return value, np.array([x - 1 - 20 * x * (y - x**2), 10 * (y - x**2)])


def run(label, arguments):
    """The points and values of a run down the valley."""
    library = BY_NAME[label.partition(",")[0]]
    numbers = {"learning_rate": RATE, "rho": RHO, "epsilon": EPSILON}
    numbers = {library.numbers[name].name: value for name, value in numbers.items()}
    optimizer = getattr(forms, library.name)(**numbers, **arguments)
    point, points, values = np.array([-0.6, 1.0]), [], []
    for step in range(STEPS):
        if step == DROP:
            optimizer.learning_rate = RATE / 10
        value, gradient = valley(point)
        points.append(point.copy())
        values.append(value)
        optimizer.apply_gradients([(gradient, point)])
    return np.array(points), values


def draw(path):
    """The same problem under ten forms: paths in the plane, and the value over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), dpi=120, layout="constrained")
    plane, curve = figure.subplots(1, 2)
    xs, ys = np.meshgrid(np.linspace(-1, 1.6, 200), np.linspace(-0.6, 2, 200))
    levels = np.geomspace(0.02, 40, 14)
    plane.contour(xs, ys, valley((xs, ys))[0], levels=levels, colors="0.85", linewidths=0.8)
    for position, (label, arguments) in enumerate(DRAWN.items()):
        points, values = run(label, arguments)
        style = {"color": f"C{position}", "linewidth": 1.4, "alpha": 0.9}
        plane.plot(*points.T, **style)
        curve.semilogy(values, label=label, **style)
    plane.plot(1, 1, "k+", markersize=10)
    plane.set(xlim=(-1, 1.6), ylim=(-0.6, 2), title="paths", xticks=[], yticks=[])
    curve.axvline(DROP, color="0.8", linewidth=1, linestyle=":")
    curve.set(xlabel="step", title="value; the learning rate falls to a tenth at the line")
    curve.legend(fontsize=8, loc="lower left")
    for axes in (plane, curve):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="store_true", help="leave the picture as it is")
    given = parser.parse_args()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    if not given.text:
        draw(PICTURE)


if __name__ == "__main__":
    main()
