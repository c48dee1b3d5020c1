"""What must hold on every number of ranks for headers and sums in memory that ranks share."""

import ctypes
import gc
import os
import signal
import time
from functools import partial, reduce

import numpy as np
from ranks import raised, same, same_everywhere

import rmsjit
from rmsjit.distributed import MPIStrategy, shared
from rmsjit.distributed.meeting import NOTHING, MessageMeeting, SharedMeeting
from rmsjit.distributed.shared import SharedArrays, SharedMemory

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
    """Messages of several sizes and dtypes in each act, with ranks that come late now and then."""
    memory, late = SharedMemory(comm, comm.size), np.random.default_rng(comm.rank)
    assert memory.is_there == (comm.size > 1)
    arrays = {}
    for round_, most in enumerate((100, 70_000, 1000)):
        cases = [(count, dtype) for count in (1, 17, most) for dtype in ("float32", "complex128")]
        layout = memory.new_layout()
        assert (layout is not None) == (comm.size > 1)
        if layout is None:
            return
        arrays |= {case: layout.message(comm.size, np.dtype(case[1]), case[0]) for case in cases}
        memory.make_room()
        assert all(one.have_room for one in arrays.values())
        for step in range(20 * round_, 20 * round_ + 20):
            memory.begin()
            for count, dtype in cases:
                arrays[count, dtype].own[...] = numbers(comm.rank, step, count, dtype)
            memory.begin()  # changes nothing
            if late.random() < 0.2:
                time.sleep(0.002)
            memory.exchange()
            for count, dtype in cases:
                array = np.empty(count, dtype)
                arrays[count, dtype].add_up(comm, array)
                same(array, in_order(comm, step, count, dtype))
    memory.free()
    assert not memory.is_there


def check_both_ways_to_meet_say_the_same(comm, folder):
    """The largest word of all ranks counts, then those of rank 0."""
    memory = SharedMemory(comm, comm.size)
    meetings = [MessageMeeting(comm, 7)]
    if memory.is_there:
        meetings.append(SharedMeeting(memory, 7))
    for own in ([comm.rank, -comm.rank, NOTHING, NOTHING if comm.rank else 5], [1, 2, 3, 4]):
        of_rank_0 = np.array([comm.rank - 3, NOTHING, 7 * comm.rank])
        found = [meeting.exchange(own, of_rank_0).tolist() for meeting in meetings]
        everyone = comm.allgather(own)
        assert all(one == [*np.max(everyone, axis=0), -3, NOTHING, 0] for one in found)
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
    """How often two steps on a float32 variable add up in shared memory."""
    sums, add_up = [], SharedArrays.add_up

    def counted(arrays, comm, out):
        sums.append(arrays)
        add_up(arrays, comm, out)

    strategy, variable = MPIStrategy(comm, **settings), np.ones(size, np.float32)
    opt = rmsjit.RMSprop(0.125, strategy=strategy)
    SharedArrays.add_up = counted
    try:
        for _ in range(2):
            opt.apply_gradients([(np.ones(size, np.float32), variable)])
    finally:
        SharedArrays.add_up = add_up
    same_everywhere(comm, [variable])
    strategy.close()
    return len(sums)


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


def check_headers_stay_in_the_memory_there_is_if_there_is_no_more(comm, folder):
    own, allocated = comm.Dup(), SharedMemory._allocated
    strategy = MPIStrategy(own)
    SharedMemory._allocated = lambda memory, size: None
    try:
        assert used(own, 100_000) == 0
    finally:
        SharedMemory._allocated = allocated
    assert strategy._group.memory.is_there == (comm.size > 1)
    assert used(own, 100) == (2 if comm.size > 1 else 0)
    strategy.close()
    own.Free()


def check_an_interrupt_right_after_the_headers_is_told_in_the_next_step(comm, folder):
    """Ranks go on with the same half of the memory, so they read each other's next headers."""
    if comm.size == 1:
        return
    strategy, variable = MPIStrategy(comm), np.ones(3)
    opt = rmsjit.RMSprop(0.125, strategy=strategy)
    act = partial(opt.apply_gradients, [(np.ones(3), variable)])
    act()
    if comm.rank == comm.size - 1:
        former = signal.signal(signal.SIGUSR1, signal.default_int_handler)
        interrupting = partial(getattr(ctypes.CDLL(None), "raise"), signal.SIGUSR1)
        strategy._group.memory._waits.append(interrupting)
        raised(act, KeyboardInterrupt)
        strategy._group.memory._waits.remove(interrupting)
        signal.signal(signal.SIGUSR1, former)
    else:
        act()
    for _ in range(3):
        text = raised(act, RuntimeError)
        assert f"rank {comm.size - 1} has completed 1 steps and rank 0 2" in text


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
