"""State to and from Chainer; live where an interpreter imports it."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

import rmsjit
from interpreters import chainer_python
from rmsjit.interop import from_chainer_arrays, to_chainer_arrays
from runs import (
    LEARNING_RATE,
    MORE,
    STEPS,
    assert_close,
    golden,
    gradients_of,
    new_variables,
    train,
)

_SCRIPT = Path(__file__).parent / "golden" / "train_chainer.py"
RULES = {"chainer": "RMSprop", "chainer_graves": "RMSpropGraves"}


def like_chainer(library, **changes):
    """An optimizer with the form and the defaults of a rule of Chainer."""
    rounding = {"one_minus_rho": "exact", "quotient": "rate_first"}
    if library == "chainer":
        form = rmsjit.Form.with_slots("rms", **rounding | changes)
        return rmsjit.RMSprop(LEARNING_RATE, rho=0.99, epsilon=1e-8, form=form)
    form = rmsjit.Form.with_slots(
        "rms", "mg", "momentum", **{"epsilon": "inside", **rounding, **changes}
    )
    return rmsjit.RMSprop(LEARNING_RATE, rho=0.95, momentum=0.9, epsilon=1e-4, form=form)


def recorded(library):
    """The arrays that Chainer saved, the variables then, and those five steps later."""
    _, arrays = golden(library)
    parts = {"state": {}, "before": {}, "after": {}}
    for key, array in arrays.items():
        part, name = key.split("/", 1)
        parts[part][name] = array
    return parts.values()


@pytest.mark.parametrize("library", RULES)
def test_a_recorded_run_goes_on(library):
    arrays, variables, after = recorded(library)
    optimizer = like_chainer(library)
    assert from_chainer_arrays(arrays, variables, optimizer) is optimizer
    assert int(optimizer.iterations) == 5
    train(optimizer, {name: variables[f"/{name}"] for name in new_variables()}, MORE)
    assert_close((after[name] for name in variables), variables)


@pytest.mark.parametrize("library", RULES)
def test_a_recorded_state_comes_back(library):
    arrays, variables, _ = recorded(library)
    optimizer = from_chainer_arrays(arrays, variables, like_chainer(library))
    again = to_chainer_arrays(optimizer, variables)
    np.testing.assert_equal(again, arrays)
    again["w/ms" if library == "chainer" else "w/n"][...] = 7  # a copy
    assert not (optimizer.get_slot(variables["/w"], "rms").numpy() == 7).any()
    assert to_chainer_arrays(optimizer, variables, epoch=3)["epoch"] == 3


@pytest.mark.parametrize(
    ("library", "optimizer", "lost"),
    [
        ("chainer", like_chainer("chainer_graves"), "the momentum, which is here only"),
        ("chainer_graves", like_chainer("chainer"), "the momentum, which is there only"),
        (
            "chainer_graves",
            like_chainer("chainer_graves", epsilon="outside"),
            "the place of epsilon: outside of the root here, inside there",
        ),
        (
            "chainer",
            rmsjit.RMSprop(form=rmsjit.Form.with_slots("rms", rms_start=1.0)),
            "the start of rms: 1.0 here, 0.0 there; not stepped yet: '/idle'",
        ),
        (
            "chainer",
            like_chainer("chainer", bias_correction=True),
            "bias correction: True here, False there",
        ),
    ],
)
def test_what_would_be_lost_is_named(library, optimizer, lost):
    arrays, variables, _ = recorded(library)
    with pytest.raises(ValueError, match=lost):
        from_chainer_arrays(arrays, variables, optimizer)
    assert not optimizer.variables_seen


def test_a_form_that_chainer_lacks():
    optimizer = rmsjit.RMSprop(momentum=0.9)
    with pytest.raises(ValueError, match=r"and chainer\.optimizers\.RMSpropGraves; what would be"):
        to_chainer_arrays(optimizer, {})


def test_arrays_that_do_not_fit():
    arrays, variables, _ = recorded("chainer_graves")
    optimizer = like_chainer("chainer_graves")
    with pytest.raises(ValueError, match=r"must be those of Chainer's arrays, b, .*w, got b, idle"):
        from_chainer_arrays(arrays, {n: v for n, v in variables.items() if n != "/w"}, optimizer)
    with pytest.raises(ValueError, match="arrays must be of an optimizer of Chainer: KeyError"):
        from_chainer_arrays({}, variables, optimizer)
    fewer = {key: array for key, array in arrays.items() if key != "w/g"}
    with pytest.raises(ValueError, match=r"w must have n, g, delta, got \['"):
        from_chainer_arrays(fewer, variables, optimizer)
    with pytest.raises(
        ValueError, match=r"shape of slot 'mg' of '/w': saved \(2,\), here \(3, 4\)"
    ):
        from_chainer_arrays(arrays | {"w/g": np.ones(2, "float32")}, variables, optimizer)
    assert not optimizer.variables_seen


def chainer_run(rule, folder, variables, steps, state=None):
    """What Chainer makes of `variables`, and of its optimizer's arrays, in some steps."""
    arrays = {f"variable/{name}": value for name, value in variables.items()}
    arrays |= {f"state/{key}": value for key, value in (state or {}).items()}
    for step in steps:
        gradients = zip(variables, gradients_of(variables, step), strict=True)
        arrays |= {f"gradient/{step}/{name}": value for name, value in gradients}
    source, target = folder / "before.npz", folder / "after.npz"
    np.savez(source, **arrays)
    command = [chainer_python(), str(_SCRIPT), rule, str(LEARNING_RATE), str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(target) as file:
        made = dict(file)
    return [
        {key.removeprefix(part): value for key, value in made.items() if key.startswith(part)}
        for part in ("variable/", "state/")
    ]


@pytest.mark.live
@pytest.mark.parametrize("library", RULES)
def test_runs_travel_both_ways(library, tmp_path):
    rule = RULES[library]
    variables, state = chainer_run(rule, tmp_path, new_variables("float32"), STEPS)
    theirs, _ = chainer_run(rule, tmp_path, variables, MORE, state)
    optimizer = from_chainer_arrays(state, variables, like_chainer(library))
    train(optimizer, variables, MORE)
    assert_close(theirs.values(), variables)

    state = to_chainer_arrays(optimizer, variables)
    theirs, state = chainer_run(rule, tmp_path, variables, range(10, 15), state)
    assert state["t"] == 15
    train(optimizer, variables, range(10, 15))
    assert_close(theirs.values(), variables)


def test_no_function_of_the_user_is_called():
    asked = []

    def rate():
        asked.append(True)
        return 0.01

    w, optimizer = np.zeros(2), rmsjit.RMSprop(rate, 0.99, epsilon=1e-8)
    optimizer.apply_gradients([(np.ones(2), w)])
    assert len(asked) == 1
    to_chainer_arrays(optimizer, {"/W": w})
    assert len(asked) == 1
