"""How close two runs of a case must be, and why.

The unit is the unit in the last place (ulp) of a scale: the largest magnitude that this element
has had so far, its initial value included. A variable or a moving mean may pass through zero,
and what is left after such a cancellation carries the rounding errors of the larger numbers
before it; measured against itself it would have no correct digits in any implementation.

Errors add up: the bound grows with the number of updates the variable has had. Per update:

float32    2 ulp. Three or four roundings of half an ulp in each of the two implementations.
complex64  4 ulp of the modulus. A complex product alone is good to 2.2 half ulps, a quotient or
           root to more, and `rms` itself may cancel since squares can be negative.
float64, complex128   1e-11 of the scale in all, which is some 45,000 ulp.
half types 8 ulp. TensorFlow computes in half, with hyperparameters rounded to half: in bfloat16
           `1 - rho` is 0.1016 for 0.1 (2 ulp), and each of five operations rounds again.

Clipping by a norm adds 8 ulp once: the norm is a sum in some order, then a root and a quotient;
all elements share that error, and in `rms` the square doubles it.
"""

import numpy as np

from golden.cases import targets_of

ULPS_PER_UPDATE = {"float32": 2, "complex64": 4, "float16": 8, "bfloat16": 8}
DOUBLE = 1e-11
MANTISSA_BITS = {"float16": 10, "bfloat16": 7, "float32": 23, "complex64": 23}
SMALLEST_EXPONENT = {"float16": -14, "bfloat16": -126, "float32": -126, "complex64": -126}
NORM_ULPS = 8


def wide(array):
    """The array in double precision, real or complex."""
    array = np.asarray(array)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def ulp(scale, dtype):
    """The unit in the last place of `scale` (not negative) in that dtype."""
    _, exponent = np.frexp(scale)
    smallest = SMALLEST_EXPONENT[dtype]
    exponent = np.where(scale > 0, np.maximum(exponent - 1, smallest), smallest)
    return np.ldexp(1.0, exponent - MANTISSA_BITS[dtype])


def differences(case, made, stored, initial):
    """The fields in which two runs differ by more than is allowed, one line each.

    `initial` holds the variables before the first step.
    """
    scales, complaints = {}, []
    for (step, index, name), expected in stored.items():
        got, expected = np.asarray(made[step, index, name]), np.asarray(expected)
        label = f"{case.name}: step {step}, variable {index}, {name}"
        if got.dtype != expected.dtype or got.shape != expected.shape:
            complaints.append(f"{label}: has another dtype or shape")
            continue
        if (index, name) not in scales:
            start = _start(case, name, initial[index])
            scales[index, name] = np.abs(wide(start))
        scale = np.fmax(scales[index, name], _finite_modulus(expected))
        scales[index, name] = scale
        limit = _limit(case, step, index, scale)
        excess = _excess(wide(got), wide(expected), limit)
        if excess > 1:
            complaints.append(f"{label}: {excess:.3g} times the limit\n{got}\n{expected}")
    return complaints


def _start(case, name, variable):
    if name == "variable":
        return variable
    ones = case.face == "train" and name == "rms"
    return np.full(np.shape(variable), 1.0 if ones else 0.0)


def _finite_modulus(array):
    modulus = np.abs(wide(array))
    return np.where(np.isfinite(modulus), modulus, 0.0)


def _limit(case, step, index, scale):
    updates = sum(targets_of(case, earlier).count(index) for earlier in range(step + 1))
    if case.dtype not in ULPS_PER_UPDATE:
        return DOUBLE * scale
    ulps = ULPS_PER_UPDATE[case.dtype] * updates
    if "clipnorm" in case.settings or "global_clipnorm" in case.settings:
        ulps += NORM_ULPS
    return ulps * ulp(scale, case.dtype)


def _excess(got, expected, limit):
    """The largest difference in units of its limit; infinite if a NaN or infinity is misplaced."""
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)):
        return np.inf
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True):
        return np.inf
    difference = np.abs(got[finite] - expected[finite])
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.where(difference == 0, 0.0, difference / limit[finite])
    return excess.max(initial=0.0)


def schedule_limit(values):
    """How far a schedule's values may be from TensorFlow's: 8 float32 ulp of the largest.

    TensorFlow computes schedules in float32, with a power, a cosine and a few more roundings.
    Near the end of a decay the small value is a difference of large ones.
    """
    return 8 * np.spacing(np.float32(np.abs(values).max()))
