"""State to and from Chainer; live where it is installed and imports."""

import numpy as np
import pytest

import rmsjit
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
            "the start of rms: 1.0 here, 0.0 there, and '/idle' took no step yet",
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


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")  # of old code
@pytest.mark.parametrize("library", RULES)
def test_runs_travel_both_ways(library, tmp_path):
    try:
        import chainer
    except (ImportError, AttributeError):  # it asks NumPy for names that are gone
        pytest.skip("chainer is not installed, or does not import with this NumPy")
    variables = new_variables("float32")

    def run():
        link = chainer.Link()
        with link.init_scope():
            for name, value in variables.items():
                setattr(link, name, chainer.Parameter(value.copy()))
        return link, getattr(chainer.optimizers, RULES[library])(lr=LEARNING_RATE).setup(link)

    def train_chainer(link, optimizer, steps):
        for step in steps:
            for name, gradient in zip(variables, gradients_of(variables, step), strict=True):
                getattr(link, name).grad = np.array(gradient)
            optimizer.update()

    path = tmp_path / "optimizer.npz"
    link, theirs = run()
    train_chainer(link, theirs, STEPS)
    chainer.serializers.save_npz(path, theirs)
    variables = {name: getattr(link, name).array.copy() for name in variables}
    optimizer = like_chainer(library)
    with np.load(path) as arrays:
        from_chainer_arrays(arrays, variables, optimizer)
    train_chainer(link, theirs, MORE)
    train(optimizer, variables, MORE)
    assert_close((getattr(link, name).array for name in variables), variables)

    link, theirs = run()
    np.savez(path, **to_chainer_arrays(optimizer, variables))
    chainer.serializers.load_npz(path, theirs)
    assert theirs.t == 10
    train_chainer(link, theirs, range(10, 15))
    train(optimizer, variables, range(10, 15))
    assert_close((getattr(link, name).array for name in variables), variables)


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
