"""From a loss to a step: `minimize` and its kin, hooks, slots and weights of one's own."""

import functools
import json
import types
import warnings
from typing import NamedTuple

import autograd.numpy as anp
import ml_dtypes  # noqa: F401  # makes "bfloat16" a dtype
import numpy as np
import pytest

import rmsjit
from pairs import every_pair
from rmsjit import GradientTape, IndexedSlices, Variable, gather
from strategies import BOTH, DTYPES, KERAS, TRAIN, Form, random_array, same_bits, state_of

RMSPropOptimizer = rmsjit.train.RMSPropOptimizer
FACES = [KERAS[0], TRAIN[0]]
every_face = pytest.mark.parametrize("form", FACES, ids=["keras", "train"])


def minimize(optimizer, loss, var_list, **arguments):
    """One step by either face."""
    if isinstance(optimizer, RMSPropOptimizer):
        return optimizer.minimize(loss, var_list=var_list, **arguments)
    return optimizer.minimize(loss, var_list, **arguments)


def stepped(form, value, gradients, **arguments):
    """A variable after steps with known gradients."""
    variable = np.array(value)
    optimizer = form.optimizer(0.1, **arguments)
    for gradient in gradients:
        optimizer.apply_gradients([(gradient, variable)])
    return variable


def unchanged_by(call, optimizer, variables, error, match=None):
    """The call raises this error, and changes nothing."""
    before = state_of(optimizer, variables)
    with pytest.raises(error, match=match):
        call()
    assert state_of(optimizer, variables) == before


# --- The loss --------------------------------------------------------------------------------


@every_face
def test_a_step_by_a_loss_is_the_step_by_its_gradients(form):
    v = Variable(np.array([1.0, -2.0, 3.0]))
    optimizer = form.optimizer(0.1)
    expected = np.array(v)
    twin = form.optimizer(0.1)
    for _ in range(3):
        minimize(optimizer, lambda: (v**3).sum(), [v])
        twin.apply_gradients([(3 * expected**2, expected)])
        assert same_bits(v, expected)


def test_minimize_returns_iterations():
    v, optimizer = Variable(1.0), rmsjit.RMSprop()
    for count in (1, 2):
        assert optimizer.minimize(lambda: v**2, [v]) is optimizer.iterations
        assert optimizer.iterations.numpy() == count
    assert RMSPropOptimizer(0.1).minimize(lambda: v**2, var_list=[v]) is None


@every_face
def test_the_loss_is_called_once(form):
    v, calls = Variable(1.0), []

    def loss():
        calls.append(float(v))
        return v**2

    optimizer = form.optimizer(0.5)
    minimize(optimizer, loss, [v])
    minimize(optimizer, loss, [v])
    assert len(calls) == 2
    assert calls[1] < calls[0] == 1.0


@every_face
@pytest.mark.parametrize(
    "loss",
    [
        lambda v: v,
        lambda v: v**2,
        lambda v: anp.reshape(v**2, (1, 3, 1)),
        lambda v: [v[0], {"rest": v[1:] ** 2}],
        lambda v: anp.outer(v, v),
        lambda v: anp.exp(v).astype(np.float32),
    ],
)
def test_a_loss_of_any_shape_stands_for_its_sum(form, loss):
    def total(value):
        if isinstance(value, (list, dict)):
            return sum(map(total, value.values() if isinstance(value, dict) else value))
        return anp.sum(value)

    one, two = (Variable(np.array([0.5, -0.25, 2.0])) for _ in range(2))
    minimize(form.optimizer(0.1), lambda: loss(one), [one])
    minimize(form.optimizer(0.1), lambda: total(loss(two)), [two])
    np.testing.assert_allclose(one, two, rtol=1e-6)
    assert not np.array_equal(one, [0.5, -0.25, 2.0])


@every_face
def test_grad_loss_weighs_the_loss(form):
    weights = np.array([1.0, 0.0, -10.0])
    one, two = (Variable(np.array([1.0, 2.0, 3.0])) for _ in range(2))
    minimize(form.optimizer(0.1), lambda: one**2, [one], grad_loss=weights)
    minimize(form.optimizer(0.1), lambda: (two**2 * weights).sum(), [two])
    assert same_bits(one, two)
    assert one[1] == 2
    assert one[2] > 3


@every_face
@pytest.mark.parametrize("weights", [2.0, [1.0, 2.0], np.ones((3, 1))])
def test_grad_loss_of_another_shape_is_refused(form, weights):
    v, optimizer = Variable([1.0, 2.0, 3.0]), form.optimizer()
    unchanged_by(
        lambda: minimize(optimizer, lambda: v**2, [v], grad_loss=weights),
        optimizer,
        [v],
        ValueError,
        r"shape \(3,\)",
    )


@pytest.mark.parametrize("persistent", [False, True])
def test_a_value_with_the_tape_that_recorded_it(persistent):
    v, optimizer = Variable(np.array([1.0, 2.0])), rmsjit.RMSprop(0.1)
    with GradientTape(persistent) as tape:
        loss = (v**2).sum()
    optimizer.minimize(loss, [v], tape=tape)
    assert same_bits(v, stepped(KERAS[0], [1.0, 2.0], [np.array([2.0, 4.0])]))
    assert int(optimizer.iterations) == 1


def test_a_loss_to_call_with_a_tape():
    v, tape = Variable(np.array([1.0, 2.0])), GradientTape(persistent=True)
    seen = []
    rmsjit.RMSprop(0.1).minimize(lambda: seen.append(v**3) or seen[0], lambda: [v], tape=tape)
    assert same_bits(v, stepped(KERAS[0], [1.0, 2.0], [np.array([3.0, 12.0])]))
    assert tape.watched_variables() == (v,)


@pytest.mark.parametrize("loss", [3.0, np.ones(2), Variable(1.0), None])
def test_a_value_without_a_tape_is_refused(loss):
    v, optimizer = Variable(1.0), rmsjit.RMSprop()
    for call in (
        lambda: optimizer.minimize(loss, [v]),
        lambda: optimizer.get_gradients(loss, [v]),
        lambda: optimizer.get_updates(loss, [v]),
    ):
        unchanged_by(call, optimizer, [v], ValueError, "needs the tape")


@pytest.mark.parametrize("loss", [3.0, np.ones(2), Variable(1.0), None])
def test_tensorflow_1_wants_a_loss_to_call(loss):
    v, optimizer = Variable(1.0), RMSPropOptimizer(0.1)
    for call in (
        lambda: optimizer.minimize(loss, var_list=[v]),
        lambda: optimizer.compute_gradients(loss, [v]),
        lambda: optimizer.compute_gradients(loss),
    ):
        unchanged_by(call, optimizer, [v], RuntimeError, "loss must be callable")


@every_face
@pytest.mark.parametrize("value", [None, "loss", object()])
def test_a_loss_that_gives_no_number(form, value):
    v, optimizer = Variable(1.0), form.optimizer()
    unchanged_by(
        lambda: minimize(optimizer, lambda: value, [v]), optimizer, [v], TypeError, "a number"
    )


@every_face
def test_an_error_in_the_loss_is_the_users_own(form):
    v, optimizer = Variable(1.0), form.optimizer()

    def loss():
        return v * {}["missing"]

    unchanged_by(lambda: minimize(optimizer, loss, [v]), optimizer, [v], KeyError, "missing")
    minimize(optimizer, lambda: v**2, [v])  # no tape was left open
    assert float(v) < 1


# --- The variables ---------------------------------------------------------------------------

WRAPS = {
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "dictionary": lambda a, b: {"z": b, "a": a},
    "nested": lambda a, b: [[], (a,), {"b": [b]}],
    "values of a dictionary": lambda a, b: {"a": a, "b": b}.values(),
}


@every_face
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_variables_come_in_any_structure(form, wrap):
    a, b = Variable(np.array([1.0, 2.0])), Variable(np.array(3.0))
    minimize(form.optimizer(0.1), lambda: anp.sum(a**2 * b), wrap(a, b))
    assert same_bits(a, stepped(form, [1.0, 2.0], [np.array([6.0, 12.0])]))
    assert same_bits(b, stepped(form, 3.0, [np.array(5.0)]))


@every_face
def test_one_variable_alone(form):
    v = Variable(np.array([1.0, 2.0]))
    minimize(form.optimizer(0.1), lambda: v**2, v)
    assert same_bits(v, stepped(form, [1.0, 2.0], [np.array([2.0, 4.0])]))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_callable_is_asked_after_the_loss(wrap):
    made = []

    def loss():
        if not made:
            made.extend([Variable(np.array(2.0)), Variable(np.array(5.0))])
        return made[0] ** 2 * made[1]

    optimizer = rmsjit.RMSprop(0.1)
    for _ in range(2):
        optimizer.minimize(loss, lambda: wrap(*made))
    assert int(optimizer.iterations) == 2
    assert len(optimizer.get_weights()) == 3
    assert float(made[0]) < 2
    assert float(made[1]) < 5


def test_no_variables_at_all():
    v, called = Variable(1.0), []
    for empty in ([], (), {}, list):
        optimizer = rmsjit.RMSprop()
        assert optimizer.minimize(lambda: called.append(1) or v**2, empty) is optimizer.iterations
        assert int(optimizer.iterations) == 0
    assert len(called) == 4
    assert float(v) == 1
    optimizer = RMSPropOptimizer(0.1)
    unchanged_by(
        lambda: optimizer.minimize(lambda: v**2, var_list=[]),
        optimizer,
        [v],
        ValueError,
        "at least one variable",
    )


@every_face
@pytest.mark.parametrize("wrong", [3.0, "v", None, object(), [[1.0]], {"a": 2}])
def test_what_is_no_variable_is_refused(form, wrong):
    v, optimizer = Variable(1.0), form.optimizer()
    var_list = [v, wrong]
    unchanged_by(
        lambda: minimize(optimizer, lambda: v**2, var_list),
        optimizer,
        [v],
        TypeError,
        r"var_list\[1\] must be a variable",
    )
    if form.face == "keras":
        for ask in (optimizer.get_gradients, optimizer.get_updates):
            with pytest.raises(TypeError, match=r"var_list\[1\] must be a variable"):
                ask(lambda: v**2, var_list)
    else:
        for loss in (lambda *_: v**2, lambda: v**2):
            with pytest.raises(TypeError, match=r"var_list\[1\] must be a variable"):
                optimizer.compute_gradients(loss, var_list)


@every_face
def test_a_variable_of_integers_is_refused(form):
    v, optimizer = Variable([1, 2], name="count"), form.optimizer()
    unchanged_by(
        lambda: minimize(optimizer, lambda: v * 2.0, [v]), optimizer, [v], TypeError, "int32"
    )


@every_face
def test_a_variable_that_is_not_trainable_is_left_alone_where_it_is_named(form):
    v, fixed = Variable(np.array([1.0, 2.0])), Variable(np.array([3.0]), trainable=False)
    minimize(form.optimizer(0.1), lambda: v**2 * fixed, [v, fixed])
    assert same_bits(v, stepped(form, [1.0, 2.0], [np.array([6.0, 12.0])]))
    assert fixed.tolist() == [3]


@every_face
def test_the_same_variable_twice_is_two_steps(form):
    v = Variable(np.array([1.0, 2.0]))
    minimize(form.optimizer(0.1), lambda: v**2, [v, v])
    assert same_bits(v, stepped(form, [1.0, 2.0], [np.array([2.0, 4.0])] * 2))


def test_arrays_are_variables_where_the_loss_notices_their_use():
    array = np.array([1.0, 2.0])
    optimizer = rmsjit.RMSprop(0.1)
    v = Variable(array)
    optimizer.minimize(lambda: v**2, [array])
    assert same_bits(array, stepped(KERAS[0], [1.0, 2.0], [np.array([2.0, 4.0])]))
    unchanged_by(
        lambda: optimizer.minimize(lambda: array**2, [array]),
        optimizer,
        [array],
        TypeError,
        r"plain array.*rmsjit\.Variable",
    )


@every_face
def test_a_variable_that_the_loss_does_not_use_is_left_with_a_warning(form):
    used, unused = Variable(np.array([1.0])), Variable(np.array([1.0]), name="unused")
    optimizer = form.optimizer(0.1)
    with pytest.warns(RuntimeWarning, match=r"no gradient for variable 1 \(unused:0\)") as record:
        minimize(optimizer, lambda: used**2, [used, unused])
    assert len(record) == 1
    assert float(used[0]) < 1
    assert float(unused[0]) == 1
    assert not any("unused" in weight.name for weight in optimizer.variables())


@every_face
def test_a_loss_that_uses_no_variable_is_refused(form):
    v, optimizer = Variable(1.0, name="unused"), form.optimizer()
    for loss in (lambda: 1.0, lambda: v.numpy() ** 2, lambda: (v > 0).sum(), lambda: float(v)):
        unchanged_by(
            functools.partial(minimize, optimizer, loss, [v]),
            optimizer,
            [v],
            ValueError,
            r"or the loss depends on none: variable 0 \(unused:0\)",
        )


@every_face
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(form, dtype):
    v = Variable(np.array([1.0, -2.0], dtype))
    minimize(form.optimizer(0.1), lambda: anp.sum(anp.abs(v) ** 2), [v])
    assert v.dtype == dtype
    assert same_bits(v, stepped(form, np.array([1.0, -2.0], dtype), [np.array([2, -4], dtype)]))


def test_a_constraint_is_applied_after_the_step():
    v = Variable(np.array([0.25, 2.0]), constraint=lambda value: np.clip(value, 0, 1))
    rmsjit.RMSprop(0.1).minimize(lambda: v**2, [v])
    plain = stepped(KERAS[0], [0.25, 2.0], [np.array([0.5, 4.0])])
    assert same_bits(v, np.clip(plain, 0, 1))
    assert plain[0] < 0 < 1 < plain[1]


# --- Sparse gradients ------------------------------------------------------------------------


@every_face
def test_gather_makes_a_step_of_rows(form):
    table = Variable(np.ones((5, 2)), name="table")
    optimizer = form.optimizer(0.1)
    minimize(optimizer, lambda: (gather(table, [3, 1, 3]) ** 2).sum(), [table])
    expected = np.ones((5, 2))
    slices = IndexedSlices(np.full((3, 2), 2.0), [3, 1, 3], (5, 2))
    form.optimizer(0.1).apply_gradients([(slices, expected)])
    assert same_bits(table, expected)
    assert np.flatnonzero(table[:, 0] != 1).tolist() == [1, 3]
    assert table[3, 0] < 1


@every_face
def test_gather_of_a_variable_with_a_constraint_is_refused(form):
    table = Variable(np.ones((5, 2)), constraint=np.abs)
    optimizer = form.optimizer()
    unchanged_by(
        lambda: minimize(optimizer, lambda: gather(table, [1]), [table]),
        optimizer,
        [table],
        RuntimeError,
        "constraint",
    )


@every_face
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_exact_rows_are_brought_up_to_date_before_they_are_read(form, momentum):
    """The losses, and so the whole run, are those of dense steps."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=(6, 3))
    exact, dense = Variable(start.copy()), Variable(start.copy())
    make = functools.partial(Form(form.face, True, momentum).optimizer, 0.1)
    optimizers = make(sparse="exact"), make()
    losses = [], []
    for step in range(12):
        ids = rng.integers(0, 6, 4) if step != 5 else np.array([0, 0, 5, 5])
        target = rng.normal(size=(4, 3))

        def by_rows(ids=ids, target=target):
            losses[0].append(((gather(exact, ids) - target) ** 2).sum())
            return losses[0][-1]

        def by_all(ids=ids, target=target):
            losses[1].append(((dense[ids] - target) ** 2).sum())
            return losses[1][-1]

        minimize(optimizers[0], by_rows, [exact])
        minimize(optimizers[1], by_all, [dense])
    one, two = [np.array([float(loss) for loss in found]) for found in losses]
    np.testing.assert_allclose(one, two, rtol=1e-9)
    optimizers[0].sync()
    np.testing.assert_allclose(exact, dense, rtol=1e-9, atol=1e-12)


# --- get_gradients and get_updates -----------------------------------------------------------


def test_get_gradients():
    a, b, table = Variable(np.array([1.0, 2.0])), Variable(np.array(3.0)), Variable(np.ones((4, 2)))
    optimizer = rmsjit.RMSprop(0.1)
    before = state_of(optimizer, [a, b, table])
    gradients = optimizer.get_gradients(
        lambda: anp.sum(a * b) + gather(table, [2]).sum(), {"z": table, "a": [a, b]}
    )
    assert [np.shape(gradient) for gradient in gradients[:2]] == [(2,), ()]
    assert gradients[0].tolist() == [3, 3]
    assert gradients[1] == 3
    assert isinstance(gradients[2], IndexedSlices)
    assert gradients[2].indices.tolist() == [2]
    assert state_of(optimizer, [a, b, table]) == before


def test_get_gradients_of_what_the_loss_does_not_use():
    v, unused = Variable(1.0), Variable(1.0, name="unused")
    optimizer = rmsjit.RMSprop()
    for ask in (optimizer.get_gradients, optimizer.get_updates):
        unchanged_by(
            functools.partial(ask, lambda: v**2, [v, unused]),
            optimizer,
            [v, unused],
            ValueError,
            r"does not depend on variable 1 \(unused:0\)",
        )


def test_get_updates():
    a, b = Variable(np.array([1.0, 2.0])), Variable(np.array(3.0))
    optimizer = rmsjit.RMSprop(0.1)
    updates = optimizer.get_updates(lambda: anp.sum(a**2 * b), {"b": b, "a": [a]})
    assert len(updates) == 1
    assert updates[0] is optimizer.iterations
    assert int(optimizer.iterations) == 1
    assert same_bits(a, stepped(KERAS[0], [1.0, 2.0], [np.array([6.0, 12.0])]))
    assert same_bits(b, stepped(KERAS[0], 3.0, [np.array(5.0)]))


# --- compute_gradients -----------------------------------------------------------------------


class Model:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, w):
        return self.factor * anp.sum(w**2)

    def loss(self, w):
        return self(w)

    @staticmethod
    def fixed(w):
        return Model(3.0)(w)


TAKING_THE_VARIABLES = {
    "lambda": lambda w: anp.sum(3.0 * w**2),
    "any number": lambda *ws: sum(anp.sum(3.0 * w**2) for w in ws),
    "further with defaults": lambda w, factor=3.0: anp.sum(factor * w**2),
    "positional only": lambda w, /: anp.sum(3.0 * w**2),
    "partial": functools.partial(lambda factor, w: anp.sum(factor * w**2), 3.0),
    "partial by keyword": functools.partial(lambda w, factor: anp.sum(factor * w**2), factor=3.0),
    "object": Model(3.0),
    "method": Model(3.0).loss,
    "static method": Model.fixed,
}


@pytest.mark.parametrize("loss", TAKING_THE_VARIABLES.values(), ids=TAKING_THE_VARIABLES)
@pytest.mark.parametrize("wrap", [np.array, lambda value: Variable(np.array(value))])
def test_a_loss_takes_the_variables(loss, wrap):
    w = wrap([1.0, -2.0])
    [(gradient, variable)] = RMSPropOptimizer(0.1).compute_gradients(loss, [w])
    assert variable is w
    assert gradient.tolist() == [6, -12]
    RMSPropOptimizer(0.1).minimize(loss, var_list=[w])
    assert same_bits(w, stepped(TRAIN[0], [1.0, -2.0], [np.array([6.0, -12.0])]))


def test_a_loss_that_python_knows_no_arguments_of():
    w = np.array([1.0, -2.0])
    assert RMSPropOptimizer(0.1).compute_gradients(anp.sum, [w])[0][0].tolist() == [1, 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda w: lambda: anp.sum(w**2),
        lambda w: lambda factor=1.0: anp.sum(factor * w**2),
        lambda w: lambda *, factor=1.0: anp.sum(factor * w**2),
        lambda w: lambda **options: anp.sum(w**2),
        lambda w: functools.partial(lambda x: anp.sum(x**2), w),
    ],
)
def test_a_loss_without_arguments_reads_the_variables(make):
    """As TensorFlow's own code calls it, whatever its page says."""
    w = Variable(np.array([1.0, -2.0]))
    [(gradient, variable)] = RMSPropOptimizer(0.1).compute_gradients(make(w), [w])
    assert variable is w
    assert gradient.tolist() == [2, -4]


def test_arguments_are_in_the_order_of_the_variables():
    a, b, c = np.array(2.0), Variable(np.array(3.0)), np.array(5.0)
    pairs = RMSPropOptimizer(0.1).compute_gradients(lambda x, y, z: x + 10 * y + 100 * z, [a, b, c])
    assert [float(gradient) for gradient, _ in pairs] == [1, 10, 100]
    assert all(one is two for (_, one), two in zip(pairs, [a, b, c], strict=True))
    nested = {"c": c, "a": (a, b)}
    pairs = RMSPropOptimizer(0.1).compute_gradients(lambda x, y, z: x + 10 * y + 100 * z, nested)
    assert all(one is two for (_, one), two in zip(pairs, [a, b, c], strict=True))


@every_face
def test_a_loss_of_one_argument_gets_a_dictionary_whole(form):
    w, b = np.array([1.0, 2.0]), Variable(np.array(3.0))

    def loss(model):
        return anp.sum(model["dense"]["w"] ** 2) + 3 * model["b"]

    minimize(form.optimizer(0.1), loss, {"dense": {"w": w}, "b": b})
    assert same_bits(w, stepped(form, np.array([1.0, 2.0]), [np.array([2.0, 4.0])]))
    assert same_bits(b, stepped(form, np.array(3.0), [np.array(3.0)]))
    alone = np.array(2.0)
    minimize(form.optimizer(0.1), lambda model: model["w"] ** 2, {"w": alone})
    assert same_bits(alone, stepped(form, np.array(2.0), [np.array(4.0)]))


def test_too_many_or_too_few_arguments_are_the_users_error():
    v, optimizer = Variable(1.0), RMSPropOptimizer(0.1)
    for loss, var_list in [
        (lambda a, b: a * b, [v]),
        (lambda a: a, [v, Variable(1.0)]),
        (lambda a: a, None),
    ]:
        unchanged_by(
            functools.partial(optimizer.minimize, loss, var_list=var_list),
            optimizer,
            [v],
            TypeError,
            "argument",
        )


def test_all_trainable_variables_that_the_loss_reads():
    a, b = Variable(np.array(2.0)), Variable(np.array(3.0))
    frozen, elsewhere = Variable(np.array(5.0), trainable=False), Variable(np.array(1.0))
    optimizer = RMSPropOptimizer(0.1)
    pairs = optimizer.compute_gradients(lambda: frozen * b**2 * a)
    assert [variable for _, variable in pairs] == [b, a]
    assert [float(gradient) for gradient, _ in pairs] == [60, 45]
    optimizer.minimize(lambda: frozen * b**2 * a)
    assert float(a) < 2
    assert float(b) < 3
    assert float(frozen) == 5
    assert float(elsewhere) == 1


def test_variables_that_the_loss_makes():
    made = {}

    def layer(name, value):
        if name not in made:
            made[name] = Variable(np.array(value), name=name)
        return made[name]

    def loss():
        return (layer("w", 2.0) * 3.0 + layer("b", 1.0)) ** 2

    optimizer, step = RMSPropOptimizer(0.1, momentum=0.5), np.zeros((), np.int64)
    losses = []
    for _ in range(5):
        losses.append(float(loss()))
        optimizer.minimize(loss, step)
    assert int(step) == 5
    assert losses == sorted(losses, reverse=True)
    assert [weight.name for weight in optimizer.variables()] == [
        "RMSProp/w/rms:0",
        "RMSProp/w/momentum:0",
        "RMSProp/b/rms:0",
        "RMSProp/b/momentum:0",
    ]


def test_a_loss_that_reads_no_variable():
    optimizer = RMSPropOptimizer(0.1)
    assert optimizer.compute_gradients(lambda: 1.0) == []
    unchanged_by(
        lambda: optimizer.minimize(lambda: 1.0), optimizer, [], ValueError, "at least one variable"
    )


def test_gradients_are_dense_or_sparse_or_none():
    dense, table, unused = np.ones(2), np.ones((4, 2)), np.ones(3)
    optimizer = RMSPropOptimizer(0.1)
    before = state_of(optimizer, [dense, table, unused])
    pairs = optimizer.compute_gradients(
        lambda d, t, _: anp.sum(d) * anp.sum(gather(t, [3, 0])), [dense, table, unused]
    )
    assert state_of(optimizer, [dense, table, unused]) == before
    assert [type(gradient) for gradient, _ in pairs] == [
        np.ndarray,
        IndexedSlices,
        types.NoneType,
    ]
    assert pairs[1][0].indices.tolist() == [3, 0]
    with pytest.warns(RuntimeWarning, match="variable 2"):
        optimizer.apply_gradients(pairs)
    assert np.flatnonzero(table[:, 0] != 1).tolist() == [0, 3]


def test_gradients_may_be_changed_before_they_are_applied():
    w = np.array([1.0, -2.0])
    optimizer = RMSPropOptimizer(0.1)
    pairs = optimizer.compute_gradients(lambda w: (w**2).sum(), [w])
    optimizer.apply_gradients([(np.clip(gradient, -1, 1), v) for gradient, v in pairs])
    assert same_bits(w, stepped(TRAIN[0], [1.0, -2.0], [np.array([1.0, -1.0])]))


def test_a_gradient_is_no_view_of_anything():
    v, w = np.array([1.0, 2.0]), np.array([1.0, 2.0])
    pairs = RMSPropOptimizer(0.1).compute_gradients(lambda a, b: (a + b).sum(), [v, w])
    pairs[0][0][:] = 7
    assert pairs[1][0].tolist() == [1, 1]
    assert v.tolist() == [1, 2]


GRAPH_ARGUMENTS = {
    "gate_gradients": ([0, 1, 2, np.int64(1)], [3, -1, None, "GATE_OP", 0.5, [1]]),
    "aggregation_method": ([None, 0, 1, 2], [3, -1, "add", 0.5]),
    "colocate_gradients_with_ops": ([True, False, np.bool_(True)], [None, 1, "yes"]),
}


@pytest.mark.parametrize("name", GRAPH_ARGUMENTS)
def test_arguments_of_the_graph_are_checked_and_ignored(name):
    good, bad = GRAPH_ARGUMENTS[name]
    for value in good:
        w = np.array([1.0, -2.0])
        RMSPropOptimizer(0.1).minimize(lambda w: (w**2).sum(), var_list=[w], **{name: value})
        assert same_bits(w, stepped(TRAIN[0], [1.0, -2.0], [np.array([2.0, -4.0])]))
    w, optimizer, called = np.array([1.0]), RMSPropOptimizer(0.1), []

    def loss(w):
        called.append(1)
        return w**2

    for value in bad:
        for ask in (optimizer.compute_gradients, optimizer.minimize):
            unchanged_by(
                functools.partial(ask, loss, var_list=[w], **{name: value}),
                optimizer,
                [w],
                ValueError,
                f"{name} must be",
            )
    assert called == []


def test_arguments_by_position():
    w, step = np.array([1.0, -2.0]), np.array(0)
    weights = np.array([1.0, 10.0])
    gates = RMSPropOptimizer.GATE_GRAPH
    optimizer = RMSPropOptimizer(0.1)
    optimizer.minimize(lambda w: w**2, step, [w], gates, 0, True, "train", weights)
    assert int(step) == 1
    assert same_bits(w, stepped(TRAIN[0], [1.0, -2.0], [np.array([2.0, -40.0])]))
    [(gradient, _)] = optimizer.compute_gradients(
        lambda w: w, [w], RMSPropOptimizer.GATE_NONE, 2, False, weights
    )
    assert gradient.tolist() == [1, 10]


# --- global_step -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
@pytest.mark.parametrize("wrap", [np.array, Variable])
def test_the_global_step_goes_up_after_the_update(wrap, dtype):
    step, seen = wrap(np.array(3, dtype)), []
    w = Variable([1.0, 2.0], constraint=lambda value: seen.append(int(step)) or value)
    optimizer = RMSPropOptimizer(0.1)
    for count in (4, 5):
        optimizer.minimize(lambda w: (w**2).sum(), step, [w])
        assert int(step) == count
    assert seen == [3, 4]
    assert np.asarray(step).dtype == dtype


def test_two_optimizers_count_one_global_step():
    step, v = np.array(0), Variable([1.0, 2.0])
    one, two = RMSPropOptimizer(0.1), RMSPropOptimizer(lambda: 0.1 / (1 + int(step)))
    for _ in range(3):
        one.minimize(lambda: v**2, step)
        two.minimize(lambda: v**2, step)
    assert int(step) == 6


@pytest.mark.parametrize(
    "step", [0, 0.0, "0", True, np.int64(0), np.array(0.0), np.zeros(1, int), Variable(0.0), [0]]
)
def test_what_cannot_count_is_refused(step):
    v, optimizer = Variable([1.0, 2.0]), RMSPropOptimizer(0.1)
    unchanged_by(
        lambda: optimizer.minimize(lambda: v**2, step), optimizer, [v], TypeError, "global_step"
    )


def test_the_global_step_stays_where_a_step_fails():
    v, step, optimizer = Variable([1.0, 2.0]), np.array(5), RMSPropOptimizer(0.1)
    for pairs in ([(None, v)], [(np.ones(3), v)], [("gradient", v)], []):
        with pytest.raises((TypeError, ValueError)):
            optimizer.apply_gradients(pairs, step)
    assert int(step) == 5


def test_iterations_shared_by_two_optimizers():
    step = Variable(np.array(0), name="step")
    schedule = rmsjit.schedules.PiecewiseConstantDecay([0], [0.1, 0.0])
    one, two = rmsjit.RMSprop(0.1), rmsjit.RMSprop(schedule)
    one.iterations = two.iterations = step
    a, b = Variable(1.0), Variable(1.0)
    assert one.minimize(lambda: a**2, [a]) is step
    assert two.minimize(lambda: b**2, [b]) is step  # its first step, but the second of all
    assert float(b) == 1
    assert int(step) == int(one.iterations) == int(two.iterations) == 2
    assert one.get_weights()[0] == two.get_weights()[0] == 2
    two.iterations = 7  # a number goes into the shared counter
    assert int(one.iterations) == 7


# --- Hooks: what they see --------------------------------------------------------------------


class Noting(rmsjit.RMSprop):
    """Notes every hook and what it is given."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.notes = []

    def _transform_unaggregated_gradients(self, grads_and_vars):
        self.notes.append(("unaggregated", list(grads_and_vars)))
        return super()._transform_unaggregated_gradients(grads_and_vars)

    def _aggregate_gradients(self, grads_and_vars):
        self.notes.append(("aggregate", list(grads_and_vars)))
        return super()._aggregate_gradients(grads_and_vars)

    def _transform_gradients(self, grads_and_vars):
        self.notes.append(("transform", list(grads_and_vars)))
        pairs = super()._transform_gradients(grads_and_vars)
        self.notes.append(("transformed", list(pairs)))
        return pairs

    def words(self):
        words = [word for word, _ in self.notes]
        self.notes.clear()
        return words


def test_hooks_are_called_in_order():
    v, words = Variable(1.0), []

    def note(word):
        return lambda pairs: words.append(word) or pairs

    optimizer = Noting(
        gradient_aggregator=note("aggregator"),
        gradient_transformers=[note("first"), note("second")],
    )
    optimizer.minimize(lambda: v**2, [v])
    assert optimizer.words() == ["unaggregated", "aggregate", "transform", "transformed"]
    assert words == ["aggregator", "first", "second"]
    words.clear()
    optimizer.apply_gradients([(1.0, v)], experimental_aggregate_gradients=False)
    assert optimizer.words() == ["transform", "transformed"]
    assert words == ["first", "second"]


def test_hooks_are_not_called_for_nothing():
    v, optimizer = Variable(1.0), Noting()
    optimizer.apply_gradients([])
    with pytest.raises(ValueError, match="no gradient"):
        optimizer.apply_gradients([(None, v)])
    with pytest.raises(ValueError, match="shape"):
        optimizer.apply_gradients([([1.0], v)])
    assert optimizer.words() == []


@pytest.mark.parametrize("clip", [{}, {"clipvalue": 1.0}, {"clipnorm": 1.0}])
def test_hooks_see_arrays_and_the_variables_that_were_given(clip):
    a, b, c = Variable(np.array(2.0)), np.ones(2, np.float32), np.ones((3, 2))
    unused = Variable(np.ones(2))
    slices = IndexedSlices(np.ones((2, 2)), [2, 0])
    optimizer = Noting(**clip)
    with pytest.warns(RuntimeWarning, match="variable 3"):
        optimizer.apply_gradients([(7.0, a), ([1.0, 2.0], b), (slices, c), (None, unused)])
    for word, pairs in optimizer.notes:
        assert len(pairs) == 3, word
        assert all(one is two for (_, one), two in zip(pairs, [a, b, c], strict=True))
        assert [type(gradient) for gradient, _ in pairs] == [np.ndarray, np.ndarray, IndexedSlices]
        assert [np.shape(gradient) for gradient, _ in pairs[:2]] == [(), (2,)]
        assert pairs[2][0].indices.tolist() == [2, 0]


def test_transformers_come_after_clipping():
    seen = []
    v = np.zeros(2)
    optimizer = rmsjit.RMSprop(
        clipvalue=4.0, clipnorm=1.0, gradient_transformers=[lambda p: seen.append(p[0][0]) or p]
    )
    optimizer.apply_gradients([(np.array([3.0, 100.0]), v)])
    np.testing.assert_allclose(seen[0], [0.6, 0.8], rtol=1e-15)
    assert optimizer.get_slot(v, "rms").numpy() == pytest.approx([0.036, 0.064])


@pytest.mark.parametrize("clip", [{"clipvalue": 1.0}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}])
def test_what_a_transformer_gives_is_not_clipped_again(clip):
    v = np.array([1.0, 2.0])
    optimizer = rmsjit.RMSprop(
        0.1, **clip, gradient_transformers=[lambda pairs: [(8 * g, v) for g, v in pairs]]
    )
    for _ in range(2):
        optimizer.apply_gradients([(np.array([3.0, 0.0]), v)])
    assert same_bits(v, stepped(KERAS[0], [1.0, 2.0], [np.array([8.0, 0.0])] * 2))


def test_the_aggregator_comes_before_clipping():
    """And gives pairs, as that of tf-keras does."""
    v, seen = np.zeros(2), []

    def summed(pairs):
        seen.extend(pairs)
        return [(2 * gradient, variable) for gradient, variable in pairs]

    optimizer = rmsjit.RMSprop(0.1, clipvalue=1.0, gradient_aggregator=summed)
    optimizer.apply_gradients([(np.array([0.25, -3.0]), v)])
    assert seen[0][1] is v
    assert same_bits(v, stepped(KERAS[0], [0.0, 0.0], [np.array([0.5, -1.0])]))
    optimizer.apply_gradients([(np.ones(2), v)], experimental_aggregate_gradients=False)
    assert len(seen) == 1


def test_an_overridden_aggregation_gives_pairs_as_in_tf_keras():
    class Doubling(rmsjit.RMSprop):
        def _aggregate_gradients(self, grads_and_vars):
            return [(2 * gradient, variable) for gradient, variable in grads_and_vars]

    v = np.array([1.0, 2.0])
    Doubling(0.1).apply_gradients([(np.array([1.0, -3.0]), v)])
    assert same_bits(v, stepped(KERAS[0], [1.0, 2.0], [np.array([2.0, -6.0])]))


def test_transformers_follow_one_another():
    v = np.array([1.0, 2.0])
    optimizer = rmsjit.RMSprop(
        0.1,
        gradient_transformers=[
            lambda pairs: [(gradient + 1, variable) for gradient, variable in pairs],
            lambda pairs: ((2 * gradient, variable) for gradient, variable in pairs),
        ],
    )
    optimizer.apply_gradients([(np.array([1.0, -3.0]), v)])
    assert same_bits(v, stepped(KERAS[0], [1.0, 2.0], [np.array([4.0, -4.0])]))


def test_transformers_may_be_added_later():
    v = np.array([1.0, 2.0])
    optimizer = rmsjit.RMSprop(0.1)
    assert optimizer.gradient_transformers == []
    assert optimizer.gradient_aggregator is None
    optimizer.apply_gradients([(np.ones(2), v)])
    optimizer.gradient_transformers.append(lambda pairs: [(3 * g, v) for g, v in pairs])
    optimizer.apply_gradients([(np.ones(2), v)])
    assert same_bits(v, stepped(KERAS[0], [1.0, 2.0], [np.ones(2), np.full(2, 3.0)]))


def test_a_transformer_may_leave_variables_out():
    a, b = np.ones(2), np.ones(2)
    optimizer = rmsjit.RMSprop(0.1, gradient_transformers=[lambda pairs: pairs[1:]])
    optimizer.apply_gradients([(np.ones(2), a), (np.ones(2), b)])
    assert a.tolist() == [1, 1]
    assert same_bits(b, stepped(KERAS[0], [1.0, 1.0], [np.ones(2)]))


def test_a_transformer_may_make_a_gradient_sparse_or_dense():
    a, b = np.ones((3, 2)), np.ones((3, 2))
    slices = IndexedSlices(np.full((1, 2), 2.0), [1], (3, 2))

    def swap(pairs):
        (dense, one), (rows, two) = pairs
        return [(IndexedSlices(dense[:1], [0]), one), (rows.to_dense(), two)]

    optimizer = rmsjit.RMSprop(0.1, gradient_transformers=[swap])
    optimizer.apply_gradients([(np.ones((3, 2)), a), (slices, b)])
    assert np.flatnonzero(a[:, 0] != 1).tolist() == [0]
    assert np.flatnonzero(b[:, 0] != 1).tolist() == [1]


@pytest.mark.parametrize(
    ("transform", "error"),
    [
        (lambda pairs: None, TypeError),
        (lambda pairs: 3, TypeError),
        (lambda pairs: [gradient for gradient, _ in pairs], TypeError),
        (lambda pairs: [(gradient[:1], variable) for gradient, variable in pairs], ValueError),
        (lambda pairs: [(None, variable) for _, variable in pairs], ValueError),
        (lambda pairs: [(1j * gradient, variable) for gradient, variable in pairs], TypeError),
        (lambda pairs: [(gradient, "variable") for gradient, _ in pairs], TypeError),
        (lambda pairs: 1 / 0, ZeroDivisionError),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_what_a_transformer_gives_is_checked(transform, error, later):
    v = np.ones(2)
    optimizer = rmsjit.RMSprop(0.1)
    if later:
        optimizer.apply_gradients([(np.ones(2), v)])
    optimizer.gradient_transformers.append(transform)
    for _ in range(2):
        unchanged_by(lambda: optimizer.apply_gradients([(np.ones(2), v)]), optimizer, [v], error)


def test_a_subclass_made_at_run_time():
    """As wrappers of optimizers do: a class over the class of the one that they are given."""

    def _aggregate_gradients(self, grads_and_vars):
        return [(gradient / 2, variable) for gradient, variable in grads_and_vars]

    given = rmsjit.RMSprop(0.1, clipnorm=1.0)
    body = {"_aggregate_gradients": _aggregate_gradients}
    optimizer = type("Wrapped", (type(given),), body).from_config(given.get_config())
    v = np.array([1.0, 2.0])
    optimizer.apply_gradients([(np.array([1.0, -1.0]), v)])
    assert same_bits(v, stepped(KERAS[0], [1.0, 2.0], [np.array([0.5, -0.5])]))


class Scaled(rmsjit.RMSprop):
    """A subclass with an argument of its own, as users write it."""

    def __init__(self, learning_rate=0.1, scale=1.0, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.scale = scale

    def _transform_gradients(self, grads_and_vars):
        pairs = super()._transform_gradients(grads_and_vars)
        return [(self.scale * gradient, variable) for gradient, variable in pairs]

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


def test_a_subclass_with_an_argument_of_its_own():
    first = Scaled(scale=4.0, clipvalue=1.0)
    config = json.loads(json.dumps(first.get_config()))
    assert config["scale"] == 4
    for optimizer in (first, Scaled.from_config(config)):
        v = np.array([1.0, 2.0])
        optimizer.apply_gradients([(np.array([0.5, -3.0]), v)])
        assert same_bits(v, stepped(KERAS[0], [1.0, 2.0], [np.array([2.0, -4.0])]))
    assert type(Scaled.from_config(config)) is Scaled
    assert "scale=4.0" in repr(first)


class Replicas:
    """A strategy of two replicas with equal gradients."""

    def __init__(self):
        self.calls = []

    def reduced(self, engine, request):
        pairs = request.pairs
        self.calls.append((request.aggregate, [np.array(gradient) for gradient, _ in pairs]))
        if request.aggregate:
            pairs = tuple((2 * gradient, variable) for gradient, variable in pairs)
        values = request.hyperparameters.at(request.counter)
        return Reduced(pairs, values, request.clipping)


class Reduced(NamedTuple):
    """The stage of a step that needs no other process."""

    pairs: tuple
    values: tuple
    clipping: object
    scale: float = 1.0

    def whole(self, norms):
        return norms

    def own(self, factors):
        return factors

    def name(self, position):
        return str(position)

    def share(self):
        pass


def test_a_strategy_sums_unless_told_otherwise():
    for aggregate, total in [(True, 2.0), (False, 1.0)]:
        v, strategy = np.array([1.0, 2.0]), Replicas()
        optimizer = rmsjit.RMSprop(0.1, strategy=strategy)
        optimizer.apply_gradients([(np.ones(2), v)], experimental_aggregate_gradients=aggregate)
        assert same_bits(v, stepped(KERAS[0], [1.0, 2.0], [np.full(2, total)]))
        assert strategy.calls[0][0] is aggregate


def test_an_aggregator_takes_the_place_of_the_strategy():
    v, strategy = np.array([1.0, 2.0]), Replicas()
    optimizer = rmsjit.RMSprop(
        0.1,
        clipvalue=10.0,
        strategy=strategy,
        gradient_aggregator=lambda pairs: [(7 * gradient, v) for gradient, v in pairs],
        gradient_transformers=[lambda pairs: [(gradient - 1, v) for gradient, v in pairs]],
    )
    optimizer.apply_gradients([(np.array([1.0, 3.0]), v)])
    [(aggregate, [gradient])] = strategy.calls
    assert aggregate is False
    assert gradient.tolist() == [6, 9]
    assert same_bits(v, stepped(KERAS[0], [1.0, 2.0], [np.array([6.0, 9.0])]))


def test_transformers_are_not_left_out_under_a_strategy():
    """They see sums, as in tf-keras; or the step is refused, but not taken without them."""
    v, seen = np.array([1.0, 2.0]), []

    def note(pairs):
        seen.append([gradient.tolist() for gradient, _ in pairs])
        return pairs

    optimizer = rmsjit.RMSprop(0.1, strategy=Replicas(), gradient_transformers=[note])
    try:
        optimizer.apply_gradients([(np.ones(2), v)])
    except NotImplementedError:
        assert v.tolist() == [1, 2]
    else:
        assert seen == [[[2.0, 2.0]]]


# --- Hooks: identities -----------------------------------------------------------------------


class Passing(rmsjit.RMSprop):
    def _transform_gradients(self, grads_and_vars):
        return super()._transform_gradients(grads_and_vars)


HOOKED = {
    "transformer": functools.partial(rmsjit.RMSprop, gradient_transformers=[lambda pairs: pairs]),
    "generator": functools.partial(
        rmsjit.RMSprop, gradient_transformers=[lambda pairs: (pair for pair in pairs)]
    ),
    "subclass": Passing,
    "noting": Noting,
}
CLIPS = {
    "no clip": {},
    "clipvalue": {"clipvalue": 0.5},
    "clipnorm": {"clipnorm": 0.7},
    "global_clipnorm": {"global_clipnorm": 0.7},
    "value and norm": {"clipvalue": 0.5, "clipnorm": 0.7},
    "value and global norm": {"clipvalue": 0.5, "global_clipnorm": 0.7},
    "idle norm": {"clipnorm": 1e6},
    "idle global norm": {"global_clipnorm": 1e6},
}


def steps_of(make, pairs_of, clip, form=KERAS[0], **arguments):
    """The weights and variables after three steps."""
    optimizer = make(0.01, momentum=form.momentum, centered=form.centered, **clip, **arguments)
    made = [pairs_of(step) for step in range(3)]
    variables = [np.array(variable) for _, variable in made[0]]
    for pairs in made:
        gradients = [gradient for gradient, _ in pairs]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return [*variables, *optimizer.get_weights()], optimizer.skipped_steps


SHAPES = ((3, 4), (5,), (), (40, 50), (0,))


def random_pairs(dtype, shapes=SHAPES, change=np.asarray, decades=1):
    """For each step, gradients with variables of ones."""

    def pairs_of(step):
        rng = np.random.default_rng(step)
        variables = [np.ones(shape, dtype) for shape in shapes]
        return [(change(random_array(rng, v.shape, dtype, decades)), v) for v in variables]

    return pairs_of


def assert_same(one, two):
    assert one[1] == two[1]
    for first, second in zip(one[0], two[0], strict=True):
        np.testing.assert_array_equal(first, second)
        assert same_bits(first, second)


CLIPPED_DTYPES = [
    (dtype, clip)
    for dtype in ("float32", "float64", "complex64", "complex128")
    for clip in CLIPS
    if not (dtype.startswith("complex") and "value" in clip)  # they have no order to clip by
]


@pytest.mark.slow
@pytest.mark.parametrize("hook", HOOKED)
@pytest.mark.parametrize(("dtype", "clip"), CLIPPED_DTYPES)
def test_hooks_that_change_nothing_change_no_bit(hook, dtype, clip):
    pairs_of = random_pairs(dtype)
    plain = steps_of(rmsjit.RMSprop, pairs_of, CLIPS[clip], BOTH)
    assert_same(steps_of(HOOKED[hook], pairs_of, CLIPS[clip], BOTH), plain)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_hooks_round_half_types_once_more(clip, dtype):
    """What a hook sees has the dtype of the variable, so that a clipped gradient is rounded."""
    pairs_of = random_pairs(dtype, decades=0)
    plain, hooked = (
        steps_of(make, pairs_of, CLIPS[clip]) for make in (rmsjit.RMSprop, HOOKED["transformer"])
    )
    ulp = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for first, second in zip(plain[0], hooked[0], strict=True):
        np.testing.assert_allclose(
            np.asarray(first, "f8"), np.asarray(second, "f8"), rtol=16 * ulp, atol=1e-6
        )


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(
    "change",
    [
        lambda g: np.round(3 * g).astype("int8"),
        lambda g: g > 0,
        lambda g: np.round(g).astype(int).tolist(),
        np.ndarray.tolist,
        lambda g: g.astype("float32"),
        lambda g: g.astype("float16"),
        lambda g: g.astype(">f8"),
        lambda g: np.array(g, order="F"),
        lambda g: Variable(g.copy()),
        lambda g: np.broadcast_to(np.float64(3.0), g.shape),
    ],
)
def test_hooks_that_change_nothing_with_gradients_of_any_kind(clip, change):
    pairs_of = random_pairs("float64", ((3, 4), (5,), ()), change)
    plain = steps_of(rmsjit.RMSprop, pairs_of, CLIPS[clip])
    assert_same(steps_of(HOOKED["transformer"], pairs_of, CLIPS[clip]), plain)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_hooks_that_change_nothing_with_variables_of_any_order(clip, order):
    """A norm is summed in the order of the variable's memory."""

    def pairs_of(step):
        rng = np.random.default_rng(step)
        variable = np.ones((40, 50), order="F")
        return [(np.array(rng.normal(size=(40, 50)), order=order), variable)]

    plain = steps_of(rmsjit.RMSprop, pairs_of, CLIPS[clip])
    assert_same(steps_of(HOOKED["transformer"], pairs_of, CLIPS[clip]), plain)


@pytest.mark.parametrize("clip", CLIPS)
def test_hooks_that_change_nothing_with_one_variable_twice(clip):
    def step(make):
        v = np.ones(3)
        optimizer = make(0.1, **CLIPS[clip])
        optimizer.apply_gradients([([1.0, 2.0, 3.0], v), ([-3.0, 0.0, 1.0], v)])
        return [v, *optimizer.get_weights()], 0

    assert_same(step(HOOKED["transformer"]), step(rmsjit.RMSprop))


@every_pair(clip=CLIPS, dtype=["float32", "float64", "int16"], sparse=["rows", "exact"])
def test_hooks_that_change_nothing_with_sparse_gradients(clip, sparse, dtype):
    def pairs_of(step):
        rng = np.random.default_rng(step)
        values = (3 * random_array(rng, (6, 4), "float64", 1)).astype(dtype)
        slices = IndexedSlices(values, rng.integers(0, 5, 6))  # duplicates among them
        variable = np.ones((7, 4), "float64" if dtype == "int16" else dtype)
        return [(slices, variable), (np.full(3, 0.25, variable.dtype), np.ones(3, variable.dtype))]

    plain = steps_of(rmsjit.RMSprop, pairs_of, CLIPS[clip], BOTH, sparse=sparse)
    assert_same(steps_of(HOOKED["subclass"], pairs_of, CLIPS[clip], BOTH, sparse=sparse), plain)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(
    ("poison", "nonfinite"),
    [
        *[(poison, mode) for poison in (np.nan, np.inf, -np.inf) for mode in ("propagate", "skip")],
        (1e300, "propagate"),  # whose square is not finite
    ],
)
def test_hooks_that_change_nothing_with_what_is_not_finite(clip, poison, nonfinite):
    def change(gradient):
        gradient = np.array(gradient)
        if gradient.size > 4:
            gradient.reshape(-1)[3] = poison
        return gradient

    pairs_of = random_pairs("float64", ((3, 4), (2,)), change)
    plain = steps_of(rmsjit.RMSprop, pairs_of, CLIPS[clip], nonfinite=nonfinite)
    hooked = steps_of(HOOKED["transformer"], pairs_of, CLIPS[clip], nonfinite=nonfinite)
    assert_same(hooked, plain)


def test_hooks_do_not_change_the_gradients_that_they_are_given():
    gradient, v = np.array([3.0, 4.0]), np.ones(2)
    for clip in CLIPS.values():
        HOOKED["transformer"](**clip).apply_gradients([(gradient, v)])
        assert gradient.tolist() == [3, 4]


# --- Slots of one's own ----------------------------------------------------------------------

INITIALIZERS = {
    "default": ([], np.zeros((2, 3))),
    "zeros": (["zeros"], np.zeros((2, 3))),
    "ones": (["ones"], np.ones((2, 3))),
    "array": ([np.arange(6.0).reshape(2, 3)], np.arange(6.0).reshape(2, 3)),
    "list": ([[[1, 2, 3], [4, 5, 6]]], np.arange(1.0, 7.0).reshape(2, 3)),
    "callable": ([lambda shape, dtype: np.full(shape, 7, dtype)], np.full((2, 3), 7.0)),
    "callable of another dtype": ([lambda shape, dtype: np.ones(shape, "f8")], np.ones((2, 3))),
}


@every_pair(name=INITIALIZERS, dtype=DTYPES, later=[False, True])
def test_a_slot_of_ones_own(name, dtype, later):
    arguments, expected = INITIALIZERS[name]
    v, optimizer = Variable(np.ones((2, 3), dtype), name="W"), rmsjit.RMSprop()
    if later:
        optimizer.apply_gradients([(np.ones((2, 3), dtype), v)])
    slot = optimizer.add_slot(v, "age", *arguments)
    assert slot.name == "RMSprop/W/age:0"
    assert same_bits(slot, expected.astype(dtype))
    assert not slot.trainable
    assert optimizer.get_slot(v, "age") is slot
    assert optimizer.add_slot(v, "age", "ones") is slot  # that of this name which it has
    assert same_bits(slot, expected.astype(dtype))
    assert optimizer.get_slot_names() == ["rms", "age"]
    assert optimizer.weights[-1] is slot
    assert len(optimizer.weights) == 2 + later
    slot.assign_add(np.ones((2, 3), dtype))  # the user's to change
    assert same_bits(optimizer.get_weights()[-1], (expected + 1).astype(dtype))


def test_an_initial_value_is_copied():
    given, v = np.zeros(2), Variable(np.ones(2))
    slot = rmsjit.RMSprop().add_slot(v, "own", given)
    weight = rmsjit.RMSprop().add_weight("own", (2,), "float64", given)
    given[:] = 7
    assert slot.tolist() == [0, 0]
    assert weight.tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(), (4,), [2, 1, 3], (0,)])
def test_a_slot_of_another_shape(shape):
    v, optimizer = Variable(np.ones(2)), rmsjit.RMSprop()
    slot = optimizer.add_slot(v, "own", "ones", shape)
    assert slot.shape == tuple(shape)
    assert np.all(slot.array == 1)
    asked = []
    optimizer.add_slot(
        v, "asked", lambda *given: asked.append(given) or np.zeros(given[0]), shape=shape
    )
    assert asked == [(tuple(shape), np.dtype("float64"))]
    assert optimizer.add_slot(v, "given", np.full(shape, 2.0), shape).shape == tuple(shape)


BAD_INITIALIZERS = [
    (["glorot"], ValueError, "initializer must be"),
    ([[1.0, 2.0, 3.0]], ValueError, r"initializer must give shape \(2,\), got \(3,\)"),
    ([lambda shape, dtype: np.zeros(3)], ValueError, r"must give shape \(2,\), got \(3,\)"),
    ([lambda shape, dtype: 1 / 0], ZeroDivisionError, "division"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "error", "match"),
    [
        *[("own", *case) for case in BAD_INITIALIZERS],
        *[("rms", *case) for case in BAD_INITIALIZERS],
        ("own", [np.zeros(2), (3,)], ValueError, r"must give shape \(3,\), got \(2,\)"),
        ("own", ["zeros", (-1,)], ValueError, "negative"),
        ("rms", ["zeros", (3,)], ValueError, "shape"),  # the rule needs that of the variable
    ],
)
def test_a_slot_that_cannot_be_made(name, arguments, error, match):
    v, optimizer = Variable(np.ones(2)), rmsjit.RMSprop()
    unchanged_by(lambda: optimizer.add_slot(v, name, *arguments), optimizer, [v], error, match)
    assert optimizer.get_slot_names() == ["rms"]


@pytest.mark.parametrize("wrong", [3.0, [1.0], None, np.ones(2, int)])
def test_a_slot_of_what_is_no_variable(wrong):
    optimizer = rmsjit.RMSprop()
    unchanged_by(lambda: optimizer.add_slot(wrong, "own"), optimizer, [], TypeError, "variable 0")


@pytest.mark.parametrize("name", ["rms", "momentum", "mg"])
@pytest.mark.parametrize("initializer", ["ones", lambda shape, dtype: np.full(shape, 2.0)])
def test_the_rules_own_slots_may_start_elsewhere(name, initializer):
    v = Variable(np.ones((2, 3)))
    optimizer = BOTH.optimizer()
    slot = optimizer.add_slot(v, name, initializer)
    start = 1.0 if initializer == "ones" else 2.0
    assert np.all(slot.array == start)
    optimizer.apply_gradients([(np.full((2, 3), 3.0), v)])
    twin, expected = BOTH.optimizer(), np.ones((2, 3))
    twin.build([expected])
    twin.get_slot(expected, name).assign(np.full((2, 3), start))
    twin.apply_gradients([(np.full((2, 3), 3.0), expected)])
    assert same_bits(v, expected)
    assert same_bits(optimizer.get_slot(v, name), twin.get_slot(expected, name))


def test_a_slot_that_the_rule_takes_up_later():
    """It starts from what is there under its name, and is there once."""
    v, optimizer = Variable(np.ones(2)), rmsjit.RMSprop(0.1)
    optimizer.apply_gradients([(np.ones(2), v)])
    optimizer.add_slot(v, "momentum", "ones")
    optimizer.momentum = 0.5
    before = np.array(v)
    optimizer.apply_gradients([(np.zeros(2), v)])
    assert optimizer.get_slot(v, "momentum").tolist() == [0.5, 0.5]
    assert (np.array(v) - before).tolist() == [-0.5, -0.5]
    assert [weight.name for weight in optimizer.weights] == [
        "RMSprop/iter:0",
        "RMSprop/Variable/rms:0",
        "RMSprop/Variable/momentum:0",
    ]


def test_a_slot_is_found_by_any_view_of_the_variable():
    array = np.ones((2, 3))
    optimizer = rmsjit.RMSprop()
    slot = optimizer.add_slot(Variable(array), "own", np.arange(6.0).reshape(2, 3))
    for view in (array, array[...], array.reshape(-1), Variable(array)):
        assert same_bits(optimizer.get_slot(view, "own").array, slot.array)
    with pytest.raises(KeyError, match="no slot 'own'"):
        optimizer.get_slot(np.ones((2, 3)), "own")
    with pytest.raises(KeyError, match="no slot 'other'"):
        optimizer.get_slot(array, "other")


# --- Weights of one's own --------------------------------------------------------------------


@pytest.mark.parametrize("name", INITIALIZERS)
@pytest.mark.parametrize("dtype", [None, "float64", "float16", "int64", "complex64"])
def test_a_weight_of_ones_own(name, dtype):
    arguments, expected = INITIALIZERS[name]
    optimizer = rmsjit.RMSprop(name="mine")
    initializer = arguments[0] if arguments else "zeros"
    weight = optimizer.add_weight("loss_scale", (2, 3), dtype, initializer)
    assert weight.name == "mine/loss_scale:0"
    assert same_bits(weight, expected.astype(dtype or "float32"))
    assert not weight.trainable
    assert optimizer.weights[1] is weight
    assert optimizer.variables()[1] is weight
    assert optimizer.add_weight("trained", (), trainable=True).trainable
    assert optimizer.get_slot_names() == ["rms"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"initializer": "glorot"}, ValueError),
        ({"initializer": [1.0]}, ValueError),
        ({"initializer": lambda shape, dtype: np.zeros(5)}, ValueError),
        ({"dtype": "nonsense"}, TypeError),
        ({"shape": (-1,)}, ValueError),
        ({"shape": "ab"}, ValueError),
        ({"synchronization": "auto"}, ValueError),
        ({"aggregation": "mean"}, ValueError),
    ],
)
def test_a_weight_that_cannot_be_made(arguments, error):
    optimizer = rmsjit.RMSprop()
    given = {"name": "own", "shape": (2, 3), **arguments}
    unchanged_by(lambda: optimizer.add_weight(**given), optimizer, [], error)


def test_added_weights_outlive_what_is_forgotten():
    optimizer, v = rmsjit.RMSprop(), np.ones(2)
    optimizer.build([v])
    optimizer.add_weight("own", (2,), initializer=[1.0, 2.0])
    optimizer.forget(v)
    optimizer.add_weight("own", (2,), initializer=[3.0, 4.0])
    assert [weight.tolist() for weight in optimizer.weights[1:]] == [[1, 2], [3, 4]]


def test_slots_and_weights_stand_in_the_order_of_creation():
    v = Variable(np.ones(2), name="v")
    w = Variable(np.ones((2, 3)), name="w")
    optimizer = rmsjit.RMSprop(momentum=0.5)
    optimizer.add_weight("first", (3,))
    optimizer.build([v])
    optimizer.add_slot(v, "own")
    optimizer.add_weight("second", ())
    optimizer.apply_gradients([(np.ones((2, 3)), w), (np.ones(2), v)])
    optimizer.add_slot(w, "own", shape=(4,))
    names = ["iter", "first", "v/rms", "v/momentum", "v/own", "second"]
    names += ["w/rms", "w/momentum", "w/own"]
    assert [weight.name for weight in optimizer.weights] == [f"RMSprop/{n}:0" for n in names]
    assert [weight.name for weight in optimizer.variables()] == [f"RMSprop/{n}:0" for n in names]
    assert optimizer.get_slot_names() == ["rms", "momentum", "own"]
    weights = optimizer.get_weights()
    assert [array.shape for array in weights] == [
        (), (3,), (2,), (2,), (2,), (), (2, 3), (2, 3), (4,),
    ]  # fmt: skip
    changed = [array + position for position, array in enumerate(weights, start=1)]
    optimizer.set_weights(changed)
    for weight, array in zip(optimizer.weights, changed, strict=True):
        assert same_bits(weight.array, array)
    optimizer.set_weights(changed[1:])
    assert int(optimizer.iterations) == 0
    assert same_bits(optimizer.get_weights()[1], changed[1])


def test_set_weights_names_what_does_not_fit():
    v, optimizer = Variable(np.ones(2), name="v"), rmsjit.RMSprop()
    optimizer.add_weight("own", (3,))
    optimizer.apply_gradients([(np.ones(2), v)])
    weights = optimizer.get_weights()
    for given, match in [
        (weights[:1], r"expected 3 weights \(or 2 without iterations\), got 1"),
        ([*weights, weights[0]], "got 4"),
        ([weights[0], weights[2], weights[1]], r"weights\[1\] must have the shape \(3,\).*own:0"),
        ([weights[0], weights[1], np.ones(5)], r"shape \(2,\) of RMSprop/v/rms:0, got \(5,\)"),
    ]:
        unchanged_by(
            functools.partial(optimizer.set_weights, given), optimizer, [v], ValueError, match
        )


# --- Gradients that are not finite -----------------------------------------------------------


@every_face
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["dense", "rows"])
def test_what_is_not_finite(form, poison, kind):
    values = np.array([1.0, poison])
    gradient = values if kind == "dense" else IndexedSlices(values, [0, 1])
    good = np.full(2, 0.5) if kind == "dense" else IndexedSlices([0.5, 0.5], [0, 1])

    v, other = Variable(np.ones(2), name="v"), Variable(np.ones(3), name="other")
    optimizer = form.optimizer(0.1)
    optimizer.apply_gradients([(np.ones(3), other), (gradient, v)])
    assert np.isnan(v[1])
    assert np.all(other.array < 1)
    assert optimizer.skipped_steps == 0

    for nonfinite in ("skip", "raise"):
        v, other = Variable(np.ones(2), name="v"), Variable(np.ones(3), name="other")
        optimizer = form.optimizer(0.1, nonfinite=nonfinite)
        for later in (0, 1):
            before = state_of(optimizer, [v, other])
            pairs = [(np.ones(3), other), (gradient, v)]
            if nonfinite == "raise":
                with pytest.raises(FloatingPointError, match=r"variable 1 \(v:0\) must be finite"):
                    optimizer.apply_gradients(pairs)
            else:
                optimizer.apply_gradients(pairs)
            assert optimizer.skipped_steps == (later + 1 if nonfinite == "skip" else 0)
            assert state_of(optimizer, [v, other]) == before
            optimizer.apply_gradients([(np.ones(3), other), (good, v)])
            assert state_of(optimizer, [v, other]) != before


def test_a_skipped_step_counts_nowhere_and_constrains_nothing():
    called = []
    v = Variable(np.ones(2), constraint=lambda value: called.append(1) or value)
    keras, step = rmsjit.RMSprop(nonfinite="skip"), np.array(0)
    assert keras.minimize(lambda: anp.sum(v * np.nan), [v]) is keras.iterations
    train = RMSPropOptimizer(0.1, nonfinite="skip")
    train.minimize(lambda: anp.sum(v * np.inf), step)
    assert called == []
    assert int(keras.iterations) == int(step) == 0
    assert keras.skipped_steps == train.skipped_steps == 1
    train.minimize(lambda: anp.sum(v), step)
    assert called == [1]
    assert int(step) == 1


def test_raising_leaves_the_global_step():
    v, step = Variable(np.ones(2)), np.array(0)
    optimizer = RMSPropOptimizer(0.1, nonfinite="raise")
    with pytest.raises(FloatingPointError):
        optimizer.minimize(lambda: anp.sum(v * np.nan), step)
    assert int(step) == 0
    assert v.tolist() == [1, 1]


@every_face
def test_large_finite_gradients_are_finite(form):
    v = Variable(np.ones(2, np.float32))
    optimizer = form.optimizer(0.1, nonfinite="raise")
    optimizer.apply_gradients([(np.full(2, 3e38, np.float32), v)])
    assert np.all(np.isfinite(v.array))


# --- Threads and names -----------------------------------------------------------------------


@every_face
@pytest.mark.parametrize("threads", [1, 2, 3, None])
def test_the_number_of_threads_changes_no_bit(form, threads):
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(600, 1000)).astype("f4")
    clip = {"global_clipnorm": 1.0} if form.face == "keras" else {}
    results = []
    for count in (1, threads):
        v = np.ones((600, 1000), "f4")
        optimizer = form.optimizer(0.1, num_threads=count, **clip)
        for _ in range(2):
            optimizer.apply_gradients([(gradient, v)])
        results.append(v)
    assert same_bits(*results)


@every_face
def test_names_of_steps_are_accepted(form):
    v, optimizer = Variable(1.0), form.optimizer(0.1)
    optimizer.apply_gradients([(1.0, v)], name="train")
    minimize(optimizer, lambda: v**2, [v], name="train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minimize(optimizer, lambda: v**2, [v], name=None)
    assert all("train" not in weight.name for weight in optimizer.variables())
