"""Make the golden vectors with live TensorFlow, or check the committed ones against it.

    python tests/golden/make_golden.py            writes the files of this folder
    python tests/golden/make_golden.py --check    makes them in memory and compares

Needs the pip packages tensorflow-cpu (or tensorflow) and tf-keras; they can live in an
environment of their own, rmsjit is not imported. `cases.py` says what is run and what
TensorFlow cannot run.
"""

import argparse
import inspect
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf
import tf_keras

from golden import cases, tolerance, vectors

KerasRMSprop = tf_keras.optimizers.legacy.RMSprop
TrainRMSprop = tf.compat.v1.train.RMSPropOptimizer
CLASSES = {"keras": KerasRMSprop, "train": TrainRMSprop}
FILES = {
    "dense.npz": cases.DENSE_CASES + cases.UNROUNDED_CASES,
    "sparse.npz": cases.SPARSE_CASES,
}


# --- Runs ------------------------------------------------------------------------------------


def make_optimizer(case, current):
    """The case's optimizer; `current["step"]` is the step that its callables answer for."""
    arguments = dict(case.settings)
    for name, values in case.callables.items():
        arguments[name] = lambda values=values: values[current["step"]]
    if case.schedule:
        schedule = tf_keras.optimizers.schedules.PiecewiseConstantDecay(**case.schedule)
        arguments["learning_rate"] = schedule
    return CLASSES[case.face](**arguments)


def as_tensors(case, gradients, step):
    """One step's gradients as TensorFlow takes them."""
    tensors = [tf.constant(gradient) for gradient in gradients]
    for position, target in enumerate(cases.targets_of(case, step)):
        if case.rows and target == 0:
            rows = tf.constant(case.rows[step], tf.int64)
            shape = tf.constant(case.shapes[0], tf.int64)
            tensors[position] = tf.IndexedSlices(tensors[position], rows, shape)
    return tensors


def run(case):
    """Every number of the case's run, by field."""
    initial, gradients = cases.inputs(case)
    variables = [tf.Variable(value) for value in initial]
    current = {"step": 0}
    optimizer = make_optimizer(case, current)
    global_step = tf.Variable(0, dtype=tf.int64)
    extra = (global_step,) if case.face == "train" else ()
    numbers = {}
    for step in range(case.steps):
        current["step"] = step
        for name, values in case.assigned.items():
            setattr(optimizer, name, values[step])
        tensors = as_tensors(case, gradients[step], step)
        targets = [variables[index] for index in cases.targets_of(case, step)]
        optimizer.apply_gradients(list(zip(tensors, targets, strict=True)), *extra)
        for index, variable in enumerate(variables):
            numbers[step, index, "variable"] = variable.numpy()
            for name in cases.slot_names(case):
                numbers[step, index, name] = optimizer.get_slot(variable, name).numpy()
        if int(global_step if case.face == "train" else optimizer.iterations) != step + 1:
            raise AssertionError(f"{case.name}: the step count did not go up by one")
    return numbers


# --- Schedules -------------------------------------------------------------------------------


def make_schedule(name):
    class_name, arguments, keywords = cases.SCHEDULE_CASES[name]
    return getattr(tf_keras.optimizers.schedules, class_name)(*arguments, **keywords)


def schedule_facts():
    """Values (float32, as TensorFlow computes them) and configurations of every schedule."""
    values, configs = {}, {}
    for name in cases.SCHEDULE_CASES:
        schedule = make_schedule(name)
        steps = [tf.constant(step, tf.int64) for step in cases.SCHEDULE_STEPS]
        values[name] = np.array([schedule(step).numpy() for step in steps])
        configs[name] = {
            "config": schedule.get_config(),
            "serialized": tf_keras.optimizers.schedules.serialize(schedule),
        }
    return values, configs


# --- Interface -------------------------------------------------------------------------------


def keras_config(settings):
    arguments = {}
    for name, value in settings.items():
        if isinstance(value, dict) and "schedule" in value:
            value = make_schedule(value["schedule"])
        elif isinstance(value, dict):
            value = lambda number=value["callable"]: number  # noqa: E731
        arguments[name] = value
    return KerasRMSprop(**arguments).get_config()


def one_step(face, form):
    """An optimizer after one step, and its variables by name."""
    variables = {
        name: tf.Variable(tf.ones(shape, tf.float64), name=name)
        for name, shape in cases.WEIGHT_VARIABLES
    }
    optimizer = CLASSES[face](**{**cases.FACES[face], **cases.FORMS[form]})
    optimizer.apply_gradients([(tf.ones_like(v), v) for v in variables.values()])
    return optimizer, variables


def keras_weights(form):
    """Names and so on of the weights, in their order."""
    optimizer, _ = one_step("keras", form)
    return {
        "names": [weight.name for weight in optimizer.weights],
        "dtypes": [weight.dtype.name for weight in optimizer.weights],
        "shapes": [list(weight.shape) for weight in optimizer.get_weights()],
        "slot_names": optimizer.get_slot_names(),
    }


def train_weights(form):
    """Names of the slot variables, in their order and by slot."""
    # In a graph of its own, because the numbers in these names count up within a graph.
    with tf.Graph().as_default():
        optimizer, variables = one_step("train", form)
        slots = optimizer.get_slot_names()
        return {
            "names": [variable.name for variable in optimizer.variables()],
            "slot_names": slots,
            "by_slot": {
                name: {slot: optimizer.get_slot(variable, slot).name for slot in slots}
                for name, variable in variables.items()
            },
        }


def signatures(cls):
    """The signatures of the constructor and of every public method, as text."""
    names = [*public_names(cls), "__init__"]
    methods = {name: getattr(cls, name) for name in names if callable(getattr(cls, name))}
    return {name: str(inspect.signature(method)) for name, method in sorted(methods.items())}


def public_names(thing):
    return sorted(name for name in dir(thing) if not name.startswith("_"))


def interface_facts():
    forms = cases.FORMS
    return {
        "versions": {"tensorflow": tf.__version__, "tf_keras": tf_keras.__version__},
        "keras": {
            "configs": {name: keras_config(s) for name, s in cases.CONFIG_CASES.items()},
            "weights": {form: keras_weights(form) for form in forms},
            "class_names": public_names(KerasRMSprop),
            "instance_names": public_names(KerasRMSprop()),
            "signatures": signatures(KerasRMSprop),
        },
        "train": {
            "weights": {form: train_weights(form) for form in forms},
            "class_names": public_names(TrainRMSprop),
            "instance_names": public_names(TrainRMSprop(0.001)),
            "signatures": signatures(TrainRMSprop),
            "gates": {
                name: getattr(TrainRMSprop, name) for name in ("GATE_NONE", "GATE_OP", "GATE_GRAPH")
            },
            "default_name": TrainRMSprop(0.001).get_name(),
        },
    }


# --- Writing and checking --------------------------------------------------------------------


def make_everything():
    """The runs by file and case, the schedules' values, and the contents of the JSON files."""
    runs = {file: {case.name: run(case) for case in group} for file, group in FILES.items()}
    values, configs = schedule_facts()
    return runs, values, {"schedules.json": configs, "interface.json": interface_facts()}


def write():
    runs, values, facts = make_everything()
    for file, group in FILES.items():
        packed = {case.name: vectors.pack(case, runs[file][case.name]) for case in group}
        np.savez_compressed(vectors.FOLDER / file, **packed)
    np.savez_compressed(vectors.FOLDER / "schedules.npz", **values)
    for file, content in facts.items():
        text = json.dumps(content, indent=1)
        (vectors.FOLDER / file).write_text(text + "\n", encoding="utf-8")


def check():
    """What differs between the committed files and this TensorFlow, as a list of lines."""
    runs, values, facts = make_everything()
    complaints = []
    for file, group in FILES.items():
        stored = vectors.load(file, group)
        for case in group:
            initial, _ = cases.inputs(case)
            made = runs[file][case.name]
            complaints += tolerance.differences(case, made, stored[case.name], initial)
    with np.load(vectors.FOLDER / "schedules.npz", allow_pickle=False) as stored:
        for name, made in values.items():
            # pow and cos may differ between machines.
            if np.abs(made - stored[name]).max() > tolerance.schedule_limit(stored[name]):
                complaints.append(f"schedule {name}: the values differ")
    for file, content in facts.items():
        stored = json.loads((vectors.FOLDER / file).read_text(encoding="utf-8"))
        made = json.loads(json.dumps(content))
        for key in sorted(set(stored) | set(made)):
            # Another version is no fault as long as everything else agrees.
            if key != "versions" and stored.get(key) != made.get(key):
                complaints.append(f"{file}: {key} differs")
    return complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if not parser.parse_args().check:
        write()
        return 0
    complaints = check()
    print("\n".join(complaints) or "the committed vectors are those of this TensorFlow")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
