"""The ways in which programs call an optimizer: structures, losses of arrays, other names."""

import copy
import functools
import itertools
import pickle
from typing import NamedTuple

import numpy as np
import pytest
from scipy import sparse

import rmsjit
from rmsjit import Variable, nest
from rmsjit.train import RMSPropOptimizer
from strategies import BOTH, TRAIN, state_of

every_face = pytest.mark.parametrize("form", [BOTH, TRAIN[0]], ids=["keras", "train"])


class Layer(NamedTuple):
    kernel: object
    bias: object


# --- Structures ------------------------------------------------------------------------------

STRUCTURES = {
    "one": lambda a, b, c: [a, b, c],
    "dictionary": lambda a, b, c: {"z": c, "a": a, "b": b},
    "nested": lambda a, b, c: {"dense": [a, b], "out": {"scale": (c,)}},
    "named tuple": lambda a, b, c: [Layer(a, b), Layer(c, None)],
    "keys that are numbers": lambda a, b, c: {2: c, 0: a, 1: b},
}


def three():
    return np.ones((2, 3)), np.ones(3), Variable(np.ones(()), name="scale")


def three_gradients():
    return np.full((2, 3), 0.5), [1.0, -2.0, 3.0], rmsjit.Variable(np.array(4.0))


@every_face
@pytest.mark.parametrize("pack", STRUCTURES.values(), ids=STRUCTURES)
def test_a_step_of_a_structure_is_that_of_its_pairs(form, pack):
    packed, listed, gradients = three(), three(), three_gradients()
    one, other = form.optimizer(), form.optimizer()
    for _ in range(3):
        returned = one.step(pack(*packed), pack(*gradients))
        other.apply_gradients(zip(gradients, listed, strict=True))
    assert returned is getattr(one, "iterations", None)
    assert state_of(one, packed) == state_of(other, listed)


def test_a_single_array_is_a_structure():
    w = np.ones(3)
    rmsjit.RMSprop(0.1, rho=0.0).step(w, [1.0, -1.0, 2.0])
    np.testing.assert_allclose(w, [0.9, 1.1, 0.9], rtol=1e-6)


def test_order_of_keys_does_not_matter_and_none_is_no_gradient():
    a, b, c, d = (np.ones(2) for _ in range(4))
    params = {"a": a, "rest": [b, c], "d": d, "bias": None}
    gradients = {"bias": None, "d": None, "rest": None, "a": np.ones(2)}
    with pytest.warns(RuntimeWarning, match="no gradient for variable 1, variable 2, variable 3"):
        rmsjit.RMSprop(0.1).step(params, gradients)
    assert (a != 1).all()
    assert all((w == 1).all() for w in (b, c, d))


WRONG = {
    "keys": ({"c": 1}, ValueError, r"^gradients must have the keys of params, \['a', 'b'\], got"),
    "dictionary": ([1, 2], ValueError, "^gradients must be a dictionary, as params is, got list"),
    "list": (
        {"a": np.ones((2, 2)), "b": 1},
        ValueError,
        r"^gradients\['a'\] must be a list or tuple, as params\['a'\] is, got ndarray",
    ),
    "length": (
        {"a": [1], "b": 1},
        ValueError,
        r"^gradients\['a'\] must have the length of params\['a'\], 2, got 1",
    ),
    "shape": (
        {"a": [np.ones(2), np.ones(3)], "b": 1.0},
        ValueError,
        r"^gradients\['a'\]\[1\], the gradient of params\['a'\]\[1\], must .*\(2,\), got \(3,\)",
    ),
    "dtype": (
        {"a": [np.ones(2), np.ones(2) * 1j], "b": 1.0},
        TypeError,
        r"^gradients\['a'\]\[1\], .*complex128",
    ),
    "index": (
        {"a": [rmsjit.IndexedSlices([1.0], [2]), np.ones(2)], "b": 1.0},
        IndexError,
        r"^gradients\['a'\]\[0\], .*got 2 at position 0",
    ),
    "values": (
        {"a": [rmsjit.IndexedSlices([[1.0]], [0]), np.ones(2)], "b": 1.0},
        ValueError,
        r"^gradients\['a'\]\[0\], .*values of shape",
    ),
    "no gradients": (None, TypeError, r"^step needs .*opt\.step\(params, gradients\)"),
    "none at all": ({"a": None, "b": None}, ValueError, "^no gradient was given"),
}


@every_face
@pytest.mark.parametrize(("gradients", "error", "message"), WRONG.values(), ids=WRONG)
def test_an_error_names_the_place_and_changes_nothing(form, gradients, error, message):
    params = {"a": [np.ones(2), np.ones(2)], "b": np.ones(())}
    optimizer = form.optimizer()
    optimizer.step(params, {"a": [np.ones(2), np.ones(2)], "b": 1.0})
    before = state_of(optimizer, nest.flatten(params))
    with pytest.raises(error, match=message):
        optimizer.step(params, gradients)
    assert state_of(optimizer, nest.flatten(params)) == before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": np.ones(2), "b": 3.0}, r"^params\['b'\] must be a NumPy array"),
        ({"a": np.ones(2), "b": np.ones(2, int)}, r"^params\['b'\] must have one of the dtypes"),
        ({"a": None, "b": np.ones(2)}, r"^gradients\['a'\] must be None, as params\['a'\] is"),
    ],
)
def test_what_is_no_variable_is_named(params, message):
    with pytest.raises((TypeError, ValueError), match=message):
        rmsjit.RMSprop().step(params, {"a": np.ones(2), "b": np.ones(2)})


def test_an_error_that_is_not_of_a_leaf_is_left_as_it_is():
    overlapping = np.ones(4)
    with pytest.raises(ValueError, match="variable 1"):
        rmsjit.RMSprop().step([overlapping[:3], overlapping[1:]], [np.ones(3), np.ones(3)])


@pytest.mark.parametrize("pack", STRUCTURES.values(), ids=STRUCTURES)
def test_leaves_and_back(pack):
    structure = pack(1, 2, 3)
    assert [leaf for leaf in nest.flatten(structure) if leaf is not None] == [1, 2, 3]
    assert nest.pack_like(structure, nest.flatten(structure)) == structure
    for leaves in ([], [*nest.flatten(structure), 0]):
        if len(leaves) != len(nest.flatten(structure)):
            with pytest.raises(ValueError, match=f"leaves must be .*, got {len(leaves)}"):
                nest.pack_like(structure, leaves)
    assert nest.pairs(pack(4, 5, 6), structure) == [(4, 1), (5, 2), (6, 3)]


def test_keys_that_can_not_be_sorted_are_refused():
    for call in (nest.flatten, lambda structure: nest.pack_like(structure, [1, 2])):
        with pytest.raises(TypeError, match=r"keys of a dictionary must be comparable, got \[1"):
            call({1: 2, "a": 3})


# --- Losses that take arrays -----------------------------------------------------------------

LOSSES = {
    "list": (lambda w, b: (w**2).sum() + 3 * b, lambda w, b: [w, b]),
    "dictionary": (lambda w, b: 3 * w + (b**2).sum(), lambda w, b: {"y": w, "x": b}),
    "callable": (lambda w, b: (w**2).sum() + 3 * b, lambda w, b: lambda: (w, b)),
    "partial": (functools.partial(lambda c, w, b: (w**2).sum() + c * b, 3), lambda w, b: [w, b]),
}


@pytest.mark.parametrize(("loss", "pack"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("wrap", [np.array, lambda value: Variable(np.array(value))])
def test_a_loss_takes_plain_arrays(loss, pack, wrap):
    w, b = wrap([1.0, -2.0]), wrap(5.0)
    optimizer, twin = rmsjit.RMSprop(0.1), rmsjit.RMSprop(0.1)
    twins = np.array([1.0, -2.0]), np.array(5.0)
    for _ in range(3):
        optimizer.minimize(loss, pack(w, b))
        twin.apply_gradients([(2 * twins[0], twins[0]), (np.array(3.0), twins[1])])
    np.testing.assert_array_equal(np.asarray(w), twins[0])
    np.testing.assert_array_equal(np.asarray(b), twins[1])


def test_gradients_of_a_loss_that_takes_arrays():
    w, tape = np.array([1.0, -2.0]), rmsjit.GradientTape(persistent=True)
    [gradient] = rmsjit.RMSprop().get_gradients(lambda w: (w**2).sum(), [w])
    assert gradient.tolist() == [2, -4]
    rmsjit.RMSprop(0.1, rho=0.0).minimize(lambda w: (w**2).sum(), [w], tape=tape)
    np.testing.assert_allclose(w, [0.9, -1.9], rtol=1e-6)


# --- Variables that are not trainable --------------------------------------------------------


@every_face
@pytest.mark.parametrize("kind", ["dense", "sparse", "none"])
def test_a_variable_that_is_not_trainable_is_left_alone(form, kind):
    fixed = Variable(np.ones((3, 2)), name="fixed", trainable=False)
    gradients = {
        "dense": np.full((3, 2), np.nan),
        "sparse": rmsjit.IndexedSlices(np.full((1, 2), 7.0), [1]),
        "none": None,
    }
    w, twin = np.ones(2), np.ones(2)
    optimizer, alone = form.optimizer(), form.optimizer()
    for _ in range(3):
        optimizer.apply_gradients([(w.copy(), w), (gradients[kind], fixed)])
        alone.apply_gradients([(twin.copy(), twin)])
    np.testing.assert_array_equal(w, twin)
    assert (fixed.array == 1).all()


def test_it_does_not_count_for_a_global_norm_but_steps_count():
    w, fixed = np.zeros(2), Variable(np.zeros(2), trainable=False)
    optimizer = rmsjit.RMSprop(global_clipnorm=1.0)
    optimizer.apply_gradients([(np.array([3.0, 4.0]), w), (np.array([1e6, np.nan]), fixed)])
    assert optimizer.last_gradient_norm == 5
    optimizer.apply_gradients([(np.ones(2), fixed)])
    assert optimizer.iterations == 2


def test_whether_a_variable_is_trainable_belongs_to_the_object_that_is_given():
    memory = np.ones(2)
    optimizer = rmsjit.RMSprop(0.1)
    for trainable in (True, False, True, False):
        before = memory.copy()
        optimizer.apply_gradients([(np.ones(2), Variable(memory, trainable=trainable))])
        assert (memory != before).all() == trainable


# --- The learning rate -----------------------------------------------------------------------

RATES = {
    "number": (0.5, [0.5, 0.5, 0.5]),
    "Variable": (Variable(0.5), [0.5, 0.5, 0.5]),
    "schedule": (rmsjit.schedules.InverseTimeDecay(1.0, 1, 1.0), [1.0, 0.5, 1 / 3]),
    "function of the step": (lambda step: 1 / (step + 1), [1.0, 0.5, 1 / 3]),
    "function without arguments": (itertools.count(1).__next__, [None, 1.0, 2.0]),
}


@pytest.mark.parametrize(("rate", "expected"), RATES.values(), ids=RATES)
def test_the_current_learning_rate(rate, expected):
    w, optimizer, found = np.ones(2), rmsjit.RMSprop(rate), []
    for _ in range(3):
        found += {optimizer.current_learning_rate, optimizer.current_learning_rate}
        optimizer.apply_gradients([(w, w)])
    assert found == expected


def test_the_current_learning_rate_is_what_a_step_uses():
    w = np.zeros(1)
    optimizer = rmsjit.RMSprop(lambda step: 0.5 + step, rho=0.0, decay=0.25)
    for _ in range(3):
        before, rate = w.copy(), optimizer.current_learning_rate
        optimizer.apply_gradients([(np.ones(1), w)])
        assert before - w == pytest.approx(rate, rel=1e-6)
    optimizer.learning_rate = 0.25
    assert optimizer.current_learning_rate == 0.25 / 1.75


def test_the_current_learning_rate_with_accumulated_calls():
    optimizer = rmsjit.RMSprop(lambda call: float(call), gradient_accumulation_steps=4)
    assert optimizer.current_learning_rate == 3
    optimizer.iterations = 2
    assert optimizer.current_learning_rate == 11


def test_asking_for_the_rate_does_not_change_what_a_configuration_says():
    optimizer = rmsjit.RMSprop(lambda step: 0.5 + step)
    optimizer.apply_gradients([(np.ones(1), np.ones(1))])
    assert optimizer.current_learning_rate == 1.5
    assert optimizer.get_config()["learning_rate"] == 0.5


def test_the_current_learning_rate_where_the_caller_counts_steps():
    w, step = np.ones(2), np.array(3)
    optimizer = RMSPropOptimizer(lambda step: 1 / (step + 1))
    assert optimizer.current_learning_rate is None
    optimizer.apply_gradients([(w, w)], global_step=step)
    assert optimizer.current_learning_rate == 0.25
    assert RMSPropOptimizer(0.5).current_learning_rate == 0.5


# --- Names from elsewhere --------------------------------------------------------------------

VARIABLES_FIRST = {
    "array": lambda: np.ones(3),
    "Variable": lambda: Variable([1.0, 2.0]),
    "list": lambda: [np.ones(3)],
    "generator": lambda: (w for w in [np.ones(3)]),
    "dictionary": lambda: {"w": np.ones(3)},
    "values": lambda: {"w": np.ones(3)}.values(),
}


@pytest.mark.parametrize("make", VARIABLES_FIRST.values(), ids=VARIABLES_FIRST)
@pytest.mark.parametrize("cls", [rmsjit.RMSprop, RMSPropOptimizer, rmsjit.forms.torch])
def test_variables_are_not_the_first_argument(cls, make):
    with pytest.raises(TypeError, match=r"got \w+ .*: variables are not given to the optimizer"):
        cls(make())


@pytest.mark.parametrize("cls", [rmsjit.RMSprop, rmsjit.forms.torch])
def test_the_call_of_pytorch_is_explained(cls):
    with pytest.raises(TypeError, match="variables are not given to the optimizer"):
        cls(np.ones(3), lr=0.1)


@pytest.mark.parametrize(
    ("cls", "name", "here"),
    [
        (rmsjit.RMSprop, "alpha", "rho"),
        (rmsjit.RMSprop, "eps", "epsilon"),
        (RMSPropOptimizer, "lr", "learning_rate"),
        (RMSPropOptimizer, "alpha", "decay"),
        (RMSPropOptimizer, "eps", "epsilon"),
    ],
)
def test_arguments_of_other_libraries_are_explained(cls, name, here):
    with pytest.raises(TypeError, match=f"no argument '{name}': it is called '{here}' here"):
        cls(0.1, **{name: 0.5})


def test_weight_decay_where_a_library_has_none():
    for name in ("optax", "autograd", "river"):
        with pytest.raises(TypeError, match=r"does not decay weights, rmsjit\.RMSprop can"):
            getattr(rmsjit.forms, name)(0.1, weight_decay=0.1)


ELSEWHERE = {
    "zero_grad": "apply_gradients",
    "param_groups": "opt.groups",
    "add_param_group": "opt.add_group",
    "state_dict": "rmsjit.save",
    "load_state_dict": "rmsjit.load",
    "init": "opt.build",
    "update": "apply_gradients",
}


@every_face
@pytest.mark.parametrize(("name", "here"), ELSEWHERE.items())
def test_attributes_of_other_libraries_are_explained(form, name, here):
    optimizer = form.optimizer()
    with pytest.raises(AttributeError, match=f"has no attribute '{name}': .*{here}"):
        getattr(optimizer, name)
    assert not hasattr(optimizer, name)
    assert name not in dir(optimizer)


class Wrapped(rmsjit.RMSprop):
    """A subclass with an attribute of such a name, and one that fails."""

    def zero_grad(self):
        return "mine"

    @property
    def failing(self):
        return self.missing


def test_explained_names_are_in_nobodys_way():
    optimizer = Wrapped(0.1)
    assert optimizer.zero_grad() == "mine"
    optimizer.param_groups = [1]
    assert optimizer.param_groups == [1]
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = optimizer.failing
    with pytest.raises(AttributeError, match=r"object has no attribute 'nonsense'$"):
        _ = optimizer.nonsense
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.learning_rate == 0.1


def test_the_old_name_of_the_rate_warns_where_it_is_used():
    with pytest.warns(DeprecationWarning, match="old name") as caught:
        assert rmsjit.RMSprop(lr=0.5).learning_rate == 0.5
    assert caught[0].filename == __file__


class SparseTensor:
    """What tells a sparse gradient of PyTorch."""

    is_sparse = True


class Slices:
    """What tells a sparse gradient of TensorFlow."""

    values = indices = dense_shape = None


@every_face
@pytest.mark.parametrize(
    ("gradient", "maker"),
    [
        (SparseTensor(), "from_torch"),
        (Slices(), "from_tensorflow"),
        (sparse.csr_array(np.eye(2)), "from_scipy"),
        (sparse.coo_matrix(np.eye(2)), "from_scipy"),
    ],
)
def test_a_sparse_gradient_of_another_library_is_named_with_its_conversion(form, gradient, maker):
    with pytest.raises(TypeError, match=rf"give rmsjit\.IndexedSlices\.{maker}\(gradient\)"):
        form.optimizer().apply_gradients([(gradient, np.ones((2, 2)))])


@pytest.mark.live
def test_a_sparse_tensor_of_pytorch():
    torch = pytest.importorskip("torch")
    gradient = torch.eye(2).to_sparse()
    with pytest.raises(TypeError, match="from_torch"):
        rmsjit.RMSprop().apply_gradients([(gradient, np.ones((2, 2)))])
    rmsjit.RMSprop().step([np.ones((2, 2))], [rmsjit.IndexedSlices.from_torch(gradient)])


@pytest.mark.live
@pytest.mark.parametrize("schedule", ["optax", "torch"])
def test_schedules_of_other_libraries(schedule):
    if schedule == "optax":
        rate = pytest.importorskip("optax").exponential_decay(1.0, 1, 0.5)
    else:
        pytest.importorskip("torch")

        def rate(step):  # as torch's LambdaLR takes it
            return 0.5**step

    optimizer = rmsjit.RMSprop(rate)
    for expected in (1.0, 0.5, 0.25):
        assert optimizer.current_learning_rate == expected
        optimizer.apply_gradients([(np.ones(2), np.ones(2))])
