"""All peers; each is imported only in its worker process."""

import importlib
from typing import NamedTuple

from benchmarks.comparison.peer import Peer


class Registered(NamedTuple):
    """The class of a peer and its label in reports."""

    module: str
    attribute: str
    label: str


PEERS = {
    "rmsjit": Registered("rmsjit_peer", "RMSJit", "rmsjit"),
    "numpy": Registered("numpy_peers", "Plain", "NumPy, plain expression"),
    "numpy-inplace": Registered("numpy_peers", "InPlace", "NumPy, in place"),
    "numexpr": Registered("numexpr_peer", "NumExpr", "numexpr"),
    "torch": Registered("torch_peers", "RMSprop", "torch RMSprop, for-loop"),
    "torch-foreach": Registered("torch_peers", "Foreach", "torch RMSprop, foreach"),
    "torch-compile": Registered("torch_peers", "Compiled", "torch RMSprop, torch.compile"),
    "torch-adam": Registered("torch_peers", "FusedAdam", "torch Adam, fused (another rule)"),
    "torch-sparseadam": Registered("torch_peers", "SparseAdam", "torch SparseAdam (another rule)"),
    "optax": Registered("jax_peers", "Optax", "optax, jit"),
    "jax-scatter": Registered("jax_peers", "Scatter", "JAX scatter, jit"),
    "keras": Registered("keras_peer", "Keras", "Keras 3 (TensorFlow, XLA)"),
    "tf-keras": Registered("tensorflow_peers", "LegacyKeras", "tf-keras legacy, tf.function"),
    "tf1": Registered("tensorflow_peers", "TF1", "TF1 (tf.compat.v1)"),
}
LABELS = {name: peer.label for name, peer in PEERS.items()} | {
    "floor": "floor loop",
    "row-loop": "floor loop over the same rows",
    "tf-keras-eager": "tf-keras legacy, eager",
}


def load(name: str) -> type[Peer]:
    """The class of a peer.

    Raises
    ------
    ImportError
        If its packages are not installed.
    """
    peer = PEERS[name]
    module = importlib.import_module(f"benchmarks.comparison.peers.{peer.module}")
    loaded: type[Peer] = getattr(module, peer.attribute)
    return loaded
