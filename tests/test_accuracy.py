"""Rounding errors against the rule in exact arithmetic, by the code that makes docs/accuracy.md.

Every operation is off by half a unit in the last place (ulp) of its result at most; what it
inherits from its operands, n roundings deep, is below n ulp.  So the bounds for real numbers are

rms       the weighted square: 1.5 ulp, inheriting one rounding; the old average times rho: 0.5;
          their sum: 0.5.  Together 2.5.
mg        two products and a sum: 1.5.
update    three roundings in rms, one more for epsilon inside the root, halved by the root; the root
          itself, epsilon outside, the quotient, the learning rate: 5.5 ulp, were all of them as
          large as can be and pointed one way.  What is seen is below 3, so the bound is 3.5.
momentum  a product and a sum more; no more is seen.

Complex products, quotients and roots are several roundings each.  Half types compute in float32
and round once: half an ulp, and a little more where the sum before lay near the middle.
"""

import importlib.util
import pathlib
import sys
from dataclasses import replace

import numpy as np
import pytest

from strategies import COMPLEX, HALF, every_dtype

pytestmark = pytest.mark.slow

SCRIPT = pathlib.Path(__file__).parents[1] / "docs" / "make_accuracy.py"


def load_script():
    spec = importlib.util.spec_from_file_location("make_accuracy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


script = load_script()

ELEMENTS = 100
SINGLE = ("float32", "float64")
QUANTITIES = ("rms", "mg", "update", "momentum")
BOUNDS = {
    **{dtype: dict.fromkeys(QUANTITIES, 0.51) for dtype in HALF},
    **{dtype: dict(zip(QUANTITIES, (2.5, 1.5, 3.5, 3.5), strict=True)) for dtype in SINGLE},
    **{dtype: dict(zip(QUANTITIES, (3.0, 2.0, 6.0, 6.0), strict=True)) for dtype in COMPLEX},
}
DRIFT = dict.fromkeys(HALF, 4) | dict.fromkeys(SINGLE, 5) | dict.fromkeys(COMPLEX, 9)

every_variant = pytest.mark.parametrize("variant", script.VARIANTS, ids=str)


def worst(errors, kept):
    """The worst errors by quantity, where no difference has cancelled before a root is taken."""
    usable = kept >= script.KEPT
    return {
        name: ulps.max() if name in ("rms", "mg") else ulps[usable].max()
        for name, ulps in errors.items()
    }


@every_dtype
@every_variant
def test_one_step_is_within_a_few_roundings(dtype, variant):
    found = worst(*script.single_steps(script.Rmsjit, variant, np.dtype(dtype), ELEMENTS))
    assert set(found) == {*variant.slots, "update"}
    assert all(found[name] <= BOUNDS[dtype][name] for name in found), found


@every_dtype
@every_variant
def test_errors_of_ten_steps_do_not_pile_up(dtype, variant):
    found = worst(*script.drift(script.Rmsjit, variant, np.dtype(dtype), ELEMENTS))
    assert set(found) == {*variant.slots, "variable"}
    assert max(found.values()) <= DRIFT[dtype], found


# --- Of the measurement itself ---------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("ulps", [4, -4])
def test_the_bounds_notice_four_units(dtype, quantity, ulps):
    """A step that is off by four ulp in one quantity; complex bounds are wider, so eight there."""
    variant = script.Variant(centered=True, momentum=True, eps_inside=True)
    factor = 2 if dtype in COMPLEX else 1

    class Perturbed(script.Rmsjit):
        def step(self, gradient):
            super().step(gradient)
            name = "variable" if quantity == "update" else quantity
            array = self.variable if name == "variable" else np.asarray(self.slot(name))
            real = array.view(array.real.dtype)
            unit = script.ml_dtypes.finfo(real.dtype).eps
            shifted = real.astype(float) * (1 + factor * ulps * float(unit))
            real[...] = shifted.astype(real.dtype)

    found = worst(*script.single_steps(Perturbed, variant, np.dtype(dtype), ELEMENTS))
    assert found[quantity] > BOUNDS[dtype][quantity]


@pytest.mark.parametrize("field", ["lr", "rho", "one_minus_rho", "momentum", "epsilon"])
def test_the_bounds_notice_a_hyperparameter_that_is_off_by_a_millionth(field):
    variant = script.Variant(centered=True, momentum=True, eps_inside=True)

    class Mistaken(script.Rmsjit):
        def __init__(self, variant, variable):
            super().__init__(variant, variable)
            value = getattr(self.numbers, field) * (1 + 1e-6)
            self.numbers = replace(self.numbers, **{field: value})

    found = worst(*script.single_steps(Mistaken, variant, np.dtype("float32"), ELEMENTS))
    assert any(found[name] > BOUNDS["float32"][name] for name in found)


def test_an_ulp_is_the_distance_of_neighbours():
    for dtype in ("float16", "float32", "float64"):
        one = np.array([1.0, 1.5, 3.0, 1000.0, 1e-7, 0.0], dtype)
        far = one + 3 * np.spacing(one)
        scale = script.exact(one)
        np.testing.assert_allclose(script.in_ulps(far, script.exact(one), scale, dtype), 3)
    ones = script.exact(np.ones(2))
    assert np.isinf(script.in_ulps(np.array([np.nan, np.inf]), ones, ones, float)).all()


def test_exact_complex_numbers_are_those_of_numpy():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=50) + 1j * rng.normal(size=50) for _ in range(2))

    def rounded(numbers):
        return np.array([complex(number.real, number.imag) for number in numbers])

    for got, expected in [
        (script.exact(a) * script.exact(b), a * b),
        (script.exact(a) / script.exact(b), a / b),
        (script.exact(a) - script.exact(b), a - b),
        ([number.sqrt() for number in script.exact(a)], np.sqrt(a)),
    ]:
        np.testing.assert_allclose(rounded(got), expected, rtol=1e-13)


def test_the_page_can_be_made(monkeypatch):
    """Of two elements, without other libraries."""
    monkeypatch.setattr(script, "CONSTANT_STEPS", (1, 3))
    text = script.page([script.result(script.HERE, 2)], 2)
    assert "| float32 | centered |" in text
    assert "{" not in text
