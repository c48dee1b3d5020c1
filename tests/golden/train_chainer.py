"""Train with Chainer, for `tests/test_interop_chainer.py`, which needs another NumPy.

    python tests/golden/train_chainer.py RMSprop RATE before.npz after.npz

Both files hold ``variable/NAME`` and ``state/KEY``, the optimizer's own arrays; the first one may
lack the state, and has ``gradient/STEP/NAME`` for every step to take.
"""

import sys

import numpy as np


def parts_of(path):
    """The arrays of a file by the first part of their names."""
    parts = {"variable": {}, "gradient": {}, "state": {}}
    with np.load(path) as file:
        for key, array in file.items():
            part, name = key.split("/", 1)
            parts[part][name] = array
    return parts


def main(rule, rate, source, target):
    import chainer

    parts = parts_of(source)
    link = chainer.Link()
    with link.init_scope():
        for name, value in parts["variable"].items():
            setattr(link, name, chainer.Parameter(value))
    optimizer = getattr(chainer.optimizers, rule)(lr=float(rate)).setup(link)
    if parts["state"]:
        chainer.serializers.NpzDeserializer(parts["state"]).load(optimizer)
    steps = {key.split("/")[0] for key in parts["gradient"]}
    for step in sorted(steps, key=int):
        for name in parts["variable"]:
            getattr(link, name).grad = parts["gradient"][f"{step}/{name}"]
        optimizer.update()
    saved = chainer.serializers.DictionarySerializer()
    saved.save(optimizer)
    variables = {f"variable/{name}": getattr(link, name).array for name in parts["variable"]}
    np.savez(target, **variables, **{f"state/{k}": v for k, v in saved.target.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
