"""One act: all kernels of a step, then its counter, without a return to Python.

Wherever a step returns to the interpreter, other Python code can run: a signal handler, an
exception for Ctrl-C, another thread.  So everything that belongs together is written in one call.
All that can fail or needs Python is done before the act; what may still refuse it (a full counter,
another thread that is about to fork) is checked before the first write.
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from rmsjit.kernels.driver import ALL
from rmsjit.kernels.views import WORD_BYTES, call_c, words
from rmsjit.runtime.flags import INLINED
from rmsjit.runtime.forks import BUSY, EXCLUSIVE, FORKING, IN_FLIGHT

# Words of an act; they are followed by the address of each kernel and of its call.  ON_THREADS is
# the address of `rmsjit.kernels.driver.run_on_threads`, read only if there are threads.
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
    ON_THREADS,
    GATE,
) = range(11)
WORDS = 11
DONE, CLOSED, FULL, STALE = range(4)  # what an act returns


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


def _atomic(operation, bits=64):
    """A function ``(address, operand)``: change an integer atomically, return its former value."""

    @intrinsic
    def change(typing_context, address, operand):
        def codegen(context, builder, signature, args):
            kind = ir.IntType(bits)
            place = builder.inttoptr(args[0], kind.as_pointer())
            narrow = builder.trunc(args[1], kind)
            before = builder.atomic_rmw(operation, place, narrow, "seq_cst")
            return builder.sext(before, ir.IntType(64))

        return types.int64(types.int64, types.int64), codegen

    return change


_exchange = _atomic("xchg")
_add, _add_4, _add_2, _add_1 = (_atomic("add", bits) for bits in (64, 32, 16, 8))


@njit(**INLINED)
def _enter(gate):
    """Whether threads may be launched now; if so, no fork can begin until `_leave`."""
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


@njit(**INLINED)
def _count(address, nbytes, amount):
    """Add to an integer of 1, 2, 4 or 8 bytes, and return its former value."""
    if nbytes == 8:
        return _add(address, amount)
    if nbytes == 4:
        return _add_4(address, amount)
    if nbytes == 2:
        return _add_2(address, amount)
    return _add_1(address, amount)


def run_act(act_address):
    """Call the kernels of an act one after the other, then count.

    Returns
    -------
    int
        DONE; or, with nothing written, CLOSED if threads must not be launched now, FULL if the
        counter has reached its maximum, or STALE if the epoch has changed since the act was made.
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
        kernel, call_address = act[WORDS + 2 * k], act[WORDS + 2 * k + 1]
        if threads > 1 and words(call_address)[0] > 1:  # bins
            call_c(act[ON_THREADS], kernel, call_address)
        else:
            call_c(kernel, call_address, ALL)
    if counter:
        _count(counter, act[COUNTER_BYTES], 1)
    if threads > 1:
        _set_threads(act[SET_THREADS], before)
        _leave(act[GATE])
    return DONE
