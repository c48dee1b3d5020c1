"""What fails on one rank alone must be told to all: nobody waits, and nobody drifts."""

import copy
import itertools
import pickle
import warnings

import numpy as np
import pytest
from mpi4py import MPI
from ranks import dense_of, raised, rows_of, same, same_everywhere, start, total

import rmsjit
from rmsjit.distributed import MPIStrategy

MODES = (False, True)


def is_odd(comm):
    return comm.rank == comm.size - 1


def ready(comm, shard=False, make=rmsjit.RMSprop, shapes=((40,), (6, 4)), **settings):
    """A strategy, an optimizer and variables after one step."""
    strategy = MPIStrategy(comm, shard_state=shard)
    opt = make(0.125, strategy=strategy, **settings)
    variables = start(shapes, "float32")
    opt.apply_gradients(zip(dense_of(comm.rank, 0, variables), variables, strict=True))
    return strategy, opt, variables


def step(comm, opt, variables, number=1):
    opt.apply_gradients(zip(dense_of(comm.rank, number, variables), variables, strict=True))


def told(comm, act, own=RuntimeError, text=""):
    """All ranks raise an error, the odd one of them its own; all of them name `text`."""
    message = raised(act, own if is_odd(comm) else RuntimeError)
    assert text in message, message
    return message


# --- different acts -------------------------------------------------------------------------


def check_acts_that_differ(comm, folder):
    if comm.size == 1:
        return
    for shard in MODES:
        strategy, opt, variables = ready(comm, shard)
        named = dict(zip("ab", variables, strict=True))
        before = [v.copy() for v in variables]
        others = (
            (lambda: strategy.save(folder / "x.npz", opt, named), "save"),  # noqa: B023
            (lambda: strategy.load(folder / "x.npz", opt, named), "load"),  # noqa: B023
            (lambda: strategy.gathered(opt, named), "gather"),  # noqa: B023
            (strategy.close, "close"),
            (lambda: MPIStrategy(comm), "construct"),
        )
        for act, name in others:
            odd = f"rank {comm.size - 1} is about to {name}"
            text = raised(act if is_odd(comm) else lambda: step(comm, opt, variables), RuntimeError)  # noqa: B023
            assert odd in text
            assert "rank 0 is about to take step 2" in text
        for got, wanted in zip(variables, before, strict=True):
            same(got, wanted)
        step(comm, opt, variables)
        same_everywhere(comm, variables)


def check_optimizers_in_different_order(comm, folder):
    if comm.size == 1:
        return
    strategy = MPIStrategy(comm)
    opts = [rmsjit.RMSprop(rate, strategy=strategy) for rate in (0.1, 1.0)]
    variables = [np.ones(4), np.ones(4)]
    order = (1, 0) if is_odd(comm) else (0, 1)
    text = raised(lambda: step(comm, opts[order[0]], variables), RuntimeError)
    assert f"rank {comm.size - 1} is about to take step 1 of optimizer 1" in text
    for opt in opts:
        step(comm, opt, variables)
    same_everywhere(comm, variables)


def check_strategies_in_different_order(comm, folder):
    if comm.size == 1:
        return
    opts = [rmsjit.RMSprop(0.1, strategy=MPIStrategy(comm)) for _ in range(2)]
    variables = [np.ones(4)]
    assert "strategy" in raised(lambda: step(comm, opts[is_odd(comm)], variables), RuntimeError)


def check_order_of_plain_arrays_at_a_later_step(comm, folder):
    if comm.size == 1:
        return
    for shard in MODES:
        _, opt, variables = ready(comm, shard, shapes=((8,), (8,)))
        before = [v.copy() for v in variables]
        pairs = [(np.full(8, k + 1, np.float32), v) for k, v in enumerate(variables)]
        text = raised(
            lambda: opt.apply_gradients(pairs[::-1] if is_odd(comm) else pairs),  # noqa: B023
            RuntimeError,
        )
        assert f"variable 0: rank {comm.size - 1}" in text
        for got, wanted in zip(variables, before, strict=True):
            same(got, wanted)


def check_state_that_one_rank_has_changed(comm, folder):
    if comm.size == 1:
        return
    for shard in MODES:
        _, opt, variables = ready(comm, shard)
        if is_odd(comm):
            opt.iterations.assign(7)
        assert "has 7" in raised(lambda: step(comm, opt, variables), RuntimeError)  # noqa: B023
    _, opt, variables = ready(comm)
    if is_odd(comm):
        opt.forget(variables[0])
    assert "without state" in raised(lambda: step(comm, opt, variables), RuntimeError)
    _, opt, variables = ready(comm)
    if is_odd(comm):
        opt.rebind(variables[0], variables[0].copy())
    new = [variables[0].copy() if is_odd(comm) else variables[0], variables[1]]
    assert "new to the optimizer" in raised(lambda: step(comm, opt, new), RuntimeError)


def check_counter_of_one_rank(comm, folder):
    if comm.size == 1:
        return
    opt, v = rmsjit.train.RMSPropOptimizer(0.1, strategy=MPIStrategy(comm)), np.ones(4)
    for counter in (np.array(0), np.array(0, np.int32)):
        own = counter if is_odd(comm) else None if counter.dtype == np.int64 else np.array(0)
        text = raised(lambda: opt.apply_gradients([(np.ones(4), v)], own), RuntimeError)  # noqa: B023
        assert "counter" in text


# --- errors before the step -----------------------------------------------------------------


class UnspeakableError(Exception):
    def __str__(self):
        raise ValueError("no words")


def failing_iterable():
    raise OSError("no data")
    yield


def check_errors_before_the_step(comm, folder):
    """Each is raised on the odd rank, which goes on like the others."""
    for shard in MODES:
        _, opt, variables = ready(comm, shard)
        good = [(np.ones_like(v), v) for v in variables]
        for bad, kind in ((3, TypeError), (failing_iterable(), OSError), ([(1,)], TypeError)):
            told(comm, lambda: opt.apply_gradients(bad if is_odd(comm) else good), kind, "")  # noqa: B023
        opt.iterations.array.flags.writeable = not is_odd(comm)
        told(comm, lambda: opt.apply_gradients(good), ValueError, "iterations")  # noqa: B023
        opt.iterations.array.flags.writeable = True
        step(comm, opt, variables)
        assert int(opt.iterations) == 2
        same_everywhere(comm, variables)


def check_errors_of_any_kind(comm, folder):
    for error in (KeyboardInterrupt(), SystemExit(3), UnspeakableError()):

        def rate(error=error):
            if is_odd(comm):
                raise error
            return 0.125

        opt, v = rmsjit.RMSprop(rate, strategy=MPIStrategy(comm)), np.ones(4)
        pairs = [(np.ones(4), v)]
        if is_odd(comm):
            with pytest.raises(type(error)):
                opt.apply_gradients(pairs)
        else:
            assert type(error).__name__ in raised(lambda: opt.apply_gradients(pairs), RuntimeError)  # noqa: B023


def check_errors_of_hooks(comm, folder):
    def fail(pairs):
        if is_odd(comm):
            raise OSError("no network")
        return [(g, v) for g, v in pairs]

    opt = rmsjit.RMSprop(0.1, strategy=MPIStrategy(comm), gradient_aggregator=fail)
    v = np.ones(4)
    told(comm, lambda: opt.apply_gradients([(np.ones(4), v)]), OSError, "no network")


def check_errors_of_checkpoints(comm, folder):
    for shard in MODES:
        strategy, opt, variables = ready(comm, shard)
        named = dict(zip("ab", variables, strict=True))
        strategy.save(folder / f"told-{shard}.npz", opt, named)
        wrong = {"a": 3} if is_odd(comm) else named
        told(comm, lambda: strategy.gathered(opt, wrong), TypeError, "variables")  # noqa: B023
        told(comm, lambda: strategy.save(folder / "no.npz", opt, wrong), TypeError, "variables")  # noqa: B023
        variables[0].flags.writeable = not is_odd(comm)
        told(
            comm,
            lambda: strategy.load(folder / f"told-{shard}.npz", opt, named),  # noqa: B023
            ValueError,
            "writeable",
        )
        variables[0].flags.writeable = True
        if shard:
            fewer = {"a": variables[0]} if is_odd(comm) else named
            told(comm, lambda: strategy.gathered(opt, fewer), ValueError, "lacks 1 of 2")  # noqa: B023
        step(comm, opt, variables)
        same_everywhere(comm, variables)


def check_errors_of_construction(comm, folder):
    text = told(
        comm, lambda: MPIStrategy(comm, reduce="x" if is_odd(comm) else "sum"), ValueError, "reduce"
    )
    if not is_odd(comm):
        assert f"rank {comm.size - 1} can't construct" in text
    for bad in ("world", 3, MPI.COMM_NULL):
        raised(lambda: MPIStrategy(bad), (TypeError, ValueError))  # noqa: B023
    raised(lambda: MPIStrategy(comm, shard_state="no"), TypeError)
    raised(lambda: rmsjit.RMSprop(strategy=MPIStrategy), TypeError)
    raised(lambda: rmsjit.RMSprop(strategy="x"), TypeError)
    if comm.size > 1:
        half = comm.Split(comm.rank % 2)
        between = half.Create_intercomm(0, comm, 1 - comm.rank % 2)
        raised(lambda: MPIStrategy(between), ValueError)
        between.Free()
        half.Free()


def check_floating_point_errors_of_the_caller(comm, folder):
    for shard in MODES:
        _, opt, variables = ready(comm, shard)
        with np.errstate(all="raise"):
            opt.apply_gradients([(np.full(v.shape, 1e300), v) for v in variables])
        same_everywhere(comm, variables)


# --- errors after the agreement -------------------------------------------------------------


def check_failure_in_the_step(comm, folder):
    """One rank fails between the reduction and the update: the others end the step or refuse it."""
    if comm.size == 1:
        return
    for shard, clip in itertools.product(MODES, ({}, {"global_clipnorm": 1.0})):
        strategy, opt, variables = ready(comm, shard, **clip)
        named = dict(zip("ab", variables, strict=True))
        strategy.save(folder / "before.npz", opt, named)
        before = [v.copy() for v in variables]
        if is_odd(comm):
            opt._engine._is_ready = opt._engine._launch = _no_memory
            opt._engine._plans.clear()
        if is_odd(comm) or (shard and clip):
            raised(lambda: step(comm, opt, variables), (MemoryError, RuntimeError))  # noqa: B023
        else:
            step(comm, opt, variables)
        if is_odd(comm):
            del opt._engine._is_ready, opt._engine._launch
        if shard and clip:  # norms were to be exchanged: all know in time
            for got, wanted in zip(variables, before, strict=True):
                same(got, wanted)
        else:
            text = raised(lambda: step(comm, opt, variables), RuntimeError)  # noqa: B023
            assert f"rank {comm.size - 1} has completed 1 steps and rank 0 2" in text
            strategy.load(folder / "before.npz", opt, named)
        step(comm, opt, variables)
        same_everywhere(comm, variables)
        assert int(opt.iterations) == 2


def _no_memory(*arguments):
    raise MemoryError("no memory")


def check_constraint_of_one_rank(comm, folder):
    if comm.size == 1:
        return
    broken = []

    def constraint(value):
        if broken and is_odd(comm):
            raise ValueError("out of bounds")
        return value

    for shard in MODES:
        broken.clear()
        v = rmsjit.Variable(np.ones(40), constraint=constraint)
        strategy = MPIStrategy(comm, shard_state=shard)
        opt = rmsjit.RMSprop(0.1, strategy=strategy)
        take = lambda: opt.apply_gradients([(np.ones(40), v)])  # noqa: B023, E731
        take()
        broken.append(True)
        if is_odd(comm):
            raised(take, ValueError)
        else:
            take()
        assert "has completed" in raised(take, RuntimeError)


def check_warning_as_error(comm, folder):
    for shard in MODES:
        _, opt, variables = ready(comm, shard)
        pairs = [(np.ones_like(variables[0]), variables[0]), (None, variables[1])]
        with warnings.catch_warnings():
            warnings.simplefilter("error" if is_odd(comm) else "ignore")
            told(comm, lambda: opt.apply_gradients(pairs), RuntimeWarning, "no gradient")  # noqa: B023
        step(comm, opt, variables)
        same_everywhere(comm, variables)


def check_slots_survive_a_failure(comm, folder):
    """A rank that has no memory for its slots: the next attempt finds those of the checkpoint."""
    from rmsjit.distributed import replicated, sharded

    for shard in MODES:
        strategy, opt, variables = ready(comm, shard)
        named = dict(zip("ab", variables, strict=True))
        strategy.save(folder / "slots.npz", opt, named)
        strategy.load(folder / "slots.npz", opt, named)
        module = sharded if shard else replicated
        build = module.build
        if is_odd(comm):
            module.build = _no_memory
        told(comm, lambda: step(comm, opt, variables), MemoryError, "no memory")  # noqa: B023
        module.build = build
        step(comm, opt, variables)
        alone, expected = rmsjit.RMSprop(0.125), start(((40,), (6, 4)), "float32")
        for number in range(2):
            everyone = [dense_of(rank, number, expected) for rank in range(comm.size)]
            sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
            alone.apply_gradients(zip(sums, expected, strict=True))
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted)


# --- the state of sharded optimizers --------------------------------------------------------


def check_copies_of_shards_are_refused(comm, folder):
    _, opt, variables = ready(comm, True)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        raised(lambda: attempt(opt), NotImplementedError)  # noqa: B023
    raised(lambda: opt.add_slot(variables[0], "own"), NotImplementedError)
    raised(lambda: opt.forget(variables[0]), NotImplementedError)
    raised(lambda: opt.rebind(variables[0], variables[0].copy()), NotImplementedError)
    raised(lambda: opt.resize_rows(variables[1], np.zeros((8, 4), "f4")), NotImplementedError)
    step(comm, opt, variables)
    new = rmsjit.RMSprop(0.1, strategy=MPIStrategy(comm, shard_state=True))
    assert copy.deepcopy(new).get_config() == new.get_config()


def check_added_slots_are_refused_in_files(comm, folder):
    strategy, opt, variables = ready(comm)
    named = dict(zip("ab", variables, strict=True))
    opt.add_slot(variables[0], "own", "ones")
    strategy.save(folder / "added.npz", opt, named)
    shards, other, _ = ready(comm, True)
    kind = ValueError if comm.rank == 0 else RuntimeError
    assert "own" in raised(lambda: shards.load(folder / "added.npz", other, named), kind)


def check_loaded_variables_that_are_not_stepped_are_saved(comm, folder):
    strategy, opt, variables = ready(comm, True)
    named = dict(zip("ab", variables, strict=True))
    slots = []
    for number in range(2):
        path = folder / f"kept{number}.npz"
        strategy.save(path, opt, named)
        slots.append(rmsjit.load(path)[0].get_weights())
        opt = rmsjit.RMSprop(0.125, strategy=strategy)
        strategy.load(path, opt, named)
    for got, wanted in zip(*slots, strict=True):
        same(got, wanted)


# --- communicators --------------------------------------------------------------------------


def check_communicators_are_shared_and_freed(comm, folder):
    first, second = MPIStrategy(comm), MPIStrategy(comm, shard_state=True)
    assert first._group is second._group
    own = comm.Dup()
    strategy = MPIStrategy(own)
    opt, v = rmsjit.RMSprop(0.1, strategy=strategy), np.ones(4)
    own.Free()  # the strategy has its own
    opt.apply_gradients([(np.ones(4), v)])
    strategy.close()
    strategy.close()
    assert "closed" in raised(lambda: opt.apply_gradients([(np.ones(4), v)]), RuntimeError)
    for _ in range(20):
        MPIStrategy(comm).close()


# --- uneven ends ----------------------------------------------------------------------------


def check_join(comm, folder):
    """Rank r has r + 1 batches more than the first one; those that end early add zeros."""
    for shard, reduce in itertools.product(MODES, ("sum", "mean")):
        strategy = MPIStrategy(comm, reduce=reduce, shard_state=shard)
        opt, alone = (rmsjit.RMSprop(0.125, momentum=0.5, strategy=s) for s in (strategy, None))
        variables = [*start([(40,), (6, 4)], "float32"), *start([(12, 3)], "float32", 5)]
        expected = [v.copy() for v in variables]
        made = [
            [[*dense_of(r, n, variables[:2]), rows_of(r, n, variables[2])] for n in range(r + 2)]
            for r in range(comm.size)
        ]
        with strategy.join():
            for gradients in made[comm.rank]:
                opt.apply_gradients(zip(gradients, variables, strict=True))
        scale = 1 / comm.size if reduce == "mean" else 1.0
        for number in range(comm.size + 1):
            there = [batches[number] for batches in made if number < len(batches)]
            sums = [total(of_one, scale) for of_one in zip(*there, strict=True)]
            alone.apply_gradients(zip(sums, expected, strict=True))
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted, 1e-5)
        same_everywhere(comm, variables)
        assert int(opt.iterations) == comm.size + 1


def check_join_counts_skipped_steps(comm, folder):
    if comm.size == 1:
        return
    for shard in MODES:
        strategy = MPIStrategy(comm, shard_state=shard)
        opt, v = rmsjit.RMSprop(0.1, nonfinite="skip", strategy=strategy), np.ones(40)
        with strategy.join():
            opt.apply_gradients([(np.ones(40), v)])
            if is_odd(comm):
                opt.apply_gradients([(np.full(40, np.nan), v)])
                opt.apply_gradients([(np.ones(40), v)])
        assert opt.skipped_steps == 1
        assert int(opt.iterations) == 2
        same_everywhere(comm, [v])


def check_join_that_fails(comm, folder):
    if comm.size == 1:
        return
    odd = comm.size - 1
    strategy, opt, variables = ready(comm)

    def without_a_batch():
        with strategy.join():
            if not is_odd(comm):
                step(comm, opt, variables)

    assert f"rank {odd} can't" in told(comm, without_a_batch, RuntimeError, "batch") or is_odd(comm)

    def with_an_error():
        with strategy.join():
            step(comm, opt, variables)
            if is_odd(comm):
                raise OSError("no data")
            step(comm, opt, variables)

    told(comm, with_an_error, OSError, "no data")

    def with_a_save():
        with strategy.join():
            if not is_odd(comm):
                strategy.save(folder / "x.npz", opt, dict(zip("ab", variables, strict=True)))

    text = raised(with_a_save, RuntimeError)
    assert f"rank {odd} has no more batches" in text, text

    def outside():
        if is_odd(comm):
            with strategy.join():
                pass
        else:
            step(comm, opt, variables)

    assert "outside of strategy.join()" in raised(outside, RuntimeError)
    step(comm, opt, variables)
    same_everywhere(comm, variables)


def check_skipping_in_hooks(comm, folder):
    """A gradient that clipping would make finite: all ranks skip, as one process does."""
    for gradient in (np.nan, np.inf):
        opt = rmsjit.RMSprop(
            0.1,
            clipvalue=1.0,
            nonfinite="skip",
            strategy=MPIStrategy(comm),
            gradient_aggregator=lambda pairs: [g for g, _ in pairs] and pairs,
        )
        v = np.ones(4)
        opt.apply_gradients([(np.full(4, gradient if is_odd(comm) else 1.0), v)])
        assert opt.skipped_steps == 1
        assert bool((v == 1).all())


CHECKS = {name[6:]: value for name, value in list(globals().items()) if name.startswith("check_")}
