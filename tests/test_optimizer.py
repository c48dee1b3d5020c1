"""`RMSprop` and `train.RMSPropOptimizer` as a user meets them."""

import copy
import inspect
import json
import pickle
import warnings

import numpy as np
import pytest

import rmsjit
from reference import clip_by_global_norm, clip_by_norm, clip_by_value
from rmsjit.schedules import ExponentialDecay, LearningRateSchedule, PiecewiseConstantDecay
from strategies import (
    BOTH,
    COMPLEX,
    DTYPES,
    KERAS,
    REAL,
    TRAIN,
    checked_step,
    computing,
    every_form,
    random_array,
    same_bits,
    state_of,
)

PLAIN, LIKE_BOTH = KERAS[0], TRAIN[-1]


def two_variables(dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return [random_array(rng, shape, dtype, 1) for shape in ((3, 4), (5,))]


def some_gradients(variables, seed=1):
    rng = np.random.default_rng(seed)
    return [random_array(rng, np.shape(v), np.asarray(v).dtype, 1) for v in variables]


class Subclass(np.ndarray):
    """NumPy lets anyone make one."""


def train(optimizer, variables, steps=3, seed=1):
    for step in range(steps):
        gradients = some_gradients(variables, seed + step)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))


# --- One step --------------------------------------------------------------------------------


def test_the_example_of_the_page():
    v = rmsjit.Variable(10.0)
    opt = rmsjit.RMSprop(learning_rate=0.1)
    assert int(opt.apply_gradients([(v.numpy(), v)]).numpy()) == 1
    assert v.numpy() == np.float32(9.683772)


@pytest.mark.parametrize("wrap", [list, tuple, iter, lambda pairs: (pair for pair in pairs)])
def test_pairs_may_be_any_iterable(wrap):
    variables, expected = two_variables(), two_variables()
    gradients = some_gradients(variables)
    rmsjit.RMSprop().apply_gradients(wrap(list(zip(gradients, variables, strict=True))))
    rmsjit.RMSprop().apply_gradients([list(p) for p in zip(gradients, expected, strict=True)])
    assert all(map(same_bits, variables, expected))


def test_a_generator_is_read_once_before_the_step():
    variables = two_variables()
    expected = two_variables()
    optimizer = rmsjit.RMSprop()
    # Each gradient depends on a variable that the step changes.
    optimizer.apply_gradients((v * 2, v) for v in variables)
    rmsjit.RMSprop().apply_gradients([(v * 2, v) for v in expected])
    assert all(map(same_bits, variables, expected))


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError])
def test_an_error_inside_a_generator_is_the_users_own(error):
    def pairs():
        raise error("from the model")
        yield

    with pytest.raises(error, match="from the model"):
        rmsjit.RMSprop().apply_gradients(pairs())


@pytest.mark.parametrize(
    "wrap",
    [
        np.ndarray.tolist,
        lambda g: tuple(map(tuple, g.tolist())),
        rmsjit.Variable,
        np.asfortranarray,
        lambda g: g[::-1, ::-1].copy()[::-1, ::-1],
        lambda g: g.astype("float32"),
        lambda g: g.astype(">f8"),
        lambda g: g.astype("int8"),
        lambda g: g > 0,
        lambda g: g.astype("longdouble"),
        lambda g: g.view(Subclass),
        lambda g: np.broadcast_to(g[:1, :1], g.shape),
    ],
)
@pytest.mark.parametrize("form", [PLAIN, LIKE_BOTH], ids=str)
def test_gradients_may_come_in_many_ways(form, wrap):
    variable = two_variables()[0]
    optimizer = form.optimizer()
    expected, other = copy.deepcopy((variable, optimizer))
    for seed in range(3):
        gradient = wrap(some_gradients([variable], seed)[0])
        optimizer.apply_gradients([(gradient, variable)])
        other.apply_gradients([(np.array(gradient).astype(float), expected)])
        assert same_bits(variable, expected)


@pytest.mark.parametrize("number", [2, 2.5, True, np.float32(2.5), np.int8(2), np.array(2.5)])
def test_a_number_is_the_gradient_of_a_0d_variable(number):
    variable = np.array(1.0)
    checked_step(PLAIN, PLAIN.optimizer(), [(number, variable)])
    assert variable < 1


SAME_KIND = [
    (gradient, variable)
    for gradient in (*DTYPES, "bool", "int64", "uint8", "longdouble")
    for variable in DTYPES
]


@pytest.mark.parametrize(("gradient", "variable"), SAME_KIND)
def test_gradients_of_other_dtypes_are_cast_as_numpy_would(gradient, variable):
    """Or refused where NumPy refuses ``variable -= gradient``."""
    values, weights = np.array([1, 0, 1]).astype(gradient), np.ones(3, variable)
    if np.can_cast(values.dtype, weights.dtype, "same_kind"):
        checked_step(PLAIN, PLAIN.optimizer(), [(values.astype(variable), weights.copy())])
        expected = weights.copy()
        PLAIN.optimizer().apply_gradients([(values.astype(variable), expected)])
        PLAIN.optimizer().apply_gradients([(values, weights)])
        assert same_bits(weights, expected)
    else:
        with pytest.raises(TypeError, match=f"same_kind, got {values.dtype}"):
            PLAIN.optimizer().apply_gradients([(values, weights)])


@every_form
def test_the_same_variable_twice_is_two_steps(form):
    twice, apart = two_variables()[0], two_variables()[0]
    one, two = form.optimizer(), form.optimizer()
    for seed in range(3):
        first, second = some_gradients([twice, twice], seed)
        one.apply_gradients([(first, twice), (second.T, twice.T)])
        two.apply_gradients([(first, apart)])
        two.apply_gradients([(second, apart)])
        assert same_bits(twice, apart)
    for name in form.slots:
        assert same_bits(one.get_slot(twice, name), two.get_slot(apart, name))


def test_the_same_variable_twice_among_others():
    variables = [*two_variables("float32"), *two_variables("float64")]
    a, b, c, d = variables
    order = [a, c, a, b, d, c, a]
    gradients = some_gradients(order)
    expected = [v.copy() for v in variables]
    optimizer, apart = BOTH.optimizer(), [BOTH.optimizer() for _ in variables]
    for _ in range(2):
        optimizer.apply_gradients(zip(gradients, order, strict=True))
        for gradient, variable in zip(gradients, order, strict=True):
            k = next(k for k, v in enumerate(variables) if v is variable)
            apart[k].apply_gradients([(gradient, expected[k])])
    assert all(map(same_bits, variables, expected))


def test_an_iterator_that_was_used_before_warns():
    w, optimizer = np.ones(2), rmsjit.RMSprop(0.1)
    pairs = zip([np.ones(2)], [w], strict=True)
    optimizer.apply_gradients(pairs)
    with pytest.warns(RuntimeWarning, match="is a zip object without pairs, so nothing is updated"):
        optimizer.apply_gradients(pairs)
    assert int(optimizer.iterations) == 1


def test_an_empty_list_changes_nothing():
    optimizer = rmsjit.RMSprop()
    assert int(optimizer.apply_gradients([])) == 0
    assert len(optimizer.weights) == 1
    with pytest.raises(ValueError, match="at least one variable"):
        rmsjit.train.RMSPropOptimizer(0.1).apply_gradients([])


@every_form
def test_gradients_that_are_none_are_dropped_with_one_warning(form):
    variables = [*two_variables(), rmsjit.Variable([1.0, 2.0], name="bias")]
    before = [np.array(v) for v in variables]
    optimizer = form.optimizer()
    gradient = some_gradients(variables)[0]
    for _ in range(3):
        pairs = [(gradient, variables[0]), (None, variables[1]), (None, variables[2])]
        with pytest.warns(RuntimeWarning) as caught:
            optimizer.apply_gradients(pairs)
        assert len(caught) == 1
        assert "variable 1" in str(caught[0].message)
        assert "variable 2 (bias:0)" in str(caught[0].message)
        assert caught[0].filename == __file__
    assert not same_bits(variables[0], before[0])
    assert all(map(same_bits, variables[1:], before[1:]))
    assert len([w for w in optimizer.variables() if w.ndim]) == len(form.slots)


def test_a_variable_without_a_gradient_need_not_be_trainable():
    """None gradients are dropped before the pairs are checked."""
    variable, frozen = np.ones(3), np.ones(3)
    frozen.setflags(write=False)
    with pytest.warns(RuntimeWarning, match="variable 0, variable 1"):
        rmsjit.RMSprop().apply_gradients(
            [(None, frozen), (None, np.arange(3)), (np.ones(3), variable)]
        )
    assert np.all(variable < 1)


def test_a_warning_made_an_error_comes_before_the_first_write():
    variable, optimizer = np.ones(3), rmsjit.RMSprop()
    pairs = [(np.ones(3), variable), (None, np.ones(2))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            optimizer.apply_gradients(pairs)
    assert len(optimizer.weights) == 1
    assert np.all(variable == 1)


@pytest.mark.parametrize("seen", [False, True])
def test_no_gradient_at_all_is_an_error(seen):
    variable, optimizer = rmsjit.Variable([1.0], name="w"), rmsjit.RMSprop()
    if seen:
        optimizer.apply_gradients([([1.0], variable)])
    before = state_of(optimizer, [variable])
    with pytest.raises(ValueError, match=r"no gradient .*variable 0 \(w:0\), variable 1"):
        optimizer.apply_gradients([(None, variable), (None, np.ones(2))])
    assert state_of(optimizer, [variable]) == before


def test_which_gradients_are_none_may_change():
    variables, expected = two_variables(), two_variables()
    optimizer, apart = BOTH.optimizer(), [BOTH.optimizer(), BOTH.optimizer()]
    for seed, present in enumerate([(1, 1), (1, 0), (0, 1), (1, 0), (1, 1), (0, 1)]):
        gradients = some_gradients(variables, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            optimizer.apply_gradients(
                (g if there else None, v)
                for g, v, there in zip(gradients, variables, present, strict=True)
            )
        for k in np.flatnonzero(present):
            apart[k].apply_gradients([(gradients[k], expected[k])])
        assert all(map(same_bits, variables, expected))


def test_constraint_is_applied_after_the_update():
    variable = rmsjit.Variable(np.array([1.0, -1.0]), constraint=lambda w: np.maximum(w, 0))
    memory, plain = variable.array, np.array([1.0, -1.0])
    optimizer = rmsjit.RMSprop(0.1)
    for _ in range(3):
        optimizer.apply_gradients([(np.ones(2), variable)])
        assert np.all(memory >= 0)
        assert variable.array is memory
    optimizer = rmsjit.RMSprop(0.1)
    optimizer.apply_gradients([(np.ones(2), plain)])
    assert np.all(plain < [1, -1])


def test_constraint_between_two_updates_of_one_variable():
    """The same variable twice in one call is two calls, each followed by the constraint."""
    twice, apart = (
        rmsjit.Variable(np.array([1.0, 2.0]), constraint=lambda w: np.maximum(w, 0.95) * 1.1)
        for _ in range(2)
    )
    one, two = rmsjit.RMSprop(0.1), rmsjit.RMSprop(0.1)
    one.apply_gradients([(np.ones(2), twice), (np.ones(2), twice)])
    for _ in range(2):
        two.apply_gradients([(np.ones(2), apart)])
    assert same_bits(twice, apart)


@pytest.mark.parametrize("constraint", [None, lambda w: w])
def test_a_full_counter_leaves_everything_as_it_was(constraint):
    variable = rmsjit.Variable(np.ones(3), constraint=constraint)
    optimizer = rmsjit.RMSprop(0.1)
    optimizer.iterations = np.iinfo(np.int64).max - 1
    optimizer.apply_gradients([(np.ones(3), variable)])
    before = state_of(optimizer, [variable])
    with pytest.raises(OverflowError, match="the count of steps"):
        optimizer.apply_gradients([(np.ones(3), variable)])
    assert state_of(optimizer, [variable]) == before


@pytest.mark.parametrize("constraint", [None, lambda w: w])
def test_a_full_counter_leaves_a_new_variable_unknown(constraint):
    optimizer = rmsjit.RMSprop(0.1, momentum=0.9)
    optimizer.iterations = np.iinfo(np.int64).max
    with pytest.raises(OverflowError, match="the count of steps"):
        optimizer.apply_gradients(
            [(np.ones(3), rmsjit.Variable(np.ones(3), constraint=constraint))]
        )
    assert len(optimizer.weights) == 1
    assert optimizer.variables_seen == []


def test_an_error_of_a_constraint_is_told_and_the_step_counted():
    def refuse(value):
        raise KeyError("mine")

    variable = rmsjit.Variable(np.ones(3), constraint=refuse)
    optimizer = rmsjit.RMSprop(0.1)
    with pytest.raises(KeyError, match="mine"):
        optimizer.apply_gradients([(np.ones(3), variable)])
    assert int(optimizer.iterations) == 1
    assert (np.asarray(variable) != 1).all()


# --- Hyperparameters -------------------------------------------------------------------------


def first_step(**arguments):
    variable = np.ones(3)
    rmsjit.RMSprop(**arguments).apply_gradients([(np.array([1.0, -2.0, 3.0]), variable)])
    return variable


@pytest.mark.parametrize("name", ["learning_rate", "rho", "momentum"])
@pytest.mark.parametrize(
    "wrap",
    [
        np.float32,
        np.array,
        rmsjit.Variable,
        lambda x: lambda: x,
        lambda x: lambda: np.float32(x),
        lambda x: lambda: np.array(x),
    ],
)
def test_hyperparameters_may_be_numbers_arrays_or_callables(name, wrap):
    arguments = {"learning_rate": 0.25, "rho": 0.5, "momentum": 0.75}
    expected = first_step(**arguments)
    arguments[name] = wrap(arguments[name])
    assert same_bits(first_step(**arguments), expected)


def test_whole_numbers_are_numbers():
    assert same_bits(first_step(learning_rate=1, rho=0), first_step(learning_rate=1.0, rho=0.0))


@pytest.mark.parametrize("name", ["learning_rate", "rho", "momentum", "epsilon", "decay"])
def test_attributes_take_effect_at_the_next_step(name):
    """Each step is compared with the reference's under the value that holds then."""
    variable = two_variables()[0]
    optimizer = BOTH.optimizer()
    rule = {"learning_rate": "lr", "epsilon": "eps"}
    for iterations, value in enumerate([0.5, 0.25, 0.75, 0.5]):
        setattr(optimizer, name, value)
        assert getattr(optimizer, name) == value
        change = {rule.get(name, name): value}
        if name == "decay":
            change = {"lr": 0.01 / (1 + value * iterations)}
        checked_step(
            BOTH, optimizer, [(some_gradients([variable], iterations)[0], variable)], **change
        )
        setattr(optimizer, name, 0.125)  # never seen by a step


@pytest.mark.parametrize("clip", ["clipvalue", "clipnorm", "global_clipnorm"])
def test_clip_attributes_take_effect_at_the_next_step(clip):
    changed, whole = two_variables(), two_variables()
    optimizer, other = rmsjit.RMSprop(), rmsjit.RMSprop()
    for bound in (None, 0.5, 0.25, None):
        setattr(optimizer, clip, bound)
        assert getattr(optimizer, clip) == bound
        train(optimizer, changed, steps=1)
        gradients = some_gradients(whole)
        other.apply_gradients(zip(clipped(gradients, **{clip: bound}), whole, strict=True))
        for one, two in zip(changed, whole, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-13)


def test_callables_are_asked_once_for_each_step():
    asked = []

    def rate():
        asked.append("rate")
        return 0.01 * len(asked)

    variables = [*two_variables("float32"), *two_variables("float64")]
    optimizer = rmsjit.RMSprop(rate, clipnorm=1.0)
    assert asked == []
    for steps in range(1, 4):
        train(optimizer, variables, steps=1)
        assert len(asked) == steps


def test_callables_of_tensorflow_1():
    numbers = {"learning_rate": 0.25, "decay": 0.5, "momentum": 0.75, "epsilon": 1e-3}
    results = []
    for wrap in (lambda x: x, lambda x: lambda: x, np.array):
        variable = np.ones(3)
        optimizer = rmsjit.train.RMSPropOptimizer(**{k: wrap(x) for k, x in numbers.items()})
        for _ in range(2):
            optimizer.apply_gradients([(np.array([1.0, -2.0, 3.0]), variable)])
        results.append(variable)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


def test_a_schedule_is_asked_for_the_iterations_before_the_step():
    seen = []

    class Spy(LearningRateSchedule):
        def __call__(self, step):
            seen.append(int(step))
            return 0.5

        def get_config(self):
            return {}

    variable = np.ones(3)
    optimizer = rmsjit.RMSprop(Spy())
    for _ in range(2):
        optimizer.apply_gradients([(variable.copy(), variable)])
    optimizer.iterations = 40
    optimizer.apply_gradients([(variable.copy(), variable)])
    assert seen == [0, 1, 40]


def test_a_schedule_and_decay_together():
    schedule = PiecewiseConstantDecay([1], [0.5, 0.25])
    variable = np.ones(3)
    optimizer = rmsjit.RMSprop(schedule, decay=0.5, epsilon=1e-7)
    for rate in (0.5, 0.5 / 1.5, 0.25 / 2):
        checked_step(PLAIN, optimizer, [(np.array([1.0, 2, 3]), variable)], lr=rate)
    optimizer.learning_rate = 1.0
    checked_step(PLAIN, optimizer, [(np.array([1.0, 2, 3]), variable)], lr=1 / 2.5)


def test_lr_is_the_old_name():
    with pytest.warns(DeprecationWarning, match="learning_rate") as caught:
        optimizer = rmsjit.RMSprop(lr=0.5)
    assert caught[0].filename == __file__
    assert optimizer.learning_rate == optimizer.lr == 0.5
    optimizer.lr = 0.25
    assert optimizer.learning_rate == 0.25


@pytest.mark.parametrize("epsilon", [0, 0.0, None])
def test_epsilon_of_nothing_is_the_default(epsilon):
    assert rmsjit.RMSprop(epsilon=epsilon).epsilon == 1e-7


@pytest.mark.parametrize("centered", [False, True])
def test_momentum_set_later_adds_its_slot_and_leaves_epsilon(centered):
    variable = two_variables()[0]
    optimizer = rmsjit.RMSprop(0.01, centered=centered, epsilon=0.1)
    before = KERAS[2 * centered]
    rule = {"eps": 0.1, "eps_inside": False}
    checked_step(before, optimizer, [(some_gradients([variable])[0], variable)], **rule)
    names = optimizer.get_slot_names()
    optimizer.momentum = 0.9
    assert optimizer.get_slot_names() == [*names, "momentum"]
    weights = len(optimizer.weights)
    after = KERAS[1 + 2 * centered]
    for _ in range(2):
        checked_step(after, optimizer, [(some_gradients([variable])[0], variable)], **rule)
    assert len(optimizer.weights) == weights + 1
    assert optimizer.weights[-1].name.endswith("momentum:0")


def test_a_callable_momentum_decides_as_a_positive_one():
    assert rmsjit.RMSprop(momentum=lambda: 0.0).get_slot_names() == ["rms", "momentum"]
    assert rmsjit.RMSprop(momentum=0.0).get_slot_names() == ["rms"]


# --- Clipping --------------------------------------------------------------------------------


def clipped(gradients, clipvalue=None, clipnorm=None, global_clipnorm=None):
    dtype = computing(gradients[0].dtype)
    if clipvalue is not None:
        gradients = [clip_by_value(g, clipvalue, dtype) for g in gradients]
    if clipnorm is not None:
        gradients = [clip_by_norm(g, clipnorm, dtype) for g in gradients]
    if global_clipnorm is not None:
        gradients = clip_by_global_norm(gradients, global_clipnorm, dtype)
    return gradients


CLIPS = [
    {"clipvalue": 0.5},
    {"clipnorm": 2.0},
    {"clipnorm": 1e9},
    {"global_clipnorm": 2.0},
    {"global_clipnorm": 1e9},
    {"clipvalue": 0.5, "clipnorm": 1.0},
    {"clipvalue": 0.5, "global_clipnorm": 1.0},
    {"clipvalue": 0.0},
]


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [PLAIN, BOTH], ids=str)
def test_clipping_is_that_of_the_reference(form, dtype, clip):
    if dtype in COMPLEX and "clipvalue" in clip:
        pytest.skip("complex numbers have no order")
    clipping, given = form.optimizer(**clip), form.optimizer()
    variables, expected = two_variables(dtype), two_variables(dtype)
    for step in range(3):
        before = [v.copy() for v in variables]
        gradients = some_gradients(variables, step)
        clipping.apply_gradients(zip(gradients, variables, strict=True))
        given.apply_gradients(zip(clipped(gradients, **clip), expected, strict=True))
        for one, two, old in zip(variables, expected, before, strict=True):
            # The norm is a sum in another order: a few units, that grow over the steps.
            scale = np.maximum(np.abs(two), np.abs(old)).astype(float).max()
            eps = {"float16": 1e-3, "bfloat16": 8e-3}.get(dtype, np.finfo(computing(dtype)).eps)
            np.testing.assert_allclose(
                one.astype(complex), two.astype(complex), atol=20 * eps * scale, rtol=0
            )


@pytest.mark.parametrize("norm", ["clipnorm", "global_clipnorm"])
def test_a_bound_on_the_norm_that_is_taken_away_has_no_effect_left(norm):
    """Its factors must not be used again where values are still clipped."""
    form, variables, expected = PLAIN, two_variables("float64"), two_variables("float64")
    clipping, given = form.optimizer(clipvalue=0.5, **{norm: 0.25}), form.optimizer()
    for step, bounds in enumerate(({"clipvalue": 0.5, norm: 0.25}, {"clipvalue": 0.5})):
        setattr(clipping, norm, bounds.get(norm))
        gradients = some_gradients(variables, step)
        clipping.apply_gradients(zip(gradients, variables, strict=True))
        given.apply_gradients(zip(clipped(gradients, **bounds), expected, strict=True))
    for one, two in zip(variables, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", REAL)
def test_clipping_changes_the_step_at_all(dtype):
    """Or the comparison above would say nothing."""
    for clip in CLIPS:
        variables, free = two_variables(dtype), two_variables(dtype)
        train(BOTH.optimizer(**clip), variables)
        train(BOTH.optimizer(), free)
        assert same_bits(variables[0], free[0]) == (1e9 in clip.values())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_norm_is_taken_in_double_precision(dtype):
    """Squares that overflow the dtype of the gradient do not overflow its norm."""
    large = np.full(1000, 6e4 if dtype == "float16" else 1e30, dtype)
    clipping, given = (rmsjit.RMSprop(0.01, **clip) for clip in ({"clipnorm": 1.0}, {}))
    one, two = np.ones(1000, dtype), np.ones(1000, dtype)
    clipping.apply_gradients([(large, one)])
    given.apply_gradients([(np.full(1000, 1000**-0.5, dtype), two)])
    np.testing.assert_allclose(one.astype(float), two.astype(float), rtol=2e-3)


@pytest.mark.parametrize("clip", ["clipvalue", "clipnorm", "global_clipnorm"])
def test_a_bound_beyond_single_precision_clips_nothing(clip):
    """And NumPy does not warn that it overflows there."""
    variables, free = two_variables("float32"), two_variables("float32")
    train(BOTH.optimizer(**{clip: 1e300}), variables)
    train(BOTH.optimizer(), free)
    assert all(map(same_bits, variables, free))


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_never_touches_the_gradient(dtype):
    variables = two_variables(dtype)
    gradients = some_gradients(variables)
    before = [g.copy() for g in gradients]
    clip = {"clipnorm": 0.5} if dtype in COMPLEX else {"clipnorm": 0.5, "clipvalue": 0.5}
    optimizer = BOTH.optimizer(**clip)
    for _ in range(2):
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    assert all(map(same_bits, gradients, before))


def test_a_global_norm_that_is_not_finite_makes_all_gradients_nan():
    for poison in (np.nan, np.inf):
        variables = two_variables()
        gradients = some_gradients(variables)
        gradients[0][0, 0] = poison
        rmsjit.RMSprop(global_clipnorm=1.0).apply_gradients(zip(gradients, variables, strict=True))
        assert np.all(np.isnan(variables[0]))
        assert np.all(np.isnan(variables[1]))


def test_a_norm_of_zero_is_not_divided_by():
    for clip in ("clipnorm", "global_clipnorm"):
        variable = np.ones(3)
        rmsjit.RMSprop(**{clip: 1.0}).apply_gradients([(np.zeros(3), variable)])
        assert np.all(variable == 1)


# --- Iterations ------------------------------------------------------------------------------


def test_iterations_are_returned_and_settable():
    variable, optimizer = np.ones(2), rmsjit.RMSprop()
    counter = optimizer.iterations
    assert isinstance(counter, rmsjit.Variable)
    assert counter.dtype == np.int64
    assert counter.shape == ()
    assert optimizer.apply_gradients([(np.ones(2), variable)]) is counter
    assert int(counter) == int(counter.numpy()) == 1
    optimizer.iterations = 41
    assert int(optimizer.apply_gradients([(np.ones(2), variable)])) == 42
    optimizer.iterations = np.array(7)
    assert optimizer.iterations is counter
    assert int(counter) == 7
    counter.assign(3)
    assert int(optimizer.iterations) == 3


def test_iterations_can_be_moved_in_place():
    optimizer, w = rmsjit.RMSprop(0.1), np.ones(2)
    optimizer.apply_gradients([(w.copy(), w)])
    counter = optimizer.iterations
    optimizer.iterations += 10
    assert optimizer.iterations is counter
    assert int(counter) == 11


def test_iterations_may_be_shared():
    counter = rmsjit.Variable(np.array(5, np.int32), name="step")
    optimizers = [rmsjit.RMSprop(decay=0.5), rmsjit.RMSprop(decay=0.5)]
    for optimizer in optimizers:
        optimizer.iterations = counter
        assert optimizer.iterations is counter
        assert optimizer.weights[0] is counter
    variable = np.ones(2)
    optimizers[0].apply_gradients([(np.ones(2), variable)])
    assert int(counter) == 6
    expected = np.ones(2)
    checked_step(PLAIN, optimizers[1], [(np.ones(2), expected)], lr=0.001 / (1 + 0.5 * 6))
    with pytest.raises(RuntimeError, match="before the first step"):
        optimizers[0].iterations = rmsjit.Variable(0)


def test_the_global_step_of_tensorflow_1_goes_up():
    variable = np.ones(2)
    optimizer = rmsjit.train.RMSPropOptimizer(0.1)
    for step in (np.array(3), rmsjit.Variable(3), rmsjit.Variable(np.array(3, np.int64))):
        for _ in range(2):
            assert optimizer.apply_gradients([(np.ones(2), variable)], global_step=step) is None
        assert int(step) == 5


# --- Slots and weights -----------------------------------------------------------------------

SLOT_ORDER = {
    "keras": {
        (False, 0): ["rms"],
        (True, 0): ["rms", "mg"],
        (False, 0.9): ["rms", "momentum"],
        (True, 0.9): ["rms", "momentum", "mg"],
    },
    # TensorFlow 1 makes rms, mg and momentum in this order, and lists their names sorted.
    "train": {
        (False, 0): ["momentum", "rms"],
        (True, 0): ["mg", "momentum", "rms"],
        (False, 0.9): ["momentum", "rms"],
        (True, 0.9): ["mg", "momentum", "rms"],
    },
}


@every_form
def test_slots_start_as_the_contract_says(form):
    variables = two_variables()
    optimizer = form.optimizer()
    assert optimizer.get_slot_names() == SLOT_ORDER[form.face][form.centered, form.momentum]
    zero = [np.zeros_like(v) for v in variables]
    optimizer.apply_gradients(zip(zero, variables, strict=True))
    for name in form.slots:
        for variable in variables:
            slot = optimizer.get_slot(variable, name)
            assert isinstance(slot, rmsjit.Variable)
            assert slot.shape == variable.shape
            assert slot.dtype == variable.dtype
            start = 0.9 if (form.face, name) == ("train", "rms") else 0.0
            np.testing.assert_array_equal(slot, start)


def test_a_slot_is_the_slots_own_memory():
    variable = np.ones(3)
    optimizer = rmsjit.RMSprop()
    optimizer.apply_gradients([(np.ones(3), variable)])
    optimizer.get_slot(variable, "rms").assign(np.full(3, 7.0))
    np.testing.assert_array_equal(optimizer.get_slot(variable, "rms"), 7.0)
    np.testing.assert_array_equal(optimizer.get_weights()[1], 7.0)
    checked_step(PLAIN, optimizer, [(np.ones(3), variable)], lr=0.001)


def test_slots_that_are_not_there():
    variable = np.ones(3)
    keras, train_face = rmsjit.RMSprop(), rmsjit.train.RMSPropOptimizer(0.1)
    for optimizer in (keras, train_face):
        optimizer.apply_gradients([(np.ones(3), variable)])
    for missing, name in ((np.ones(3), "rms"), (variable, "mg"), (variable[1:], "rms"), (3, "rms")):
        with pytest.raises(KeyError, match=f"no slot '{name}'"):
            keras.get_slot(missing, name)
        assert train_face.get_slot(missing, name) is None


@pytest.mark.parametrize("form", KERAS, ids=str)
def test_weights_are_iterations_and_slots_by_kind(form):
    names = ["W", "b", "Variable"]
    variables = [rmsjit.Variable(np.ones(k + 2), name=n) for k, n in enumerate(names)]
    optimizer = form.optimizer()
    train(optimizer, variables)
    expected = [
        f"RMSprop/{name}/{slot}:0"
        for slot in SLOT_ORDER["keras"][form.centered, form.momentum]
        for name in names
    ]
    assert [w.name for w in optimizer.weights] == ["RMSprop/iter:0", *expected]
    assert [w.name for w in optimizer.variables()] == [w.name for w in optimizer.weights]
    weights = optimizer.get_weights()
    assert weights[0] == 3
    for value, weight in zip(weights, optimizer.weights, strict=True):
        assert same_bits(value, weight)
        assert not np.shares_memory(value, weight.array)


def test_variables_of_one_name_are_numbered():
    optimizer = rmsjit.RMSprop(name="opt")
    variables = [
        np.ones(1),
        rmsjit.Variable([1.0], name="w"),
        np.ones(1),
        rmsjit.Variable([1.0], "w"),
    ]
    train(optimizer, variables)
    stems = [w.name.split("/")[1] for w in optimizer.weights[1:]]
    assert stems == ["Variable", "w", "Variable_1", "w_1"]
    assert optimizer.weights[1].name == "opt/Variable/rms:0"


def test_tensorflow_1_creates_slots_variable_by_variable():
    optimizer = TRAIN[2].optimizer()
    train(optimizer, two_variables())
    kinds = [w.name.rpartition("/")[2] for w in optimizer.variables()]
    assert kinds == ["rms:0", "mg:0", "momentum:0"] * 2


@every_form
def test_build_makes_the_slots_of_a_first_step(form):
    if form.face == "train":
        pytest.skip("TensorFlow 1 has no build")
    variables, expected = two_variables(), two_variables()
    built, stepped = form.optimizer(), form.optimizer()
    for _ in range(2):  # twice is once
        built.build(variables)
    assert int(built.iterations) == 0
    train(stepped, expected, steps=1)
    assert [w.name for w in built.weights] == [w.name for w in stepped.weights]
    train(built, variables, steps=1)
    assert state_of(built, variables) == state_of(stepped, expected)


@pytest.mark.parametrize("form", KERAS, ids=str)
@pytest.mark.parametrize("moment", ["built", "later"])
def test_set_weights_resumes_bit_for_bit(form, moment):
    variables = two_variables("float32")
    optimizer = form.optimizer(decay=0.1)
    train(optimizer, variables)
    copies, other = [v.copy() for v in variables], form.optimizer(decay=0.1)
    if moment == "built":
        other.build(copies)
    else:
        train(other, [np.ones_like(v) for v in copies])
        train(other := form.optimizer(decay=0.1), copies)
        for v, w in zip(variables, copies, strict=True):
            w[...] = v
    other.set_weights(optimizer.get_weights())
    for seed in (5, 6):
        train(optimizer, variables, seed=seed)
        train(other, copies, seed=seed)
    assert state_of(other, copies) == state_of(optimizer, variables)


def test_set_weights_one_shorter_sets_iterations_to_zero():
    """Keras 1 wrote no iterations."""
    variables = two_variables()
    optimizer = rmsjit.RMSprop()
    train(optimizer, variables)
    weights = optimizer.get_weights()
    train(optimizer, variables)
    optimizer.set_weights(weights[1:])
    assert int(optimizer.iterations) == 0
    assert all(map(same_bits, optimizer.get_weights()[1:], weights[1:]))


def test_slots_may_live_where_the_user_wants(tmp_path):
    made = []

    def allocate(shape, dtype):
        made.append(np.memmap(tmp_path / f"{len(made)}", dtype, "w+", shape=shape))
        return made[-1]

    variables, expected = two_variables(), two_variables()
    optimizer, plain = BOTH.optimizer(slot_allocator=allocate), BOTH.optimizer()
    train(optimizer, variables)
    train(plain, expected)
    assert state_of(optimizer, variables) == state_of(plain, expected)
    assert len(made) == 2 * len(BOTH.slots)
    slot = optimizer.get_slot(variables[0], "rms")
    assert any(np.shares_memory(memory, slot.array) for memory in made)


# --- Configuration ---------------------------------------------------------------------------


class Halving(LearningRateSchedule):
    """A schedule that rmsjit does not know."""

    def __init__(self, start):
        self.start = start

    def __call__(self, step):
        return self.start / 2**step

    def get_config(self):
        return {"start": self.start}


CONFIGS = [
    {},
    {"learning_rate": 0.5, "rho": 0.25, "momentum": 0.75, "epsilon": 1e-3, "centered": True},
    {"name": "mine", "clipvalue": 0.5, "clipnorm": 2.0, "decay": 0.1},
    {"global_clipnorm": 1.0},
    {"learning_rate": np.float32(0.5), "rho": np.array(0.25), "decay": np.float64(0.1)},
    {"learning_rate": ExponentialDecay(0.5, 10, 0.9, staircase=True)},
    {"learning_rate": Halving(0.5)},
    {"clipnorm": np.float32(2.0)},
    {"clipvalue": np.array(2.0)},
]


@pytest.mark.parametrize("arguments", CONFIGS, ids=lambda arguments: ",".join(arguments))
def test_a_config_makes_the_same_optimizer(arguments):
    optimizer = rmsjit.RMSprop(**arguments)
    config = json.loads(json.dumps(optimizer.get_config()))
    again = rmsjit.RMSprop.from_config(config, custom_objects={"Halving": Halving})
    assert again.get_config() == optimizer.get_config()
    variables, expected = two_variables(), two_variables()
    train(again, variables)
    train(optimizer, expected)
    assert state_of(again, variables) == state_of(optimizer, expected)


def test_a_config_does_not_change_its_argument_and_takes_lr():
    config = rmsjit.RMSprop(ExponentialDecay(0.5, 10, 0.9)).get_config()
    config["lr"] = config.pop("learning_rate")
    before = copy.deepcopy(config)
    optimizer = rmsjit.RMSprop.from_config(config)
    assert config == before
    assert isinstance(optimizer.learning_rate, ExponentialDecay)


def test_a_callable_is_configured_as_its_value():
    assert rmsjit.RMSprop(lambda: 0.5, momentum=lambda: 0.25).get_config()["learning_rate"] == 0.5


def test_a_subclass_is_made_from_its_config():
    class Mine(rmsjit.RMSprop):
        pass

    assert type(Mine.from_config(Mine(0.5).get_config())) is Mine
    assert "Mine" in repr(Mine())


def test_repr_shows_what_was_asked_for():
    optimizer = rmsjit.RMSprop(0.5, momentum=0.25, clipnorm=2.0)
    train(optimizer, two_variables())
    text = repr(optimizer)
    for part in ("RMSprop", "learning_rate=0.5", "momentum=0.25", "clipnorm=2.0", "iterations=3"):
        assert part in text
    text = repr(rmsjit.train.RMSPropOptimizer(0.5, centered=True))
    for part in ("RMSPropOptimizer", "learning_rate=0.5", "centered=True"):
        assert part in text


@pytest.mark.parametrize(
    ("face", "names"),
    [
        (
            rmsjit.RMSprop,
            ["learning_rate", "rho", "momentum", "epsilon", "centered", "name"],
        ),
        (
            rmsjit.train.RMSPropOptimizer,
            ["learning_rate", "decay", "momentum", "epsilon", "use_locking", "centered", "name"],
        ),
    ],
)
def test_arguments_stand_where_tensorflow_has_them(face, names):
    assert list(inspect.signature(face).parameters)[: len(names)] == names


# --- Copies ----------------------------------------------------------------------------------


def arrays_of_all_layouts():
    base = np.arange(60.0)
    return {
        "C": np.arange(12.0).reshape(3, 4),
        "F": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "permuted": np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
        "negative": np.arange(12.0).reshape(3, 4)[::-1, ::-1],
        "strided": base[::5],
        "columns": np.arange(40.0).reshape(4, 10)[:, 2:7:2],
        "0-d": np.array(3.0),
        "empty": np.zeros((0, 3)),
        "variable": rmsjit.Variable(np.arange(6.0).reshape(2, 3), name="v"),
        "F variable": rmsjit.Variable(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    }


COPIERS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "pickle 2": lambda value: pickle.loads(pickle.dumps(value, 2)),
    "pickle 5 out of band": lambda value: out_of_band(value),
}


def out_of_band(value):
    buffers = []
    data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytearray(b.raw()) for b in buffers])


@pytest.mark.parametrize("copier", COPIERS)
@pytest.mark.parametrize("form", [PLAIN, BOTH, LIKE_BOTH], ids=str)
def test_a_copy_of_variables_and_optimizer_resumes_bit_for_bit(form, copier):
    variables = arrays_of_all_layouts()
    optimizer = form.optimizer()
    train(optimizer, list(variables.values()))
    copies, other = COPIERS[copier]((variables, optimizer))
    for key, variable in variables.items():
        assert same_bits(copies[key], variable)
        assert not np.shares_memory(np.asarray(copies[key]), np.asarray(variable))
    for seed in (5, 6):
        train(optimizer, list(variables.values()), seed=seed)
        train(other, list(copies.values()), seed=seed)
    assert state_of(other, copies.values()) == state_of(optimizer, variables.values())
    assert [w.name for w in other.variables()] == [w.name for w in optimizer.variables()]
    for key, variable in variables.items():
        for name in form.slots:
            assert same_bits(other.get_slot(copies[key], name), optimizer.get_slot(variable, name))


@pytest.mark.parametrize("copier", COPIERS)
def test_a_copied_variable_still_shares_its_array(copier):
    """NumPy copies views apart from their arrays, but a `Variable` holds the array itself."""
    W = np.arange(12.0).reshape(3, 4).copy()
    optimizer = rmsjit.RMSprop()
    train(optimizer, [v := rmsjit.Variable(W)])
    copied, wrapped, other = COPIERS[copier]((W, v, optimizer))
    assert wrapped.array is copied
    assert same_bits(other.get_slot(copied, "rms"), optimizer.get_slot(W, "rms"))


def test_a_copied_optimizer_is_a_thing_of_its_own():
    variables = two_variables()
    optimizer = rmsjit.RMSprop(0.5, momentum=0.5)
    train(optimizer, variables)
    before = state_of(optimizer, variables)
    copies, other = copy.deepcopy((variables, optimizer))
    other.learning_rate = 0.1
    other.momentum = lambda: 0.25
    train(other, copies)
    assert state_of(optimizer, variables) == before
    assert optimizer.learning_rate == 0.5
    train(optimizer, variables)
    assert int(other.iterations) == int(optimizer.iterations) == 6


@pytest.mark.parametrize("copier", COPIERS)
def test_a_copy_before_the_first_step(copier):
    optimizer = rmsjit.RMSprop(ExponentialDecay(0.5, 10, 0.9), clipnorm=1.0)
    other = COPIERS[copier](optimizer)
    variables, expected = two_variables(), two_variables()
    train(other, variables)
    train(optimizer, expected)
    assert state_of(other, variables) == state_of(optimizer, expected)


def test_shared_memory_stays_shared_in_a_copy():
    counter = rmsjit.Variable(0)
    optimizers = [rmsjit.RMSprop(), rmsjit.RMSprop()]
    for optimizer in optimizers:
        optimizer.iterations = counter
    for copier in COPIERS.values():
        one, two = copier(optimizers)
        assert one.iterations is two.iterations
        assert one.iterations is not counter
