"""Hogwild: processes that train one model in shared memory, without a lock.

Variables and slots lie in ``multiprocessing.shared_memory``.  A worker may be started in any way,
also by "spawn": it opens the memory by its name, and its own optimizer has its slots there.  All
make them ahead of the first step.  Steps of different workers may overlap and lose updates of an
element; each worker counts its own steps.
"""

import multiprocessing
from multiprocessing import shared_memory

import numpy as np

import rmsjit
from comparison import report

# --- glue ---

SHAPES = {"w": (20,), "rms": (20,)}  # of the variable and of its slot


def arrays_in(memory):
    """The arrays in shared memory, one behind the other."""
    arrays, start = {}, 0
    for name, shape in SHAPES.items():
        arrays[name] = np.ndarray(shape, float, memory.buf, start)
        start += arrays[name].nbytes
    return arrays


def optimizer_for(arrays, ready):
    """An optimizer whose slots are those in shared memory, once all workers have one.

    Making slots sets them to zero, so no worker may have taken a step before.
    """

    def allocate(shape, dtype):
        return arrays["rms"].reshape(shape)

    optimizer = rmsjit.RMSprop(0.01, slot_allocator=allocate, num_threads=1)
    optimizer.build([arrays["w"]])
    ready.wait()
    return optimizer


# --- the program ---

TARGET = np.linspace(-1, 1, 20)


def work(name, ready, seed, steps):
    """Follow noisy gradients towards the target, in one of the processes."""
    memory = shared_memory.SharedMemory(name)
    arrays = arrays_in(memory)
    optimizer, rng = optimizer_for(arrays, ready), np.random.default_rng(seed)
    for _ in range(steps):
        gradient = arrays["w"] - TARGET + rng.normal(scale=0.01, size=20)
        optimizer.apply_gradients([(gradient, arrays["w"])])


def train(workers, steps):
    """Let processes take that many steps in all; the variable at the end."""
    context = multiprocessing.get_context("spawn")
    memory = shared_memory.SharedMemory(create=True, size=2 * 20 * 8)
    try:
        arrays = arrays_in(memory)
        arrays["w"][...] = arrays["rms"][...] = 0
        ready, share = context.Barrier(workers), steps // workers
        processes = [
            context.Process(target=work, args=(memory.name, ready, seed, share))
            for seed in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        found = arrays["w"].copy()
        del arrays
        return [found]
    finally:
        memory.close()
        memory.unlink()


def main():
    report("one process", train(workers=2, steps=1000), train(workers=1, steps=1000))


if __name__ == "__main__":
    main()
