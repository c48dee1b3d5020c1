"""The libraries themselves: a function each that runs a case.

Each takes a case and yields the state after every step, a dict of float arrays: "variable", and of
the slots "rms", "mg" and "momentum" those that can be read, in rmsjit's sense.  A library is
imported when its function is called, without the rest of its package where that needs more.
"""

import importlib
import importlib.util
import sys
import types

import numpy as np

from golden.form_cases import RATES, inputs


def part_of(module):
    """A module of a package, without running the code of the packages around it."""
    *packages, _ = module.split(".")
    for count in range(1, len(packages) + 1):
        name = ".".join(packages[:count])
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"no module named {name!r}", name=name)
            package = types.ModuleType(name)
            package.__path__ = list(spec.submodule_search_locations)
            sys.modules[name] = package
    return importlib.import_module(module)


# --- PyTorch and what is built on it ---------------------------------------------------------


def torch_like(optimizer_class):
    names = {"square_avg": "rms", "grad_avg": "mg", "momentum_buffer": "momentum"}

    def run(case):
        import torch

        start, gradients = inputs(case)
        variable = torch.tensor(start, requires_grad=True)
        optimizer = optimizer_class()([variable], **case.arguments)
        for rate, gradient in zip(RATES, gradients, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            variable.grad = torch.tensor(gradient)
            optimizer.step()
            state = {
                names[k]: v.numpy() for k, v in optimizer.state[variable].items() if k in names
            }
            yield {"variable": variable.detach().numpy(), **state}

    return run


def torch_class():
    import torch

    return torch.optim.RMSprop


def timm_class():
    return part_of("timm.optim.rmsprop_tf").RMSpropTF


def stable_baselines3_class():
    return part_of("stable_baselines3.common.sb2_compat.rmsprop_tf_like").RMSpropTFLike


def pfrl_class():
    return part_of("pfrl.optimizers.rmsprop_eps_inside_sqrt").RMSpropEpsInsideSqrt


def torchopt(case):
    import torch
    import torchopt

    start, gradients = inputs(case)
    variable = torch.tensor(start)
    transform = torchopt.rmsprop(lambda step: RATES[int(step)], **case.arguments)
    state = transform.init([variable])
    for gradient in gradients:
        updates, state = transform.update(
            [torch.tensor(gradient)], state, params=[variable], inplace=False
        )
        variable = torchopt.apply_updates([variable], updates, inplace=False)[0]
        yield {"variable": variable.numpy(), **_torchopt_slots(state)}


def _torchopt_slots(state):
    names = {"nu": "rms", "mu": "mg", "trace": "momentum"}
    found = {}
    for part in state:
        for field in getattr(part, "_fields", ()):
            if field in names:
                found[names[field]] = getattr(part, field)[0].numpy()
    return found


# --- Keras and TensorFlow --------------------------------------------------------------------


def keras(case):
    import keras

    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    start, gradients = inputs(case)
    variable = keras.Variable(start, dtype=case.dtype)
    optimizer = keras.optimizers.RMSprop(**case.arguments)
    optimizer.build([variable])
    kept = _keras_slots(optimizer, "momentum" in case.arguments, optimizer.centered)
    for rate, gradient in zip(RATES, gradients, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(gradient, dtype=case.dtype)])
        yield {"variable": np.array(variable.value), **{k: np.array(v) for k, v in kept.items()}}


def tf_keras(case):
    import tensorflow as tf
    import tf_keras

    start, gradients = inputs(case)
    variable = tf.Variable(start)
    optimizer = tf_keras.optimizers.RMSprop(**case.arguments, jit_compile=False)
    optimizer.build([variable])
    kept = _keras_slots(optimizer, "momentum" in case.arguments, optimizer.centered)
    for rate, gradient in zip(RATES, gradients, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
        yield {"variable": variable.numpy(), **{k: v.numpy() for k, v in kept.items()}}


def _keras_slots(optimizer, has_momentum, centered):
    kept = {"rms": optimizer._velocities[0]}
    if has_momentum:
        kept["momentum"] = optimizer._momentums[0]
    if centered:
        kept["mg"] = optimizer._average_gradients[0]
    return kept


def tf_keras_legacy(case):
    import tensorflow as tf
    import tf_keras

    start, gradients = inputs(case)
    variable, rate = tf.Variable(start), tf.Variable(RATES[0])
    optimizer = tf_keras.optimizers.legacy.RMSprop(rate, **case.arguments)
    yield from _with_slots(tf, optimizer, variable, rate, gradients)


def tf1(case):
    import tensorflow as tf

    start, gradients = inputs(case)
    variable, rate = tf.Variable(start), tf.Variable(RATES[0])
    optimizer = tf.compat.v1.train.RMSPropOptimizer(lambda: rate.numpy(), **case.arguments)
    yield from _with_slots(tf, optimizer, variable, rate, gradients)


def _with_slots(tf, optimizer, variable, rate, gradients):
    for number, gradient in zip(RATES, gradients, strict=True):
        rate.assign(number)
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
        slots = {name: optimizer.get_slot(variable, name) for name in optimizer.get_slot_names()}
        yield {"variable": variable.numpy(), **{name: s.numpy() for name, s in slots.items()}}


# --- JAX and autograd ------------------------------------------------------------------------


def _jax():
    import jax

    jax.config.update("jax_enable_x64", True)
    return jax


def optax(case):
    jax = _jax()
    import optax

    start, gradients = inputs(case)
    variable, state = jax.numpy.asarray(start), None
    for rate, gradient in zip(RATES, gradients, strict=True):
        transform = optax.rmsprop(rate, **case.arguments)
        state = transform.init(variable) if state is None else state
        updates, state = transform.update(jax.numpy.asarray(gradient), state)
        variable = optax.apply_updates(variable, updates)
        yield {"variable": np.array(variable), **_optax_slots(state)}


def _optax_slots(state):
    """`trace` holds the negative of momentum."""
    found = {}
    for part in jax_leaves_with_names(state):
        found |= {name: np.array(value) for name, value in part.items()}
    return found


def jax_leaves_with_names(state):
    names = {"nu": "rms", "mu": "mg", "trace": "momentum"}
    for part in state:
        for field in getattr(part, "_fields", ()):
            if field in names:
                value = getattr(part, field)
                yield {names[field]: -value if field == "trace" else value}


def jax_example_libraries(case):
    jax = _jax()
    from jax.example_libraries import optimizers

    start, gradients = inputs(case)
    arguments = dict(case.arguments)
    without_momentum = arguments.get("momentum") == 0.0
    if without_momentum:
        del arguments["momentum"]
    make = optimizers.rmsprop if without_momentum else optimizers.rmsprop_momentum
    begin, update, parameters = make(lambda step: RATES[step], **arguments)
    state = begin(jax.numpy.asarray(start))
    for step, gradient in enumerate(gradients):
        state = update(step, jax.numpy.asarray(gradient), state)
        (leaves,) = state.packed_state
        slots = dict(zip(("rms", "momentum"), map(np.array, leaves[1:]), strict=False))
        yield {"variable": np.array(parameters(state)), **slots}


class _ChangingRate:
    """A step size that is another one whenever it is used."""

    def __init__(self):
        self._rates = iter(RATES)

    def __mul__(self, gradient):
        return next(self._rates) * gradient


def autograd(case):
    """Only the variable can be read, before each step and at the end."""
    from autograd.misc.optimizers import rmsprop

    start, gradients = inputs(case)
    seen = []
    last = rmsprop(
        lambda variable, step: gradients[step],
        start,
        callback=lambda variable, step, gradient: seen.append(variable.copy()),
        num_iters=len(gradients),
        step_size=_ChangingRate(),
        **case.arguments,
    )
    for variable in [*seen[1:], last]:
        yield {"variable": variable}


# --- Others ----------------------------------------------------------------------------------


def chainer_like(optimizer_name, slots):
    """`slots` are names and signs: Chainer's `delta` is minus the momentum."""

    def run(case):
        import chainer

        start, gradients = inputs(case)
        parameter = chainer.Parameter(start.copy())
        link = chainer.Link()
        with link.init_scope():
            link.parameter = parameter
        optimizer = getattr(chainer.optimizers, optimizer_name)(**case.arguments).setup(link)
        for rate, gradient in zip(RATES, gradients, strict=True):
            optimizer.lr = rate
            parameter.grad = gradient
            optimizer.update()
            state = parameter.update_rule.state
            yield {
                "variable": parameter.data,
                **{name: sign * state[key] for name, (key, sign) in slots.items()},
            }

    return run


def paddle(case):
    import paddle

    paddle.set_device("cpu")
    start, gradients = inputs(case)
    variable = paddle.create_parameter(
        start.shape, case.dtype, default_initializer=paddle.nn.initializer.Assign(start)
    )
    optimizer = paddle.optimizer.RMSProp(RATES[0], parameters=[variable], **case.arguments)
    names = {"mean_square": "rms", "momentum": "momentum"}
    names |= {"mean_grad": "mg"} if case.arguments.get("centered") else {}
    for rate, gradient in zip(RATES, gradients, strict=True):
        optimizer.set_lr(rate)
        variable.grad = paddle.to_tensor(gradient)
        optimizer.step()
        kept = optimizer._accumulators
        slots = {names[key]: kept[key][variable.name].numpy() for key in names}
        yield {"variable": variable.numpy(), **slots}


def mlx(case):
    import mlx.core as mx
    from mlx.optimizers import RMSprop

    mx.set_default_device(mx.cpu)
    start, gradients = inputs(case)
    variables = {"w": mx.array(start)}
    optimizer = RMSprop(RATES[0], **case.arguments)
    for rate, gradient in zip(RATES, gradients, strict=True):
        optimizer.learning_rate = rate
        variables = optimizer.apply_gradients({"w": mx.array(gradient)}, variables)
        yield {"variable": np.array(variables["w"]), "rms": np.array(optimizer.state["w"]["v"])}


def river(case):
    from river.optim import RMSProp

    variable, gradients = inputs(case)
    optimizer = RMSProp(lr=RATES[0], **case.arguments)
    for rate, gradient in zip(RATES, gradients, strict=True):
        optimizer.lr.learning_rate = rate
        variable = optimizer.step(variable, gradient)
        yield {"variable": variable, "rms": optimizer.g2}


RUNS = {
    "torch": torch_like(torch_class),
    "keras": keras,
    "tf_keras": tf_keras,
    "tf_keras_legacy": tf_keras_legacy,
    "tf1": tf1,
    "optax": optax,
    "timm": torch_like(timm_class),
    "stable_baselines3": torch_like(stable_baselines3_class),
    "pfrl": torch_like(pfrl_class),
    "torchopt": torchopt,
    "autograd": autograd,
    "jax_example_libraries": jax_example_libraries,
    "chainer": chainer_like("RMSprop", {"rms": ("ms", 1)}),
    "chainer_graves": chainer_like(
        "RMSpropGraves", {"rms": ("n", 1), "mg": ("g", 1), "momentum": ("delta", -1)}
    ),
    "paddle": paddle,
    "mlx": mlx,
    "river": river,
}
