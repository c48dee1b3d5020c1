"""Forms of libraries that can't be run here, written down in NumPy from their sources.

Each function is one step in the library's order of operations, in the dtype of the variable;
`of` names its source, its arguments and its cases.  The states are those of `form_libraries.py`.
"""

import numpy as np

from golden.form_cases import EPS, RATES, USUAL, inputs

RUNS = {}


def of(form, source, signature, *variants, rms=0.0):
    """Register a step, which is the cases of a form at once.

    A step takes the variable, the state and the gradient, changes the first two, and takes the
    learning rate and the library's arguments by name; it returns the names of its slots.

    Parameters
    ----------
    form : str
    source : str
        Where the step was read.
    signature : str
        The library's arguments, and their defaults.
    *variants : dict
        The arguments of each case.
    rms : float or callable
        What it starts from; a callable is given the arguments.
    """

    def register(step):
        def run(case):
            variable, gradients = inputs(case)
            first = rms(case.arguments) if callable(rms) else rms
            state = {
                "rms": np.full_like(variable, first),
                "mg": np.zeros_like(variable),
                "momentum": np.zeros_like(variable),
            }
            for rate, gradient in zip(RATES, gradients, strict=True):
                used = step(variable, state, gradient, rate, **case.arguments)
                yield {"variable": variable.copy(), **{name: state[name].copy() for name in used}}

        run.source, run.signature, run.variants = source, signature, variants
        RUNS[form] = run
        return step

    return register


def float32(*numbers):
    """Numbers that the library keeps in single precision, whatever the dtype."""
    return [float(np.float32(number)) for number in numbers]


@of(
    "mxnet",
    "src/operator/optimizer_op-inl.h, RMSPropUpdateKernel, RMSPropAlexUpdateKernel",
    "learning_rate=0.001, rho=0.9, momentum=0.9, epsilon=1e-08, centered=False, "
    "clip_weights=None, use_fused_step=True",
    {},
    {"centered": True, "wd": 0.1},
    {"clip_weights": 0.05, "clip_gradient": 0.5, "wd": 0.1},
)
def mxnet(
    p, s, g, lr, rho=0.9, momentum=0.9, epsilon=1e-8, centered=False, clip_weights=None,
    clip_gradient=None, wd=0.0,
):  # fmt: skip
    number = p.dtype.type
    lr, rho, momentum, epsilon, wd = map(number, float32(lr, rho, momentum, epsilon, wd))
    if clip_gradient is not None:
        g = np.clip(g, -number(clip_gradient), number(clip_gradient))
    g = g + wd * p
    if centered:
        s["rms"][:] = (1 - rho) * g * g + rho * s["rms"]
        s["mg"][:] = (1 - rho) * g + rho * s["mg"]
        root = np.sqrt(s["rms"] - s["mg"] * s["mg"] + epsilon)
        s["momentum"][:] = momentum * s["momentum"] + lr * g / root
        p -= s["momentum"]
    else:
        s["rms"][:] = (1 - rho) * (g * g) + rho * s["rms"]
        p -= lr * (g / (np.sqrt(s["rms"]) + epsilon))
    if clip_weights is not None:
        np.clip(p, -number(clip_weights), number(clip_weights), out=p)
    return ["rms", "mg", "momentum"] if centered else ["rms"]


@of(
    "mindspore",
    "the formulas of mindspore.nn.RMSProp, of 2.x",
    "learning_rate=0.1, decay=0.9, momentum=0.0, epsilon=1e-10, use_locking=False, "
    "centered=False, loss_scale=1.0, weight_decay=0.0",
    *USUAL,
    rms=1.0,
)
def mindspore(
    p, s, g, learning_rate, decay=0.9, momentum=0.0, epsilon=1e-10, centered=False, weight_decay=0.0
):
    number = p.dtype.type
    lr, decay, momentum, epsilon = map(number, float32(learning_rate, decay, momentum, epsilon))
    g = g + number(weight_decay) * p
    s["rms"][:] = decay * s["rms"] + (1 - decay) * g * g
    variance = s["rms"]
    if centered:
        s["mg"][:] = decay * s["mg"] + (1 - decay) * g
        variance = variance - s["mg"] * s["mg"]
    s["momentum"][:] = momentum * s["momentum"] + lr * g / np.sqrt(variance + epsilon)
    p -= s["momentum"]
    return ["rms", "mg", "momentum"] if centered else ["rms", "momentum"]


@of(
    "optimisers_jl",
    "Optimisers.jl, src/rules.jl, apply!(o::RMSProp)",
    "eta=0.001, rho=0.9, epsilon=1e-08",
    {},
    {"centred": True},
)
def optimisers_jl(p, s, g, eta, rho=0.9, epsilon=1e-8, centred=False):
    eta, rho, epsilon = map(p.dtype.type, (eta, rho, epsilon))
    s["rms"][:] = rho * s["rms"] + (1 - rho) * (g * g)
    variance = s["rms"]
    if centred:
        s["mg"][:] = rho * s["mg"] + (1 - rho) * g
        variance = variance - s["mg"] * s["mg"]
    p -= g * eta / (np.sqrt(variance) + epsilon)
    return ["rms", "mg"] if centred else ["rms"]


@of(
    "burn",
    "burn, optim/rmsprop.rs, SimpleOptimizer::step",
    "lr, alpha=0.99, momentum=0.9, epsilon=1e-05, centered=False, weight_decay=None, "
    "grad_clipping=None",
    *USUAL,
    {"momentum": 0.0},
)
def burn(p, s, g, lr, alpha=0.99, momentum=0.9, epsilon=1e-5, centered=False, weight_decay=0.0):
    number = p.dtype.type
    alpha, momentum, epsilon, decay = map(number, float32(alpha, momentum, epsilon, weight_decay))
    if decay:
        g = g + p * decay
    s["rms"][:] = s["rms"] * alpha + (g * g) * (1 - alpha)
    variance = s["rms"]
    if centered:
        s["mg"][:] = s["mg"] * alpha + g * (1 - alpha)
        variance = variance - s["mg"] * s["mg"]
    step = g / (np.sqrt(variance) + epsilon)
    if momentum > 0:
        step = s["momentum"][:] = s["momentum"] * momentum + step
    p -= step * number(lr)
    return ["rms", *["mg"] * centered, *["momentum"] * bool(momentum > 0)]


@of(
    "dl4j",
    "nd4j, learning/RmsPropUpdater.java, applyUpdater",
    "learningRate=0.1, rmsDecay=0.95, epsilon=1e-08",
    {},
    rms=lambda given: 1e-8,
)
def dl4j(p, s, g, learning_rate, rmsDecay=0.95, epsilon=1e-8):
    s["rms"][:] = s["rms"] * rmsDecay + g * g * (1 - rmsDecay)
    p -= g * learning_rate / (np.sqrt(s["rms"]) + epsilon)
    return ["rms"]


@of(
    "caffe",
    "src/caffe/solvers/rmsprop_solver.cpp, ComputeUpdateValue; SGDSolver::Regularize",
    "base_lr, rms_decay=0.99, delta=1e-08, weight_decay=0.0, regularization_type='L2', "
    "clip_gradients=-1, iter_size=1",
    {},
    {"weight_decay": 0.1},
)
def caffe(p, s, g, base_lr, rms_decay=0.99, delta=1e-8, weight_decay=0.0):
    number = p.dtype.type
    rate, rho, delta, decay = map(number, float32(base_lr, rms_decay, delta, weight_decay))
    if decay:
        g = g + decay * p
    s["rms"][:] = (1 - rho) * (g * g) + rho * s["rms"]
    p -= rate * (g / (np.sqrt(s["rms"]) + delta))
    return ["rms"]


@of(
    "torch7",
    "torch/optim, rmsprop.lua",
    "learningRate=0.01, alpha=0.99, epsilon=1e-08, initialMean=0.0, weightDecay=0.0",
    {},
    {"initialMean": 1.0, "weightDecay": 0.1},
    rms=lambda given: given.get("initialMean", 0.0),
)
def torch7(p, s, g, lr, alpha=0.99, epsilon=1e-8, initialMean=0.0, weightDecay=0.0):
    if weightDecay:
        g = g + weightDecay * p
    s["rms"] *= alpha
    s["rms"] += (1.0 - alpha) * g * g
    p += -lr * g / (np.sqrt(s["rms"]) + epsilon)
    return ["rms"]


@of(
    "lasagne",
    "lasagne/updates.py, rmsprop, with floatX=float32 or float64",
    "learning_rate=1.0, rho=0.9, epsilon=1e-06",
    {},
)
def lasagne(p, s, g, learning_rate, rho=0.9, epsilon=1e-6):
    rate, rho, epsilon = map(p.dtype.type, (learning_rate, rho, epsilon))
    s["rms"][:] = rho * s["rms"] + (1 - rho) * g**2
    p -= rate * g / np.sqrt(s["rms"] + epsilon)
    return ["rms"]


@of(
    "ensmallen",
    "include/ensmallen_bits/rmsprop/rmsprop_update.hpp, Update",
    "stepSize=0.01, batchSize=32, alpha=0.99, epsilon=1e-08, maxIterations=100000, "
    "tolerance=1e-05, shuffle=True, resetPolicy=True",
    {},
)
def ensmallen(p, s, g, stepSize, alpha=0.99, epsilon=1e-8):
    s["rms"] *= alpha
    s["rms"] += (1 - alpha) * (g * g)
    p -= stepSize * g / (np.sqrt(s["rms"]) + epsilon)
    return ["rms"]


@of(
    "flashlight",
    "flashlight/fl/optim/RMSPropOptimizer.cpp, step",
    "learningRate, rho=0.99, epsilon=1e-08, weightDecay=0.0, use_first=False",
    {},
    {"use_first": True, "weightDecay": 0.01},
)
def flashlight(p, s, g, lr, rho=0.99, epsilon=1e-8, weightDecay=0.0, use_first=False):
    number = p.dtype.type
    lr, rho, epsilon, decay = map(number, float32(lr, rho, epsilon, weightDecay))
    if decay:
        p -= decay * p
    s["rms"][:] = rho * s["rms"] + (1 - rho) * g * g
    variance = s["rms"]
    if use_first:
        s["mg"][:] = rho * s["mg"] + (1 - rho) * g
        variance = variance - s["mg"] * s["mg"]
    p -= (lr * g) / (np.sqrt(variance) + epsilon)
    return ["rms", "mg"] if use_first else ["rms"]


@of(
    "dynet",
    "dynet/training.cc, RMSPropTrainer::update_rule_dev",
    "learning_rate=0.1, eps=1e-20, rho=0.95",
    {},
    EPS,
)
def dynet(p, s, g, learning_rate, eps=1e-20, rho=0.95):
    number = p.dtype.type
    rate, rho, eps = map(number, float32(learning_rate, rho, eps))
    s["rms"][:] = s["rms"] * rho + (g * g) * (1 - rho)
    p -= rate * (g / np.sqrt(s["rms"] + eps))
    return ["rms"]


@of(
    "bitsandbytes",
    "csrc/kernels.cu, kOptimizer32bit1State, whose quotient is a fast one on a GPU",
    "lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0.0, momentum=0.0, centered=False, "
    "optim_bits=32, args=None, min_8bit_size=4096, percentile_clipping=100, block_wise=True",
    {},
    {"weight_decay": 0.1, "eps": 0.01},
)
def bitsandbytes(p, s, g, lr, alpha=0.99, eps=1e-8, weight_decay=0.0):
    number = p.dtype.type
    lr, alpha, eps, decay = map(number, float32(lr, alpha, eps, weight_decay))
    if decay:
        g = g + p * decay
    s["rms"][:] = s["rms"] * alpha + (1 - alpha) * g * g
    p -= lr * (g / (np.sqrt(s["rms"]) + eps))
    return ["rms"]
