"""One act: all kernels of a step called in turn, then its counter, without a return to Python.

Python code can run wherever a step returns to the interpreter: a signal handler, an exception for
Ctrl-C, another thread.  So nothing that belongs together is written in two calls.  Whatever can
fail, or must wait for Python, has been done when the act begins; what may still refuse it (a
counter that is full, another thread that is about to fork) is asked before the first write.
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from rmsjit.kernels.views import WORD_BYTES, words
from rmsjit.runtime.flags import INLINED

# Words of an act; after them come address and call of each kernel.
(
    KERNELS,
    EPOCH,
    EXPECTED_EPOCH,
    COUNTER,
    COUNTER_BYTES,
    COUNTER_LIMIT,
    THREADS,
    GET_THREADS,
    SET_THREADS,
    GATE,
) = range(10)
WORDS = 10
# Words of the gate, which all threads share.
IN_FLIGHT, FORKING, EXCLUSIVE, BUSY = range(4)
GATE_WORDS = 4
DONE, CLOSED, FULL, STALE = range(4)  # what an act returns


@intrinsic
def _call(typing_context, function, argument):
    """Call a C function ``int64 (int64)`` by its address."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word]).as_pointer()
        return builder.call(builder.inttoptr(args[0], kind), [args[1]])

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _get_threads(typing_context, function):
    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), []).as_pointer()
        count = builder.call(builder.inttoptr(args[0], kind), [])
        return builder.sext(count, ir.IntType(64))

    return types.int64(types.int64), codegen


@intrinsic
def _set_threads(typing_context, function, count):
    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)]).as_pointer()
        narrow = builder.trunc(args[1], ir.IntType(32))
        builder.call(builder.inttoptr(args[0], kind), [narrow])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


@intrinsic
def _add(typing_context, address, amount):
    """Add to a word that other threads write too; what it held before."""

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _exchange(typing_context, address, value):
    """Write a word that other threads write too; what it held before."""

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("xchg", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@njit(**INLINED)
def _enter(gate):
    """Whether threads may be launched now; if so, no fork begins until `_leave`."""
    _add(gate + WORD_BYTES * IN_FLIGHT, 1)
    any_number = words(gate)[EXCLUSIVE] == 0
    if _add(gate + WORD_BYTES * FORKING, 0) == 0 and (
        any_number or _exchange(gate + WORD_BYTES * BUSY, 1) == 0
    ):
        return True
    _add(gate + WORD_BYTES * IN_FLIGHT, -1)
    return False


@njit(**INLINED)
def _leave(gate):
    if words(gate)[EXCLUSIVE] != 0:
        _exchange(gate + WORD_BYTES * BUSY, 0)
    _add(gate + WORD_BYTES * IN_FLIGHT, -1)


def _counting(bits):
    """A function that adds to an integer of some width, which other threads add to as well."""

    @intrinsic
    def add(typing_context, address, amount):
        def codegen(context, builder, signature, args):
            kind, word = ir.IntType(bits), ir.IntType(64)
            place = builder.inttoptr(args[0], kind.as_pointer())
            more = builder.trunc(args[1], kind) if bits < 64 else args[1]
            after = builder.add(builder.atomic_rmw("add", place, more, "seq_cst"), more)
            return builder.sext(after, word) if bits < 64 else after

        return types.int64(types.int64, types.int64), codegen

    return add


_count_8, _count_4, _count_2, _count_1 = map(_counting, (64, 32, 16, 8))


@njit(**INLINED)
def _count(address, nbytes, amount):
    """Add to an integer of some width; its value then."""
    if nbytes == 8:
        return _count_8(address, amount)
    if nbytes == 4:
        return _count_4(address, amount)
    if nbytes == 2:
        return _count_2(address, amount)
    return _count_1(address, amount)


def run_act(act_address):
    """Call the kernels of an act in turn, then count.

    Returns
    -------
    int
        DONE; or with nothing written CLOSED, where threads must not be launched now, FULL, where
        the counter can hold no larger number, or STALE, where what was prepared has changed since.
    """
    act = words(act_address)
    if act[EPOCH] and words(act[EPOCH])[0] != act[EXPECTED_EPOCH]:
        return STALE
    counter = act[COUNTER]
    if counter and _count(counter, act[COUNTER_BYTES], 0) == act[COUNTER_LIMIT]:
        return FULL
    threads = act[THREADS]
    before = 1
    if threads > 1:
        if not _enter(act[GATE]):
            return CLOSED
        before = _get_threads(act[GET_THREADS])
        _set_threads(act[SET_THREADS], threads)
    for k in range(act[KERNELS]):
        _call(act[WORDS + 2 * k], act[WORDS + 2 * k + 1])
    if counter:
        _count(counter, act[COUNTER_BYTES], 1)
    if threads > 1:
        _set_threads(act[SET_THREADS], before)
        _leave(act[GATE])
    return DONE
