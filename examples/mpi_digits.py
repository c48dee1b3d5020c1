"""Handwritten digits, trained data-parallel: ``mpiexec -n 4 python examples/mpi_digits.py``.

Beside the network of ``python -m rmsjit demo``, what MPI takes is marked by comments.
Needs, in a checkout, ``pip install ".[demo,mpi]"``, and an MPI library (``pip install mpich``).
"""

import argparse
from pathlib import Path

import numpy as np

import rmsjit
from rmsjit.demo import digits
from rmsjit.distributed import MPIStrategy, abort_on_error


def main() -> None:
    """Train, and print the accuracy on images that were not trained on."""
    options = parsed()
    abort_on_error()  # (1) one rank that fails ends them all
    strategy = MPIStrategy(  # (2)
        reduce="mean", shard_state=options.shard_state, wire_dtype=options.wire_dtype
    )
    settings = digits.Settings(epochs=options.epochs, seed=options.seed)
    data, network = digits.load(settings.seed), digits.new_network(settings)
    optimizer = rmsjit.RMSprop(options.learning_rate, strategy=strategy)  # (3)
    names = [f"variable{k}" for k in range(len(network.variables))]
    variables = dict(zip(names, network.variables, strict=True))
    if options.checkpoint and options.checkpoint.exists():
        strategy.load(options.checkpoint, optimizer, variables)
    steps_per_epoch = -(-len(data.train_labels) // options.batch_size)
    done = int(optimizer.iterations) // steps_per_epoch
    if done and strategy.rank == 0:
        left = settings.epochs - done
        going_on = f"going on with epoch {done + 1}" if left > 0 else "all epochs are done"
        print(f"{options.checkpoint}: {going_on}")

    for epoch in range(done, settings.epochs):
        rng = np.random.default_rng([settings.seed, epoch])  # the same on all ranks
        for images, labels in digits.batches(data, options.batch_size, rng):
            # (4) each rank takes its part of the batch; a part is weighted by its size
            mine = slice(strategy.rank, None, strategy.size)
            _, gradients = network.loss_and_gradients(images[mine], labels[mine])
            weight = np.float32(len(labels[mine]) * strategy.size / len(labels))
            gradients = [gradient * weight for gradient in gradients]
            optimizer.apply_gradients(zip(gradients, network.variables, strict=True))
        if strategy.rank == 0:  # (5) all ranks have the same variables
            accuracy = network.accuracy(data.test_images, data.test_labels)
            print(f"epoch {epoch + 1}: test accuracy {100 * accuracy:.1f} %", flush=True)
    if options.checkpoint:
        strategy.save(options.checkpoint, optimizer, variables)  # (6) rank 0 writes


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20, help="with those of earlier runs")
    parser.add_argument("--batch-size", type=int, default=128, help="of all ranks together")
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--shard-state", action="store_true", help="share the slots out")
    parser.add_argument("--wire-dtype", choices=["bfloat16"], help="of gradients in messages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="an .npz file to resume from and write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
