"""Looking at an optimizer has no effects: nothing is called, serialised or used up."""

import copy
import json
import pickle
from xml.etree import ElementTree

import numpy as np
import pytest

import rmsjit
from rmsjit.schedules import ExponentialDecay, LearningRateSchedule

LOOKS = {"repr": repr, "str": str, "f-string": lambda opt: f"{opt}", "format": "{!r:>9}".format}
FACES = {"keras": rmsjit.RMSprop, "train": rmsjit.train.RMSPropOptimizer}
every_face = pytest.mark.parametrize("face", FACES)
every_look = pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)


class Warmup(LearningRateSchedule):
    """As tutorials write it: it can be called, and no more."""

    def __call__(self, step):
        return 0.1 * min(1.0, (step + 1) / 10)


class Asked:
    """A callable that counts how often it is asked, and gives another number each time."""

    def __init__(self, *numbers):
        self.numbers = numbers
        self.count = 0

    def __call__(self):
        self.count += 1
        return self.numbers[self.count - 1]


def refuse():
    raise AssertionError("it was called")


def step(optimizer, variable):
    optimizer.apply_gradients([(np.ones_like(variable), variable)])


@every_look
@pytest.mark.parametrize("name", ["learning_rate", "rho", "momentum", "weight_decay"])
def test_looking_calls_nothing(look, name):
    form = {"form": rmsjit.Form.with_slots("rms", "momentum", weight_decay="coupled")}
    optimizer = rmsjit.RMSprop(**{name: refuse}, **form)
    assert f"{name}={refuse!r}" in look(optimizer)


@every_look
@pytest.mark.parametrize("name", ["learning_rate", "decay", "momentum", "epsilon"])
def test_looking_at_the_first_optimizer_calls_nothing(look, name):
    optimizer = rmsjit.train.RMSPropOptimizer(**{"learning_rate": 0.1, name: refuse})
    assert f"{name}={refuse!r}" in look(optimizer)


@every_look
def test_a_schedule_that_can_only_be_called_is_shown_and_trains(look):
    warmup, w = Warmup(), np.zeros(2)
    optimizer = rmsjit.RMSprop(warmup)
    assert repr(warmup) in look(optimizer)
    step(optimizer, w)
    assert w[0] != 0
    assert repr(warmup) in look(optimizer)


def test_objects_are_shown_as_they_are():
    rate, momentum = ExponentialDecay(0.1, 10, 0.9), rmsjit.Variable(0.5, name="m")
    text = repr(rmsjit.RMSprop(rate, momentum=momentum))
    assert repr(rate) in text
    assert repr(momentum) in text


def test_arguments_of_a_subclass_are_shown_without_its_config():
    class Mine(rmsjit.RMSprop):
        def __init__(self, learning_rate=0.1, scale=2.0, **arguments):
            super().__init__(learning_rate, **arguments)
            self.scale = scale
            self.others = self

        get_config = refuse

    assert "scale=2.0" in repr(Mine())
    assert "scale=..." in repr(Mine(scale=Mine)).replace(repr(Mine), "...")
    holding_itself = Mine()
    holding_itself.scale = [holding_itself]
    assert "scale=[...]" in repr(holding_itself)


def looks_at(optimizer, variable, folder):
    return {
        "get_config": optimizer.get_config if hasattr(optimizer, "get_config") else lambda: None,
        "save": lambda: rmsjit.save(folder / "run.npz", optimizer, {"w": variable}),
        "repr": lambda: repr(optimizer),
        "copy": lambda: copy.deepcopy(optimizer),
        "pickle": lambda: pickle.dumps(optimizer),
    }


@every_face
def test_what_a_step_has_used_is_not_asked_again(face, tmp_path):
    rate, w = Asked(0.5, 0.25), np.zeros(2)
    optimizer = FACES[face](rate)
    step(optimizer, w)
    for look in looks_at(optimizer, w, tmp_path).values():
        look()
        assert rate.count == 1
    with pytest.warns(RuntimeWarning, match="saved with functions"):
        loaded, _ = rmsjit.load(tmp_path / "run.npz")
    assert loaded._hyperparameters["learning_rate"] == 0.5
    step(optimizer, w)
    assert rate.count == 2


@every_face
def test_what_no_step_has_used_is_asked_once(face, tmp_path):
    rate, w = Asked(0.5, 0.25), np.zeros(2)
    optimizer = FACES[face](rate)
    for look in looks_at(optimizer, w, tmp_path).values():
        look()
    assert rate.count == 1


def test_a_config_has_the_rate_before_decay():
    optimizer, w = rmsjit.RMSprop(Asked(0.5, 0.5), decay=1.0), np.zeros(2)
    step(optimizer, w)
    step(optimizer, w)
    assert optimizer.get_config()["learning_rate"] == 0.5


def test_a_value_that_was_set_counts_and_so_does_that_of_a_variable():
    variable, w = rmsjit.Variable(0.5), np.zeros(2)
    optimizer = rmsjit.RMSprop(Asked(0.25), momentum=variable)
    step(optimizer, w)
    optimizer.learning_rate = lambda: 0.125
    variable.assign(0.75)
    config = optimizer.get_config()
    assert (config["learning_rate"], config["momentum"]) == (0.125, 0.75)


def test_a_config_of_a_callable_is_for_json():
    optimizer, w = (
        rmsjit.RMSprop(lambda: np.float32(0.5), momentum=lambda: np.array(0.25)),
        np.zeros(2),
    )
    assert json.loads(json.dumps(optimizer.get_config()))["learning_rate"] == 0.5
    step(optimizer, w)
    assert json.loads(json.dumps(optimizer.get_config()))["momentum"] == 0.25


class Holding(LearningRateSchedule):
    def __init__(self, held):
        self.held = held

    def __call__(self, step):
        return 0.1

    def get_config(self):
        return {"held": self.held}


def in_itself():
    held = []
    held.append(held)
    return held


def test_what_can_not_be_serialised_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"Warmup does not define get_config\(\)"):
        rmsjit.RMSprop(Warmup()).get_config()
    with pytest.raises(TypeError, match=r"Warmup does not define get_config\(\)"):
        rmsjit.save(tmp_path / "run.npz", rmsjit.RMSprop(Warmup()), {})
    for held in (1j, print, {1, 2}, [0, {"deep": object()}], {("a", "b"): 1}):
        with pytest.raises(TypeError, match=r"config\['learning_rate'\]\['config'\]\['held'\]"):
            rmsjit.save(tmp_path / "run.npz", rmsjit.RMSprop(Holding(held)), {})
    assert list(tmp_path.iterdir()) == []


# --- notebooks ------------------------------------------------------------------------------


def cells_of(optimizer):
    """The cells of the rows of both tables, checked to be well-formed."""
    tree = ElementTree.fromstring(optimizer._repr_html_())
    return [[cell.text or "" for cell in row] for row in tree.iter("tr")]


@every_face
def test_a_notebook_shows_settings_variables_and_memory(face):
    optimizer = FACES[face](0.5, momentum=0.25)
    kernel, bias = rmsjit.Variable(np.zeros((64, 32)), name="kernel"), np.zeros(3, "float32")
    optimizer.build([kernel, bias])
    cells = cells_of(optimizer)
    assert ["learning_rate", "0.5"] in cells
    assert ["momentum", "0.25"] in cells
    assert ["variable", "shape", "dtype", "slots"] in cells
    assert ["kernel", "(64, 32)", "float64", "32.0 KiB"] in cells  # two slots of 16 KiB
    assert cells[-1][1:] == ["(3,)", "float32", "24 B"]
    assert "2 variables of 16.0 KiB, slots of 32.0 KiB" in optimizer._repr_html_()


@every_face
def test_a_notebook_calls_nothing(face):
    optimizer = FACES[face](refuse)
    assert any(cell.startswith("<function refuse") for row in cells_of(optimizer) for cell in row)


def test_a_notebook_shows_what_looks_like_markup_as_text():
    optimizer = rmsjit.RMSprop(name="<b>")
    optimizer.build([rmsjit.Variable(1.0, name="<script>&")])
    assert ["name", "'<b>'"] in cells_of(optimizer)
    assert "<script>&" in cells_of(optimizer)[-1]


def test_a_notebook_lists_the_first_of_many_variables():
    optimizer = rmsjit.RMSprop()
    optimizer.build(variables := [np.zeros(2) for _ in range(50)])
    cells = cells_of(optimizer)
    assert cells[-1] == ["and 30 more", "", "", ""]
    assert f"{len(variables)} variables of 800 B" in optimizer._repr_html_()


def test_a_notebook_shows_an_optimizer_of_one_variable():
    optimizer = rmsjit.RMSprop()
    optimizer.build([np.zeros(2)])
    assert "<div>1 variable of 16 B, slots of 16 B</div>" in optimizer._repr_html_()


def test_a_notebook_shows_an_optimizer_without_variables():
    assert "variable" not in [row[0] for row in cells_of(rmsjit.RMSprop())]
