"""`train.RMSPropOptimizer`: numbers that change, locks and threads, slots, copies, errors."""

import copy
import functools
import pickle
import sys
import threading
import time

import numpy as np
import pytest

import rmsjit
from rmsjit import IndexedSlices, Variable
from rmsjit.train import RMSPropOptimizer
from strategies import TRAIN, checked_step, random_array, same_bits, state_of

every_form = pytest.mark.parametrize("form", TRAIN, ids=str)
NUMBERS = {"learning_rate": 0.25, "decay": 0.5, "momentum": 0.75, "epsilon": 1e-3}


def gradients_of(variables, step=0):
    rng = np.random.default_rng(step)
    return [random_array(rng, np.shape(v), np.asarray(v).dtype, 1) for v in variables]


def run(optimizer, variables, steps, first=0):
    for step in range(first, first + steps):
        optimizer.apply_gradients(zip(gradients_of(variables, step), variables, strict=True))


# --- Numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NUMBERS)
def test_each_number_may_change_from_step_to_step(name):
    values, asked = [0.5, 0.125, 0.25, 0.0625], []

    def number():
        asked.append(values[len(asked)])
        return asked[-1]

    optimizer = RMSPropOptimizer(**{**NUMBERS, name: number})
    assert asked == []
    v = np.ones(5)
    names = {"learning_rate": "lr", "decay": "rho", "epsilon": "eps"}
    rule = {names.get(key, key): value for key, value in NUMBERS.items()}
    for step, value in enumerate(values):
        rule[names.get(name, name)] = value
        checked_step(TRAIN[0], optimizer, [(gradients_of([v], step)[0], v)], **rule)
        assert len(asked) == step + 1


def test_all_numbers_may_be_callables_of_any_kind():
    class Rate:
        value = 0.25

        def __call__(self):
            return self.value

    rate = Rate()
    optimizer = RMSPropOptimizer(
        rate, functools.partial(float, "0.5"), lambda: np.float32(0.75), lambda: np.array(1e-3)
    )
    twin = RMSPropOptimizer(0.25, 0.5, 0.75, 1e-3)
    one, two = np.ones(5), np.ones(5)
    run(optimizer, [one], 2)
    run(twin, [two], 2)
    assert same_bits(one, two)
    rate.value = 0.0
    optimizer.apply_gradients([(np.zeros(5), one)])
    twin = RMSPropOptimizer(0.0, 0.5, 0.75, 1e-3)
    assert not same_bits(one, two)  # the momentum of earlier steps goes on


def test_a_rate_that_depends_on_the_global_step():
    """What `tf.train.exponential_decay(rate, global_step, ...)` was for."""
    step = np.zeros((), np.int64)
    schedule = rmsjit.schedules.ExponentialDecay(0.5, decay_steps=1, decay_rate=0.5)
    optimizer = RMSPropOptimizer(lambda: schedule(int(step)))
    v, expected = np.ones(3), np.ones(3)
    rates = iter([0.5, 0.25, 0.125])
    twin = RMSPropOptimizer(lambda: next(rates))
    for _ in range(3):
        optimizer.apply_gradients([(np.ones(3), v)], step)
        twin.apply_gradients([(np.ones(3), expected)])
    assert int(step) == 3
    assert same_bits(v, expected)
    with pytest.raises(TypeError, match="must be a number or a callable, got a schedule"):
        RMSPropOptimizer(schedule)


@pytest.mark.parametrize("make", [RMSPropOptimizer, rmsjit.RMSprop])
def test_a_variable_that_holds_a_number_is_followed(make):
    """As both optimizers of TensorFlow follow a `tf.Variable`."""
    rate = Variable(0.5)
    optimizer, twin = make(rate), make(0.5)
    v, expected = np.ones(3), np.ones(3)
    optimizer.apply_gradients([(np.ones(3), v)])
    twin.apply_gradients([(np.ones(3), expected)])
    assert same_bits(v, expected)
    rate.assign(0.0)
    optimizer.apply_gradients([(np.ones(3), v)])
    assert same_bits(v, expected)


@pytest.mark.parametrize("form", [None, rmsjit.Form(weight_decay="decoupled")])
def test_variables_that_hold_zero_are_followed(form):
    name = "momentum" if form is None else "weight_decay"
    number, v, expected = Variable(0.0), np.ones(3), np.ones(3)
    optimizer, twin = (
        rmsjit.RMSprop(0.1, form=form, **{name: number}),
        rmsjit.RMSprop(0.1, form=form, **{name: 0.25}),
    )
    optimizer.apply_gradients([(np.zeros(3), v)])
    assert (v == 1).all()
    number.assign(0.25)
    for _ in range(2):
        optimizer.apply_gradients([(np.ones(3), v)])
        twin.apply_gradients([(np.ones(3), expected)])
    if form is None:  # rms has seen a zero gradient, which leaves it at zero
        assert optimizer.get_slot(v, "momentum").numpy().all()
    assert same_bits(v, expected)


@pytest.mark.parametrize("name", ["decay", "momentum"])
@pytest.mark.parametrize("make", [RMSPropOptimizer, rmsjit.RMSprop])
def test_variables_serve_for_the_other_numbers_too(make, name):
    if make is rmsjit.RMSprop and name == "decay":
        name = "rho"
    factor = Variable(0.5)
    optimizer = make(0.1, **{name: factor})
    v = np.ones(3)
    optimizer.apply_gradients([(np.ones(3), v)])
    factor.assign(1.5)
    before = state_of(optimizer, [v])
    with pytest.raises(ValueError, match=f"{name} must be between 0 and 1, got 1.5"):
        optimizer.apply_gradients([(np.ones(3), v)])
    assert state_of(optimizer, [v]) == before


@pytest.mark.parametrize(
    ("name", "bad", "error"),
    [
        ("learning_rate", np.nan, ValueError),
        ("learning_rate", "0.1", TypeError),
        ("learning_rate", None, TypeError),
        ("learning_rate", [0.1], TypeError),
        ("decay", 1.5, ValueError),
        ("decay", -0.5, ValueError),
        ("momentum", 1.5, ValueError),
        ("momentum", np.inf, ValueError),
        ("epsilon", 0.0, ValueError),
        ("epsilon", -1.0, ValueError),
        ("epsilon", 1j, TypeError),
    ],
)
def test_a_callable_that_fails_changes_nothing(name, bad, error):
    values = iter([0.5, bad, bad, 0.5])
    optimizer = RMSPropOptimizer(**{**NUMBERS, name: lambda: next(values)})
    v, step = Variable(np.ones(3)), np.array(0)
    optimizer.apply_gradients([(np.ones(3), v)], step)
    before = state_of(optimizer, [v])
    for _ in range(2):
        with pytest.raises(error, match=name):
            optimizer.apply_gradients([(np.ones(3), v)], step)
        assert state_of(optimizer, [v]) == before
        assert int(step) == 1
    optimizer.apply_gradients([(np.ones(3), v)], step)
    assert int(step) == 2


# --- One step --------------------------------------------------------------------------------


@every_form
def test_apply_gradients_gives_nothing_back(form):
    v = np.ones(3)
    assert form.optimizer().apply_gradients([(np.ones(3), v)]) is None
    assert form.optimizer().apply_gradients(iter([(np.ones(3), v)]), None, "name") is None


@pytest.mark.parametrize("pairs", [[], (), iter([]), {}])
def test_an_empty_list_is_refused(pairs):
    step, optimizer = np.array(0), RMSPropOptimizer(0.1)
    with pytest.raises(ValueError, match="at least one variable"):
        optimizer.apply_gradients(pairs, step)
    assert int(step) == 0
    assert optimizer.variables() == []


BAD_PAIRS = {
    "no iterable": (3, TypeError),
    "no pairs": ([1, 2], TypeError),
    "triples": ([(np.ones(3), np.ones(3), 1)], TypeError),
    "a string for a gradient": ([("g", np.ones(3))], TypeError),
    "a number for a variable": ([(1.0, 1.0)], TypeError),
    "integers for a variable": ([(np.ones(3), np.ones(3, int))], TypeError),
    "another shape": ([(np.ones(3), np.ones(4))], ValueError),
    "complex for real": ([(np.ones(3, complex), np.ones(3))], TypeError),
    "no gradient": ([(None, np.ones(3))], ValueError),
    "no row": ([(IndexedSlices([1.0], [3]), np.ones(3))], IndexError),
    "a constraint on rows": (
        [(IndexedSlices([1.0], [0]), Variable(np.ones(3), constraint=np.abs))],
        RuntimeError,
    ),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
@pytest.mark.parametrize("use_locking", [False, True])
def test_an_error_changes_nothing_and_leaves_no_lock(name, use_locking):
    bad, error = BAD_PAIRS[name]
    optimizer, step = RMSPropOptimizer(0.1, use_locking=use_locking), np.array(0)
    v = np.ones(3)
    for later in (0, 1):
        before = state_of(optimizer, [v])
        pairs = [(np.ones(3), v), *bad] if isinstance(bad, list) and name != "no gradient" else bad
        with pytest.raises(error):
            optimizer.apply_gradients(pairs, step)
        assert state_of(optimizer, [v]) == before
        assert int(step) == later
        optimizer.apply_gradients([(np.ones(3), v)], step)


# --- Slots -----------------------------------------------------------------------------------


@every_form
def test_slots(form):
    v, other = Variable(np.ones((2, 3)), name="v"), np.ones((2, 3))
    optimizer = form.optimizer()
    assert optimizer.get_slot(v, "rms") is None
    assert optimizer.variables() == []
    assert optimizer.get_slot_names() == sorted(form.slots)
    optimizer.apply_gradients([(np.ones((2, 3)), v)])
    for name in form.slots:
        slot = optimizer.get_slot(v, name)
        assert slot.name == f"RMSProp/v/{name}:0"
        assert slot.shape == (2, 3)
        assert optimizer.get_slot(other, name) is None
        assert optimizer.get_slot(v.array.reshape(-1), name).shape == (6,)
    for name in {"mg", "rms", "momentum", "velocity", "", "RMS"} - set(form.slots):
        assert optimizer.get_slot(v, name) is None
    for strange in (None, 3.0, "v", [1.0]):
        assert optimizer.get_slot(strange, "rms") is None
    assert [weight.name for weight in optimizer.variables()] == [
        f"RMSProp/v/{name}:0" for name in form.slots
    ]


@every_form
def test_slots_start_from_ones_and_zeros(form):
    v = np.ones(3)
    optimizer = form.optimizer(name="mine")
    optimizer.build([v])
    for name in form.slots:
        assert optimizer.get_slot(v, name).tolist() == [1.0 if name == "rms" else 0.0] * 3
    assert optimizer.get_name() == "mine"
    assert [slot.name for slot in optimizer.variables()] == [
        f"mine/Variable/{name}:0" for name in form.slots
    ]


def test_slots_can_be_written():
    v, optimizer = np.ones(3), RMSPropOptimizer(1.0, decay=1.0, momentum=0.5)
    optimizer.build([v])
    optimizer.get_slot(v, "rms").assign(np.full(3, 4.0))
    optimizer.get_slot(v, "momentum").assign(np.full(3, 2.0))
    optimizer.apply_gradients([(np.full(3, 3.0), v)])
    np.testing.assert_allclose(v, 1 - (0.5 * 2 + 3 / 2), rtol=1e-9)


def test_variables_come_as_they_were_created():
    a, b = Variable(np.ones(2), name="z"), Variable(np.ones(3), name="a")
    optimizer = RMSPropOptimizer(0.1, centered=True)
    optimizer.apply_gradients([(np.ones(2), a)])
    optimizer.apply_gradients([(np.ones(3), b), (np.ones(2), a)])
    assert [weight.name for weight in optimizer.variables()] == [
        f"RMSProp/{variable}/{slot}:0" for variable in "za" for slot in ("rms", "mg", "momentum")
    ]
    assert all(not weight.trainable for weight in optimizer.variables())


# --- Copies ----------------------------------------------------------------------------------

COPIERS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
    "old pickle": lambda both: pickle.loads(pickle.dumps(both, protocol=2)),
}


def rate():
    return 0.25


@pytest.mark.parametrize("copier", COPIERS.values(), ids=COPIERS)
@pytest.mark.parametrize("use_locking", [False, True])
@every_form
def test_a_copy_goes_on_as_the_original(form, use_locking, copier):
    variables = [Variable(np.ones((2, 3)), name="a"), np.ones(4, np.float32)]
    optimizer = form.optimizer(rate, use_locking=use_locking, name="mine", nonfinite="skip")
    run(optimizer, variables, 2)
    optimizer.apply_gradients([(np.full(4, np.nan), variables[1])])
    copied, its_variables = copier((optimizer, variables))
    assert type(copied) is RMSPropOptimizer
    assert repr(copied).replace(hex(id(rate)), "") == repr(optimizer).replace(hex(id(rate)), "")
    assert copied.skipped_steps == 1
    assert state_of(copied, its_variables) == state_of(optimizer, variables)
    run(copied, its_variables, 2, first=2)
    assert state_of(copied, its_variables) != state_of(optimizer, variables)
    run(optimizer, variables, 2, first=2)
    assert state_of(copied, its_variables) == state_of(optimizer, variables)
    in_threads(copied, its_variables)  # whose lock is its own


def test_a_copy_made_within_a_locked_step_is_not_locked():
    copies = []

    def number():
        if not copies:
            copies.append(None)
            copies[0] = copy.deepcopy((optimizer, v))
        return 0.1

    optimizer, v = RMSPropOptimizer(number, use_locking=True), np.ones(3)
    run(optimizer, [v], 1)
    copied, its_variable = copies[0]
    assert its_variable.tolist() == [1, 1, 1]
    run(copied, [its_variable], 1)
    assert same_bits(v, its_variable)


# --- Threads ---------------------------------------------------------------------------------


def at_once(*works):
    """Call all functions, each in a thread of its own."""
    start, errors = threading.Barrier(len(works)), []

    def call(work):
        try:
            start.wait()
            work()
        except BaseException as error:  # handed on to the test
            errors.append(error)

    threads = [threading.Thread(target=call, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def in_threads(optimizer, variables, threads=4, steps=5, gradients=None, step=None):
    """Have several threads take steps on the same variables at once."""
    given = gradients or [np.ones(np.shape(v), np.asarray(v).dtype) for v in variables]

    def work():
        for _ in range(steps):
            optimizer.apply_gradients(zip(given, variables, strict=True), step)

    at_once(*[work] * threads)


@pytest.fixture
def _quick_switches():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def trained(shapes, dtype="float32"):
    return [np.ones(shape, dtype) for shape in shapes]


SHAPES = {
    "small": ((3, 4), (5,), ()),
    "many": tuple((k % 7 + 1,) for k in range(40)),
    "large": ((600, 1000),),  # enough for a step to use threads of its own
}


@pytest.mark.usefixtures("_quick_switches")
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@every_form
def test_with_locking_steps_follow_one_another(form, shapes):
    """Equal gradients make the order of the threads unimportant, so nothing may be lost."""
    optimizer, twin = form.optimizer(use_locking=True), form.optimizer()
    variables, expected, step = trained(shapes), trained(shapes), np.array(0)
    steps = 5 if shapes is SHAPES["large"] else 50
    in_threads(optimizer, variables, 8, steps, step=step)
    ones = trained(shapes)
    for _ in range(8 * steps):
        twin.apply_gradients(zip(ones, expected, strict=True))
    assert state_of(optimizer, variables) == state_of(twin, expected)
    assert int(step) == 8 * steps


@pytest.mark.usefixtures("_quick_switches")
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@every_form
def test_without_locking_updates_may_be_lost_and_no_more(form, shapes):
    optimizer, variables, step = form.optimizer(), trained(shapes), np.array(0)
    steps = 5 if shapes is SHAPES["large"] else 50
    in_threads(optimizer, variables, 8, steps, step=step)
    assert all(np.all(np.isfinite(v)) for v in variables)
    assert all(np.all(v < 1) for v in variables)
    assert all(np.all(np.isfinite(weight.array)) for weight in optimizer.variables())
    assert 0 < int(step) <= 8 * steps
    assert len(optimizer.variables()) == len(shapes) * len(form.slots)
    run(optimizer, variables, 1)  # and nothing is left in disorder


@pytest.mark.usefixtures("_quick_switches")
@pytest.mark.parametrize("use_locking", [False, True])
@pytest.mark.parametrize("sparse", ["rows", "exact"])
@every_form
def test_sparse_steps_of_threads(form, sparse, use_locking):
    optimizer = form.optimizer(sparse=sparse, use_locking=use_locking)
    twin = form.optimizer(sparse=sparse)
    table, expected = np.ones((50, 4)), np.ones((50, 4))
    slices = IndexedSlices(np.ones((30, 4)), np.arange(30) % 20)
    in_threads(optimizer, [table], 8, 20, [slices])
    for _ in range(160):
        twin.apply_gradients([(slices, expected)])
    if use_locking or sparse == "exact":  # which always takes one step at a time
        assert state_of(optimizer, [table]) == state_of(twin, [expected])
    assert np.all(np.isfinite(table))
    assert np.all(table[:20] < 1)
    assert np.all(table[20:] == 1)


@pytest.mark.usefixtures("_quick_switches")
@pytest.mark.parametrize("use_locking", [False, True])
@every_form
def test_threads_that_train_variables_of_their_own_do_not_meet(form, use_locking):
    optimizer, twin = form.optimizer(use_locking=use_locking), form.optimizer()
    sets = [trained(((k + 1,), (3, k + 1))) for k in range(8)]
    at_once(*[functools.partial(run, optimizer, variables, 20) for variables in sets])
    for k, variables in enumerate(sets):
        expected = trained(((k + 1,), (3, k + 1)))
        run(twin, expected, 20)
        assert all(map(same_bits, variables, expected))


@pytest.mark.parametrize("use_locking", [False, True])
def test_a_lock_lets_one_step_through_at_a_time(use_locking):
    inside, most = [], []

    def number():
        inside.append(1)
        time.sleep(0.01)
        most.append(len(inside))
        inside.pop()
        return 0.1

    optimizer, v = RMSPropOptimizer(number, use_locking=use_locking), np.ones(3)
    run(optimizer, [v], 1)
    in_threads(optimizer, [v], threads=4, steps=3)
    assert (max(most) == 1) is use_locking


@pytest.mark.usefixtures("_quick_switches")
@pytest.mark.parametrize("use_locking", [False, True])
def test_threads_minimise_one_loss(use_locking):
    """A step of another thread between a loss and its gradient is part of the bargain."""
    w, target = Variable(np.zeros(4)), np.array([1.0, -1.0, 0.5, 2.0])
    optimizer = RMSPropOptimizer(0.02, use_locking=use_locking)

    def work():
        for _ in range(100):
            optimizer.minimize(lambda w: ((w - target) ** 2).sum(), var_list=[w])

    at_once(*[work] * 4)
    np.testing.assert_allclose(w, target, atol=0.2)


def test_other_threads_run_during_a_step():
    v, gradient = np.ones(4_000_000, np.float32), np.ones(4_000_000, np.float32)
    optimizer = RMSPropOptimizer(0.01, num_threads=1)
    optimizer.apply_gradients([(gradient, v)])
    stepping, ticks, done = [], [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.extend(stepping)
            time.sleep(0.0002)

    interval = sys.getswitchinterval()
    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        sys.setswitchinterval(1000)  # no thread is made to give way: the step must do so itself
        for _ in range(20):
            stepping.append(1)
            optimizer.apply_gradients([(gradient, v)])
            stepping.clear()
            time.sleep(0.001)
    finally:
        sys.setswitchinterval(interval)
        done.set()
        ticker.join()
    assert ticks
