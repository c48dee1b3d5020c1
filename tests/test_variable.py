"""`Variable`: an array to NumPy, a variable to TensorFlow's users, light to make."""

import copy
import math
import pickle
import threading
from collections import deque

import autograd
import autograd.numpy as anp
import ml_dtypes
import numpy as np
import pytest

import rmsjit
from rmsjit.autodiff.tape import GradientTape
from rmsjit.variables import Variable, array_of, arrays_of


def test_an_array_is_held_and_anything_else_converted():
    array = np.arange(3.0)
    assert Variable(array).array is array
    assert Variable(Variable(array)).array is array
    assert Variable(array, dtype="float64").array is array
    assert Variable(array, dtype="float32").dtype == np.float32
    assert Variable([1.0]).dtype == np.float32
    assert Variable(1).dtype == np.int32
    assert Variable(1j).dtype == np.complex64
    assert Variable(np.float64(1)).dtype == np.float64
    assert Variable([1.0], dtype=ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
    assert Variable(lambda: np.ones((2, 3))).shape == (2, 3)
    with pytest.raises(TypeError, match="constraint must be callable"):
        Variable(array, constraint=3)


def test_attributes():
    v = Variable(np.ones((2, 3), np.float32), "w", constraint=np.abs)
    assert (v.name, v.shape, v.dtype, v.ndim, v.size, len(v)) == ("w:0", (2, 3), "float32", 2, 6, 2)
    assert (v.trainable, v.constraint) == (True, np.abs)
    assert Variable(1.0).name == "Variable:0"
    assert Variable(1.0, "w:1", trainable=False).name == "w:1"
    assert repr(v[:1]) == repr(v.array[:1])
    assert repr(Variable(2.0, "s")) == "<rmsjit.Variable 's:0' shape=() dtype=float32, numpy=2.0>"


def test_numpy_gives_a_copy_and_asarray_the_memory():
    v = Variable([1.0, 2.0])
    value, memory = v.numpy(), np.asarray(v)
    v.assign([3.0, 4.0])
    assert value.tolist() == [1, 2]
    assert memory is v.array
    assert memory.tolist() == v.value().tolist() == v.read_value().tolist() == [3, 4]
    assert type(Variable(1.0).numpy()) is np.float32
    assert np.array(v) is not v.array
    assert np.asarray(v, "float64").dtype == np.float64
    assert np.asarray(v, copy=True) is not v.array
    with pytest.raises(ValueError, match="needs a copy"):
        np.asarray(v, "float64", copy=False)


def test_assignments_are_in_place_and_checked():
    v = Variable([1.0, 2.0])
    array = v.array
    assert v.assign([5, 6]) is v
    assert v.assign_add([1, 1]) is v
    assert v.assign_sub(Variable([2.0, 3.0])) is v
    assert array.tolist() == [4, 4]
    v[0] = Variable(9.0)
    v[1:] += 1
    assert array.tolist() == [9, 5]
    for assign in (v.assign, v.assign_add, v.assign_sub):
        with pytest.raises(ValueError, match=r"shape \(2,\), got a value of \(\)"):
            assign(1.0)
        with pytest.raises(TypeError, match="dtype float32, got a value of complex128"):
            assign([1j, 1j])
    Variable([1.0], dtype=ml_dtypes.bfloat16).assign(np.ones(1))


def test_operators_give_arrays_and_in_place_operators_keep_the_variable():
    v = Variable([1.0, 2.0])
    array, before = v.array, v
    assert type(v + 1) is type(1 - v) is type(array * v) is type(v @ v[None].T) is np.ndarray
    assert (-v).tolist() == [-1, -2]
    assert (array - v).tolist() == [0, 0]
    assert (v == [1, 0]).tolist() == [True, False]
    assert (2**v // 2 % 2).tolist() == [1, 0]
    assert divmod(v, 2)[0].tolist() == [0, 1]
    v += [1, 1]
    v *= Variable(2.0)
    assert v is before
    assert array.tolist() == [4, 6]
    other = np.ones(2)
    other += v
    assert type(other) is np.ndarray
    assert other.tolist() == [5, 7]
    assert np.negative(v, out=v) is v
    assert array.tolist() == [-4, -6]
    fraction, whole = np.modf(Variable([1.5]), out=(Variable([0.0]), Variable([0.0])))
    assert (fraction.item(), whole.item()) == (0.5, 1)
    np.add.at(v, [0, 0], 1)
    assert array.tolist() == [-2, -6]
    assert np.add.reduce(v) == -8


def test_numpy_functions_take_variables():
    v, w = Variable([[1.0, 2.0]]), Variable([[3.0, 4.0]])
    for result in (
        np.concatenate([v, w]),
        np.vstack((v, w)),
        np.stack([v, w])[:, 0],
        np.concatenate({"a": v, "b": w}.values()),
        np.block([[v], [w]]),
        np.array([v[0], w[0]]),
        anp.concatenate([v, w]),
        anp.vstack([v, w]),
        anp.array([v[0], w[0]]),
    ):
        assert type(result) is np.ndarray
        assert result.tolist() == [[1, 2], [3, 4]]
    assert np.where(v > 1, v, w).tolist() == [[3, 2]]
    assert np.clip(v, a_min=w, a_max=None).tolist() == [[3, 4]]
    assert np.dot(v, w.T).item() == anp.dot(v, w.T).item() == np.sum(v * w) == 11
    assert np.einsum("ij,ij->", v, w) == 11
    assert np.shape(v) == (1, 2)
    assert np.zeros_like(v).tolist() == [[0, 0]]
    assert np.may_share_memory(v, v.array)
    assert np.linalg.norm(v) == pytest.approx(math.sqrt(5))
    np.testing.assert_array_equal(v, v.array)
    target = np.empty((1, 2))
    np.copyto(target, v)
    assert target.tolist() == [[1, 2]]
    np.copyto(v, 0)
    assert v.tolist() == [[0, 0]]


def test_methods_are_those_of_the_array():
    array = np.array([[3.0, -1.0], [0.5, 2.0]])
    v = Variable(array.copy())
    for name, arguments in {
        "all": (),
        "any": (),
        "argmax": (0,),
        "argmin": (),
        "argsort": (),
        "astype": ("float32",),
        "clip": (0, 1),
        "conj": (),
        "copy": (),
        "cumsum": (1,),
        "dot": (array,),
        "flatten": (),
        "item": (0, 1),
        "max": (),
        "mean": (0,),
        "min": (),
        "prod": (),
        "ravel": (),
        "repeat": (2, 0),
        "reshape": (4,),
        "round": (),
        "squeeze": (),
        "std": (),
        "sum": (1,),
        "swapaxes": (0, 1),
        "tolist": (),
        "transpose": (),
        "var": (),
    }.items():
        result, expected = getattr(v, name)(*arguments), getattr(array, name)(*arguments)
        assert type(result) is type(expected)
        np.testing.assert_array_equal(result, expected)
        assert getattr(Variable, name).__name__ == name
    np.testing.assert_array_equal(v.T, array.T)
    np.testing.assert_array_equal(v.real - v.imag, array)
    assert np.shares_memory(v.reshape(-1), v.array)
    assert np.shares_memory(v.T, v.array)
    assert not np.shares_memory(v.copy(), v.array)


def test_indexing_and_iterating():
    v = Variable(np.arange(6.0).reshape(3, 2))
    assert v[Variable([2, 0])].tolist() == [[4, 5], [0, 1]]
    assert v[Variable(1), 0] == 2
    assert v[v > 4].tolist() == [5]
    assert [row.tolist() for row in v] == v.tolist()
    assert 5 in v
    v[Variable([0])] = 7
    assert v[0].tolist() == [7, 7]
    with pytest.raises(TypeError, match="0-d"):
        list(Variable(1.0))


def test_numbers():
    v = Variable(3.0)
    assert float(v) == int(v) == complex(v) == v.item() == 3
    assert math.sqrt(v + 1) == 2
    assert not Variable(0.0)
    assert [10, 11, 12][Variable(1)] == 11
    with pytest.raises(ValueError, match="ambiguous"):
        bool(Variable([1.0, 2.0]))


def test_variables_are_keys_by_identity():
    a, b = Variable([1.0, 2.0]), Variable([1.0, 2.0])
    assert {a: 1, b: 2}[a] == 1
    assert a.ref() == a.ref() != b.ref()


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_copies_are_independent(duplicate):
    v = Variable([1.0, 2.0], "w", trainable=False, constraint=np.abs)
    twin = duplicate(v)
    twin.assign([0.0, 0.0])
    assert v.tolist() == [1, 2]
    assert (twin.name, twin.trainable, twin.constraint) == ("w:0", False, np.abs)
    structure = [v, v]
    first, second = copy.deepcopy(structure)
    assert first is second


class Counted(Variable):
    def __init__(self, value, count):
        super().__init__(value)
        self.count = count


@pytest.mark.parametrize("protocol", [None, *range(pickle.HIGHEST_PROTOCOL + 1)])
def test_copies_of_a_subclass_are_of_it(protocol):
    v = Counted([1.0, 2.0], count=[3])
    twin = copy.copy(v) if protocol is None else pickle.loads(pickle.dumps(v, protocol))
    assert type(twin) is Counted
    twin.assign([0.0, 0.0])
    twin.count.append(4)
    assert (v.tolist(), v.count) == ([1, 2], [3])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_share_their_constraint(duplicate):
    """Which may be a method of a large object, or of one that can't be copied."""

    class Model:
        def __init__(self):
            self.lock = threading.Lock()

        def clip(self, value):
            return value

    model = Model()
    v = Variable([1.0], constraint=model.clip)
    assert duplicate(v).constraint.__self__ is model
    opt = rmsjit.RMSprop(0.1)
    opt.apply_gradients([(np.ones(1), v)])
    opt, twin = copy.deepcopy((opt, v))
    assert twin.constraint.__self__ is model


@pytest.mark.parametrize("duplicate", [copy.copy, lambda v: pickle.loads(pickle.dumps(v))])
def test_a_copy_of_a_slot_in_8_bits_is_a_variable(duplicate):
    opt, w = rmsjit.RMSprop(0.1, state_dtype="8bit"), np.ones(4096, np.float32)
    opt.apply_gradients([(np.ones_like(w), w)])
    slot = opt.get_slot(w, "rms")
    twin = duplicate(slot)
    assert type(twin) is Variable
    np.testing.assert_array_equal(twin, slot.numpy())
    twin.assign(np.zeros_like(w))
    assert slot.numpy().all()


def test_a_subclass_is_recorded_like_a_variable():
    class Parameter(Variable):
        pass

    with GradientTape() as tape:
        p, q = Parameter([1.0, 2.0]), Parameter([3.0, 4.0])
        target = anp.sum(anp.stack([p, q]) ** 2) + np.sum(p)
    assert [g.tolist() for g in tape.gradient(target, [p, q])] == [[3, 5], [6, 8]]


def test_autograd_alone_takes_a_variable_for_its_array():
    v, array = Variable([1.0, 2.0], dtype="float64"), np.array([3.0, 4.0])
    with GradientTape():  # from now on autograd knows variables
        pass
    assert autograd.grad(lambda x: anp.sum(x * v + v))(array).tolist() == [1, 2]
    assert autograd.grad(lambda x: anp.sum(x**2))(v).tolist() == [2, 4]


def test_values_under_a_tape():
    v, frozen = Variable([2.0]), Variable([3.0], trainable=False)
    with GradientTape() as tape:
        target = v.value() * v.read_value() * frozen.value() * v.numpy()
        assert v.tolist() == [2]
        assert v.item() == 2
        assert isinstance(frozen.value(), np.ndarray)
        assert isinstance(frozen * 2, np.ndarray)
        twin = Variable(v * 2)
        twin.assign(v * 3)
        twin[:] = v * 4
    assert twin.tolist() == [8]
    assert type(twin.array) is np.ndarray
    assert tape.gradient(target, v).tolist() == [24]


def test_array_of():
    v = Variable([1.0])
    with GradientTape():
        result = v * 2
        assert type(array_of(result)) is np.ndarray
    assert array_of(v) is v.array
    assert array_of(3) == 3
    mixed = arrays_of(([v, 1], {"a": v}, deque()))
    assert mixed[0][0] is v.array
    assert mixed[1]["a"] is v.array
    assert mixed[2] == deque()


# --- what must not be lost silently ----------------------------------------------------------


@pytest.mark.parametrize("value", [2**40, [1, -(2**31) - 1], 2**63 - 1])
def test_integers_that_do_not_fit_are_refused(value):
    with pytest.raises(OverflowError, match="must fit in int32 without a dtype, got"):
        Variable(value)
    assert Variable(value, dtype=np.int64).dtype == np.int64
    v = Variable(np.zeros(np.shape(value), np.int32))
    for assign in (v.assign, v.assign_add, v.assign_sub):
        with pytest.raises(OverflowError, match="has dtype int32, got"):
            assign(value)
    assert not v.numpy().any()


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_integers_beyond_int64_are_refused(value):
    with pytest.raises(OverflowError, match="must fit in int32 without a dtype, got"):
        Variable(value)
    assert Variable(value, dtype=np.uint64).dtype == np.uint64


def test_masked_values_are_not_assigned():
    v = Variable(np.array([1.0, 2.0]))
    with pytest.raises(TypeError, match="masked"):
        v.assign(np.ma.array([5.0, 6.0], mask=[1, 0]))
    np.testing.assert_array_equal(v, [1.0, 2.0])


def test_numbers_are_formatted():
    assert f"{Variable(2.0):.3f} {Variable(np.array(7)):4d}" == "2.000    7"
    assert f"{Variable([1.0])}" == str(Variable([1.0]))
    with pytest.raises(TypeError, match="unsupported format"):
        f"{Variable([1.0, 2.0]):.3f}"
