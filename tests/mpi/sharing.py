"""What must hold on every number of ranks for sums in memory that ranks share."""

import gc
import os
import time
from functools import reduce

import numpy as np
from ranks import same, same_everywhere

import rmsjit
from rmsjit.distributed import MPIStrategy, shared
from rmsjit.distributed.shared import SharedMemory, SharedSums

SHAPES = {
    "float32": [(1000,), (), (0, 3), (7, 11)],
    "float64": [(33,)],
    "float16": [(5, 5)],
    "complex64": [(300,)],
}


def numbers(rank, step, shape, dtype):
    """Random bits, so that sums depend on their order."""
    rng = np.random.default_rng([rank, step, 4])
    values = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return np.asarray(values).astype(dtype)


def in_order(comm, step, shape, dtype, scale=1.0):
    """The sum over ranks, in order of rank."""
    wide = np.float32 if np.dtype(dtype) == np.float16 else dtype
    everyone = [numbers(rank, step, shape, dtype).astype(wide) for rank in range(comm.size)]
    return reduce(np.add, everyone).astype(dtype)


def check_sums_in_shared_memory_have_the_bits_of_their_order(comm, folder):
    """Messages of several sizes and dtypes in turn, with ranks that come late now and then."""
    memory, late = SharedMemory(comm, comm.size), np.random.default_rng(comm.rank)
    for round_, most in enumerate((100, 70_000, 1000)):
        cases = [(count, dtype) for count in (1, 17, most) for dtype in ("float32", "complex128")]
        sums = [memory.sums_of(count * np.dtype(dtype).itemsize) for count, dtype in cases]
        assert all(isinstance(one, SharedSums) == (comm.size > 1) for one in sums)
        memory.make_room()
        for step in range(20 * round_, 20 * round_ + 20):
            (count, dtype), adding = cases[step % len(cases)], sums[step % len(cases)]
            array = np.empty(count, dtype)
            adding.input_for(array)[...] = numbers(comm.rank, step, count, dtype)
            if late.random() < 0.2:
                time.sleep(0.002)
            reals = array.view(array.real.dtype)
            adding.add_up(comm, reals, reals.dtype, reals.size)
            same(array, in_order(comm, step, count, dtype))
    memory.free()


def check_small_steps_have_the_bits_of_their_order(comm, folder):
    """A message for each dtype; the sums are not exact."""
    like = [(shape, dtype) for dtype, shapes in SHAPES.items() for shape in shapes]
    variables = [np.ones(shape, dtype) for shape, dtype in like]
    expected = [v.copy() for v in variables]
    opt = rmsjit.RMSprop(0.125, strategy=MPIStrategy(comm))
    alone = rmsjit.RMSprop(0.125)
    for step in range(4):
        own = [numbers(comm.rank, step, *one) for one in like]
        opt.apply_gradients(zip(own, variables, strict=True))
        sums = [in_order(comm, step, *one) for one in like]
        alone.apply_gradients(zip(sums, expected, strict=True))
    for got, wanted in zip(variables, expected, strict=True):
        same(got, wanted)
    same_everywhere(comm, variables)


def used(comm, size, **settings):
    """How often two steps on a float32 variable wait for shared memory."""
    waits, wait = [], SharedMemory.wait_for_all

    def counted(memory):
        waits.append(memory)
        wait(memory)

    strategy, variable = MPIStrategy(comm, **settings), np.ones(size, np.float32)
    opt = rmsjit.RMSprop(0.125, strategy=strategy)
    SharedMemory.wait_for_all = counted
    try:
        for _ in range(2):
            opt.apply_gradients([(np.ones(size, np.float32), variable)])
    finally:
        SharedMemory.wait_for_all = wait
    same_everywhere(comm, [variable])
    strategy.close()
    return len(waits)


def check_only_small_messages_use_shared_memory(comm, folder):
    bound, expected = shared._MOST_BYTES, 2 if comm.size > 1 else 0
    shared._MOST_BYTES = 12_000 * comm.size
    try:
        assert used(comm, 3000) == expected
        assert used(comm, 3001) == 0
    finally:
        shared._MOST_BYTES = bound
    assert used(comm, 1000, bucket_bytes=1 << 10) == 0
    assert used(comm, 1000, shard_state=True) == 0
    assert used(comm, 1000, wire_dtype="bfloat16") == 0


def check_memory_that_one_rank_can_not_have_is_used_by_none(comm, folder):
    own, windows, allocated = comm.Dup(), [], SharedMemory._allocated

    def refused(memory, size):
        windows.append(allocated(memory, size))
        return None if comm.rank == comm.size - 1 else windows[-1]

    SharedMemory._allocated = refused
    try:
        assert used(own, 100) == 0
    finally:
        SharedMemory._allocated = allocated
    assert len(windows) == (comm.size > 1)
    for window in windows:
        window.Free()
    own.Free()


def check_closed_strategies_leave_no_shared_memory(comm, folder):
    own, variable = comm.Dup(), np.ones(3)
    strategy = MPIStrategy(own)
    opt = rmsjit.RMSprop(0.125, strategy=strategy)
    opt.apply_gradients([(np.ones(3), variable)])
    memory = strategy._group.memory
    assert (memory._window is not None) == (comm.size > 1)
    strategy.close()
    assert memory._window is None
    own.Free()


def check_a_fork_leaves_shared_memory_to_its_parent(comm, folder):
    strategy, variable = MPIStrategy(comm), np.ones(3)
    opt = rmsjit.RMSprop(0.125, strategy=strategy)
    for step in range(3):
        opt.apply_gradients([(np.full(3, 1.0 + comm.rank), variable)])
        if step == 1:
            child = os.fork()
            if child == 0:
                del opt, strategy
                gc.collect()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    assert opt.iterations == 3
    same_everywhere(comm, [variable])


CHECKS = {name[6:]: value for name, value in list(globals().items()) if name.startswith("check_")}
