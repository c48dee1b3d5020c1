"""RMSprop as plain NumPy: the slow, obvious twin that the kernels are tested against.

It is written from the formulas of the design alone and shares no code with the package. No
array is changed in place; everything new is returned. Every formula is computed in
`compute_dtype` (for half types: float32), and rounded to the variable's dtype where it is
stored.
"""

import numpy as np


def initial_slots(variable, names, rms_start=0.0, dtypes=None):
    """The slots of a variable that has not been updated yet.

    `rms_start` is 0, 1 or epsilon; `dtypes` holds those of slots that have not the variable's.
    """
    variable = np.asarray(variable)
    starts = {"rms": rms_start, "mg": 0.0, "momentum": 0.0}
    kinds = dict.fromkeys(names, variable.dtype) | (dtypes or {})
    return {name: np.full(variable.shape, starts[name], kinds[name]) for name in names}


@np.errstate(all="ignore")
def reference_step(
    variable,
    gradient,
    slots,
    *,
    lr,
    rho,
    momentum,
    eps,
    eps_inside,
    compute_dtype,
    lr_outside=False,
    nesterov=False,
    bias_correction=False,
    step=1,
    modulus=False,
    weight_decay=0.0,
    decay_kind=None,
    clip_weights=None,
    clamp=True,
    exact_one_minus_rho=False,
):
    """One update of one variable by one dense gradient: (new variable, new slots).

    `slots` is a dict: "rms" always, "mg" if centered, "momentum" if there is momentum; each is
    rounded to its own dtype. `step` counts from 1. `decay_kind` says what weight decay does:
    "coupled" adds wd*p to the gradient; "decoupled" takes p*(1 - lr*wd), "subtracted" p - p*wd*lr
    and "independent" p*(1 - wd), all before the step. `modulus` squares complex numbers as
    |g|**2. In which order a product or sum is rounded is not told apart here.
    """
    stored_dtype = np.asarray(variable).dtype
    number = np.dtype(compute_dtype).type
    one_minus_rho = number(1 - rho) if exact_one_minus_rho else number(1) - number(rho)
    correction = number(1 - rho**step) if bias_correction else number(1)
    keep = {"decoupled": 1 - lr * weight_decay, "independent": 1 - weight_decay}
    keep = number(keep.get(decay_kind, 1))
    lr, rho, momentum, eps, weight_decay = map(number, (lr, rho, momentum, eps, weight_decay))
    p = np.asarray(variable).astype(number)
    g = np.asarray(gradient).astype(number)
    old = {name: np.asarray(slot).astype(number) for name, slot in slots.items()}
    new = {}

    def square(z):
        return _square_of_modulus(z) if modulus else z * z

    if decay_kind == "coupled":
        g = g + weight_decay * p
    elif decay_kind == "subtracted":
        p = p - p * weight_decay * lr
    elif decay_kind is not None:
        p = p * keep

    new["rms"] = rho * old["rms"] + one_minus_rho * square(g)
    v = new["rms"] / correction
    if "mg" in old:
        new["mg"] = rho * old["mg"] + one_minus_rho * g
        v = v - square(new["mg"] / correction)
        if modulus:
            v = v.real
        if clamp and not np.iscomplexobj(v):
            v = np.maximum(v, number(0).real)

    d = np.sqrt(v + eps) if eps_inside else np.sqrt(v) + eps
    u = g / d if lr_outside else lr * g / d
    if "momentum" in old:
        new["momentum"] = momentum * old["momentum"] + u
        u = momentum * new["momentum"] + u if nesterov else new["momentum"]
    p = p - lr * u if lr_outside else p - u
    if clip_weights is not None:
        p = np.clip(p, -number(clip_weights), number(clip_weights))

    stored = {name: np.asarray(value).astype(slots[name].dtype) for name, value in new.items()}
    return np.asarray(p).astype(stored_dtype), stored


def reference_sparse_step(variable, values, indices, slots, **settings):
    """As `reference_step`, for the rows that `indices` name; all other rows stay as they are."""
    variable = np.array(variable)
    slots = {name: np.array(slot) for name, slot in slots.items()}
    rows, sums = sum_duplicates(values, indices, settings["compute_dtype"])
    named = {name: slot[rows] for name, slot in slots.items()}
    variable[rows], named = reference_step(variable[rows], sums, named, **settings)
    for name, slot in slots.items():
        slot[rows] = named[name]
    return variable, slots


def sum_duplicates(values, indices, compute_dtype):
    """The distinct rows, in order of first occurrence, and the sum of each one's values."""
    sums = {}
    for row, value in zip(indices, np.asarray(values).astype(compute_dtype), strict=True):
        sums[row] = sums[row] + value if row in sums else value
    return list(sums), np.array(list(sums.values()))


def dense_gradient(values, indices, shape, compute_dtype):
    """The dense gradient that a row-sparse one stands for."""
    dense = np.zeros(shape, compute_dtype)
    rows, sums = sum_duplicates(values, indices, compute_dtype)
    dense[rows] = sums
    return dense


@np.errstate(all="ignore")
def norm(gradients, compute_dtype):
    """The Euclidean norm of a list of gradients together, a real number."""
    squares = [_square_of_modulus(np.asarray(g).astype(compute_dtype)) for g in gradients]
    return np.sqrt(sum(square.sum() for square in squares))


def _square_of_modulus(g):
    return g.real * g.real + g.imag * g.imag if np.iscomplexobj(g) else g * g


def clip_by_value(gradient, limit, compute_dtype):
    """Every element brought into [-limit, limit]; NaN stays NaN. Complex numbers: undefined."""
    number = np.dtype(compute_dtype).type
    return np.clip(np.asarray(gradient).astype(number), -number(limit), number(limit))


@np.errstate(all="ignore")
def clip_by_norm(gradient, limit, compute_dtype):
    """The gradient scaled down to norm `limit` if it is longer.

    An infinite norm turns the finite elements to zero and the infinite ones to NaN.
    """
    g = np.asarray(gradient).astype(compute_dtype)
    length = norm([g], compute_dtype)
    limit = length.dtype.type(limit)
    return g * limit / np.maximum(length, limit)


@np.errstate(all="ignore")
def clip_by_global_norm(gradients, limit, compute_dtype):
    """All gradients scaled by one factor, so that they have norm `limit` together at most.

    A norm that is not finite turns every element of every gradient to NaN.
    """
    length = norm(gradients, compute_dtype)
    real = length.dtype.type
    scale = real(limit) * np.minimum(real(1) / length, real(1) / real(limit))
    if not np.isfinite(length):
        scale = real(np.nan)
    return [np.asarray(g).astype(compute_dtype) * scale for g in gradients]
