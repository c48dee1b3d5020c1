"""Record runs of other libraries whose state travels, for `tests/test_interop_*.py`.

``python tests/golden/make_exchange.py torch`` needs that library, and writes ``exchange/``.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from runs import GOLDEN, MORE, STEPS, gradients_of, new_variables


def write(name, settings, **parts):
    """One file: settings, and dicts of arrays, each under its name and a slash."""
    arrays = {f"{part}/{key}": np.asarray(v) for part, d in parts.items() for key, v in d.items()}
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN / f"{name}.npz", settings=json.dumps(settings), **arrays)


# --- torch and what is like it --------------------------------------------------------------

CENTERED = {"lr": 0.05, "momentum": 0.9, "centered": True, "weight_decay": 0.1}


def torch_class(library):
    if library == "torch":
        from torch.optim import RMSprop

        return RMSprop
    if library == "timm":
        from timm.optim.rmsprop_tf import RMSpropTF

        return RMSpropTF
    if library == "stable_baselines3":
        from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

        return RMSpropTFLike
    from pfrl.optimizers.rmsprop_eps_inside_sqrt import RMSpropEpsInsideSqrt

    return RMSpropEpsInsideSqrt


def make_torch(library):
    """Two groups with settings of their own, and a parameter that never has a gradient."""
    import torch

    variables = {**new_variables("float32"), "idle": np.ones(2, "float32")}
    parameters = {n: torch.nn.Parameter(torch.from_numpy(v.copy())) for n, v in variables.items()}
    groups = [["w", "b"], ["scale", "idle"]]
    optimizer = torch_class(library)(
        [
            {"params": [parameters[name] for name in names], **settings}
            for names, settings in zip(groups, (CENTERED, {"lr": 0.02}), strict=True)
        ]
    )

    def train(steps):
        for step in steps:
            for names in groups:
                stepped = {name: variables[name] for name in names if name != "idle"}
                for name, g in zip(stepped, gradients_of(stepped, step), strict=True):
                    parameters[name].grad = torch.from_numpy(np.array(g))
            optimizer.step()

    def values():
        return {name: p.detach().numpy().copy() for name, p in parameters.items()}

    train(STEPS)
    taken, before = optimizer.state_dict(), values()
    state = {
        f"{k}/{name}": torch.as_tensor(v).numpy().copy()
        for k, one in taken["state"].items()
        for name, v in one.items()
    }
    train(MORE)
    settings = {"param_groups": taken["param_groups"]}
    write(library, settings, state=state, before=before, after=values())


# --- Keras ----------------------------------------------------------------------------------

KERAS = {"learning_rate": 0.05, "momentum": 0.9, "centered": True}


def make_keras(library):
    """A model of one layer: its files, and the optimizer's variables by name."""
    if library == "keras":
        import keras

        decay = {"weight_decay": 0.1}
    else:
        import tf_keras as keras

        decay = {}
    layer = keras.layers.Dense(4, name="dense")
    model = keras.Sequential([keras.layers.Input((3,)), layer], name="model")
    model.compile(keras.optimizers.RMSprop(**KERAS, **decay))
    train_keras(library, model.optimizer, model.trainable_variables, model)


def make_keras_legacy(library):
    import tensorflow as tf
    import tf_keras

    variables = {f"layer/{name}": v for name, v in new_variables("float32").items()}
    held = [tf.Variable(value, name=name) for name, value in variables.items()]
    train_keras(library, tf_keras.optimizers.legacy.RMSprop(**KERAS), held)


def train_keras(library, optimizer, held, model=None):
    import tensorflow as tf

    def values(variables):
        return {title(v): np.array(v.numpy()) for v in variables}

    def title(v):
        return getattr(v, "path", v.name)

    def train(steps):
        for step in steps:
            gradients = gradients_of({title(v): v.numpy() for v in held}, step)
            optimizer.apply_gradients(zip(map(tf.constant, gradients), held, strict=True))

    for variable, value in zip(held, new_variables("float32").values(), strict=False):
        variable.assign(value)
    train(STEPS)
    before, config = values(held), optimizer.get_config()
    variables = optimizer.variables
    state = values(variables() if callable(variables) else variables)
    if model is not None:
        model.save(GOLDEN / f"{library}.keras")
        model.save_weights(GOLDEN / f"{library}.weights.h5")
    train(MORE)
    config = {
        key: value.item() if hasattr(value, "item") else value for key, value in config.items()
    }
    write(library, {"config": config}, state=state, before=before, after=values(held))


# --- optax ----------------------------------------------------------------------------------


def make_optax(library):
    """Every field that a state of `optax.rmsprop` can have, and a tree of parameters."""
    import jax
    import optax

    settings = {"decay": 0.9, "eps": 1e-8, "momentum": 0.9}
    settings |= {"centered": True, "nesterov": True, "bias_correction": True}
    rule = optax.rmsprop(optax.cosine_decay_schedule(0.05, 20), **settings)
    variables = new_variables("float32")
    params = {"layer": {"w": variables["w"], "b": variables["b"]}, "scale": variables["scale"]}
    state = rule.init(params)

    def named(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {"/".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}

    def train(steps, params, state):
        tree = jax.tree_util.tree_structure(params)
        for step in steps:
            gradients = tree.unflatten(gradients_of(named(params), step))
            updates, state = rule.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = train(STEPS, params, state)
    fields = {
        f"{number}/{type(part).__name__}/{field}{path and '/' + path}": leaf
        for number, part in enumerate(state)
        for field in part._fields
        for path, leaf in named(getattr(part, field)).items()
    }
    before = named(params)
    params, _ = train(MORE, params, state)
    write(library, settings, state=fields, before=before, after=named(params))


# --- Chainer --------------------------------------------------------------------------------


def make_chainer(library):
    """What Chainer saves, with a parameter that takes no step."""
    import chainer

    variables = {**new_variables("float32"), "idle": np.ones(2, "float32")}
    link = chainer.Link()
    with link.init_scope():
        for name, value in variables.items():
            setattr(link, name, chainer.Parameter(value.copy()))
    cls = {"chainer": "RMSprop", "chainer_graves": "RMSpropGraves"}[library]
    optimizer = getattr(chainer.optimizers, cls)(lr=0.05)
    optimizer.setup(link)
    link.idle.update_rule.enabled = False
    del variables["idle"]

    def train(steps):
        for step in steps:
            for name, gradient in zip(variables, gradients_of(variables, step), strict=True):
                getattr(link, name).grad = np.array(gradient)
            optimizer.update()

    def values():
        return {name: parameter.array.copy() for name, parameter in link.namedparams()}

    train(STEPS)
    state = chainer.serializers.DictionarySerializer()
    state.save(optimizer)
    settings = {key: getattr(optimizer, key) for key in ("lr", "alpha", "eps")}
    before, state = values(), {key: np.array(v) for key, v in state.target.items()}
    train(MORE)
    write(library, settings, state=state, before=before, after=values())


MAKERS = dict.fromkeys(["torch", "timm", "stable_baselines3", "pfrl"], make_torch)
MAKERS |= {"keras": make_keras, "tf_keras": make_keras, "tf_keras_legacy": make_keras_legacy}
MAKERS |= {"optax": make_optax, "chainer": make_chainer, "chainer_graves": make_chainer}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", nargs="+", choices=MAKERS)
    for library in parser.parse_args().library:
        MAKERS[library](library)
