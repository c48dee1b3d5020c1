"""Write the tables of reduced-state.md, and draw reduced-state.png.

    python docs/make_reduced_state.py            takes some minutes

Every run is made with slots in float32, in bfloat16 as ``state_dtype="bfloat16"`` rounds them, in
bfloat16 rounded to nearest, and in 8 bits.
"""

import pathlib
import re

import numpy as np

from rmsjit import Form, RMSprop, Slot
from rmsjit.demo import digits, words
from rmsjit.schedules import CosineDecay

HERE = pathlib.Path(__file__).resolve().parent
PAGE, PICTURE = HERE / "reduced-state.md", HERE / "reduced-state.png"
RHO = 0.99
NEAREST = Form(
    tuple(
        Slot(slot.name, dtype="bfloat16", zero_gradient=slot.zero_gradient)
        for slot in Form.with_slots("rms", "momentum").slots
    ),
    epsilon="inside",  # as Keras's form with momentum
)
STATES = {
    "float32": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "bfloat16, to nearest": {"form": NEAREST},
    "8 bits": {"state_dtype": "8bit"},
}


def train_digits(optimizer, seed):
    """The loss of each step of a small network on the digits of scikit-learn."""
    data, settings = digits.load(0), digits.Settings(hidden=(64,), epochs=20, seed=seed)
    network, rng = digits.new_network(settings), np.random.default_rng(seed)
    for _ in range(settings.epochs):
        for batch in digits.batches(data, settings.batch_size, rng):
            loss, gradients = network.loss_and_gradients(*batch)
            optimizer.apply_gradients(zip(gradients, network.variables, strict=True))
            yield loss


def train_words(optimizer, seed):
    """The loss of each step of word vectors, whose tables get sparse gradients."""
    corpus, settings = words.load(), words.Settings(dimensions=16, seed=seed, batch_size=512)
    model, rng = words.new_model(corpus, settings), np.random.default_rng(seed)
    for _ in range(3):
        for batch in words.batches(corpus, settings, rng):
            loss, gradients = model.loss_and_gradients(*batch)
            optimizer.apply_gradients(zip(gradients, model.variables, strict=True))
            yield loss


def train_regression(optimizer, seed):
    """The loss of each step of a linear regression whose features differ in scale by 10**4.

    The weights of an output are a row, so blocks of 8 bits mix all scales.
    """
    rng = np.random.default_rng(seed)
    scales = np.logspace(-2, 2, 40).astype(np.float32)
    features = rng.standard_normal((4096, 40), np.float32) * scales
    targets = features @ (rng.standard_normal((128, 40), np.float32) / scales).T
    targets += 0.1 * rng.standard_normal(targets.shape, np.float32)
    weights = np.zeros((128, 40), np.float32)
    for _ in range(4000):
        batch = rng.integers(len(targets), size=64)
        error = features[batch] @ weights.T - targets[batch]
        optimizer.apply_gradients([(error.T @ features[batch] / 64, weights)])
        yield float(np.mean(error * error))


PROBLEMS = {  # with the learning rate and the number of seeds, as many as 1 % takes to be seen
    "digits": (train_digits, 0.001, 480),
    "word vectors": (train_words, 0.003, 10),
    "badly scaled regression": (train_regression, CosineDecay(0.01, 4000), 10),
}
REGRESSION = list(PROBLEMS)[-1]
OTHER_SETTINGS = {
    "rho=0.9": {"rho": 0.9},
    "rho=0.999": {"rho": 0.999},
    "centered=True": {"centered": True},
}


def losses_of(problem, state, **others):
    """The losses of every step, a row for each seed."""
    train, rate, seeds = PROBLEMS[problem]
    settings = {"rho": RHO, "momentum": 0.9, **STATES[state], **others}
    runs = [list(train(RMSprop(rate, **settings), seed)) for seed in range(seeds)]
    shortest = min(map(len, runs))  # the pairs of words in a text are drawn at random
    return np.array([run[:shortest] for run in runs])


def final(losses):
    """The mean loss over the last half of the steps, for each seed."""
    return losses[:, losses.shape[1] // 2 :].mean(axis=1)


def training_table(runs):
    rows = ["| | " + " | ".join(STATES) + " |", "| --- " * (1 + len(STATES)) + "|"]
    for problem in PROBLEMS:
        reference = final(runs[problem, "float32"])
        cells = [f"{reference.mean():.4g}"]
        for state in list(STATES)[1:]:
            cells.append(cell_of(final(runs[problem, state]), reference))
        rows.append(f"| {problem} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def cell_of(losses, reference):
    """The ratio of the mean losses, and its standard error, by the losses of each seed."""
    ratio = losses.mean() / reference.mean()
    error = np.std(losses - ratio * reference, ddof=1) / len(losses) ** 0.5 / reference.mean()
    return f"{ratio:.4f} ± {error:.4f}"


def settings_table():
    """The regression again, with other settings of the optimizer."""
    states = ("bfloat16", "8 bits")
    rows = ["| | " + " | ".join(states) + " |", "| --- " * (1 + len(states)) + "|"]
    for name, settings in OTHER_SETTINGS.items():
        reference = final(losses_of(REGRESSION, "float32", **settings))
        cells = [
            cell_of(final(losses_of(REGRESSION, state, **settings)), reference) for state in states
        ]
        rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def update_errors(state, rho, steps=1000, size=4096):
    """Mean and maximum error of updates against those with float32 state, relative to these."""
    rng = np.random.default_rng(0)
    form = Form((Slot("rms", dtype="bfloat16", zero_gradient="decay"),))
    settings = {"form": form} if "nearest" in state else STATES[state]
    optimizers = [RMSprop(1.0, rho=rho), RMSprop(1.0, rho=rho, **settings)]
    variables = [np.zeros(size, np.float32) for _ in optimizers]
    errors = []
    for _ in range(steps):
        gradient = rng.standard_normal(size).astype(np.float32)
        moves = []
        for optimizer, variable in zip(optimizers, variables, strict=True):
            variable[...] = 0
            optimizer.apply_gradients([(gradient, variable)])
            moves.append(variable.copy())
        errors.append(np.abs(moves[1] / moves[0] - 1))
    return np.mean(errors), np.max(errors)


def error_table():
    states = list(STATES)[1:]
    rows = ["| rho | " + " | ".join(states) + " |", "| --- " * (1 + len(states)) + "|"]
    for rho in (0.9, 0.99, 0.999):
        cells = ["{:.2%} ({:.1%})".format(*update_errors(state, rho)) for state in states]
        rows.append(f"| {rho} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def written(page, name, text):
    """The page with the part of this name replaced."""
    pattern = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: match[1] + "\n" + text + "\n" + match[2], page)


def draw(runs):
    """The mean losses of all seeds, each problem in a panel."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines = [
        ("black", "-", 2.5),
        ("tab:orange", "-", 1.2),
        ("tab:blue", "--", 1.2),
        ("tab:green", ":", 1.2),
    ]
    styles = dict(zip(STATES, lines, strict=True))
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for axes, problem in zip(panels, PROBLEMS, strict=True):
        for state, (color, line, width) in styles.items():
            curve = runs[problem, state].mean(axis=0)
            window = max(1, len(curve) // 100)
            means = curve[: len(curve) // window * window].reshape(-1, window).mean(axis=1)
            steps = window * (np.arange(len(means)) + 0.5)
            axes.plot(steps, means, color=color, linestyle=line, linewidth=width, label=state)
        axes.set_yscale("log")
        axes.set_title(problem)
        axes.set_xlabel("step")
    panels[0].set_ylabel("loss, mean of all seeds")
    panels[0].legend(title="slots in", frameon=False)
    figure.savefig(PICTURE, dpi=100)


def main():
    runs = {(p, state): losses_of(p, state) for p in PROBLEMS for state in STATES}
    page = PAGE.read_text(encoding="utf-8")
    page = written(page, "training", training_table(runs))
    page = written(page, "settings", settings_table())
    page = written(page, "errors", error_table())
    PAGE.write_text(page, encoding="utf-8")
    draw(runs)


if __name__ == "__main__":
    main()
