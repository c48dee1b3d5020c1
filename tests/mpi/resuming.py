"""Checkpoints: written by some ranks, read by others, and by one process."""

import itertools

import numpy as np
from ranks import dense_of, raised, rows_of, same, same_everywhere, start, total

import rmsjit
from rmsjit.distributed import MPIStrategy

SHAPES = ((9, 5), (30,), (), (14, 3))
MODES = (("rows", False), ("rows", True), ("exact", False))
NAMES = ("a", "b", "c", "table")


def new_variables():
    variables = start(SHAPES, "float32")
    variables[0] = np.asfortranarray(variables[0])
    return variables


def optimizer(sparse, strategy=None):
    return rmsjit.RMSprop(
        0.125, momentum=0.5, centered=True, clipvalue=9.0, sparse=sparse, strategy=strategy
    )


def gradients_of(rank, step, variables):
    return [*dense_of(rank, step, variables[:-1]), rows_of(rank, step, variables[-1])]


def one_process(ranks, sparse, saved_at, steps):
    """What training on the sums of so many ranks gives, if it is saved after some steps."""
    variables, opt = new_variables(), optimizer(sparse)
    for step in range(steps):
        if step == saved_at:
            opt.sync()
        everyone = [gradients_of(rank, step, variables) for rank in range(ranks)]
        sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
        opt.apply_gradients(zip(sums, variables, strict=True))
    opt.sync()
    return variables, opt


def train(comm, opt, variables, steps, ranks):
    """Steps on the gradients of `ranks`, however many ranks there are here."""
    for step in steps:
        everyone = [gradients_of(rank, step, variables) for rank in range(ranks)]
        mine = everyone[comm.rank :: comm.size]
        own = [total(of_one) for of_one in zip(*mine, strict=True)]
        opt.apply_gradients(zip(own, variables, strict=True))


def named(variables):
    return dict(zip(NAMES, variables, strict=True))


def check_resume_with_fewer_ranks(comm, folder):
    for (sparse, shard), then_shard in itertools.product(MODES, (False, True)):
        if sparse == "exact" and then_shard:
            continue
        path = folder / f"resume-{sparse}-{shard}-{then_shard}.npz"
        variables, strategy = new_variables(), MPIStrategy(comm, shard_state=shard)
        opt = optimizer(sparse, strategy)
        train(comm, opt, variables, range(3), comm.size)
        strategy.save(path, opt, named(variables))
        train(comm, opt, variables, range(3, 5), comm.size)  # saving has changed nothing
        opt.sync()
        expected, alone = one_process(comm.size, sparse, 3, 5)
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted)
        resume(comm, path, sparse, then_shard, expected)
        same_state(strategy.gathered(opt, named(variables)), alone, expected)


def resume(comm, path, sparse, shard, expected):
    """Go on with one rank less, from other values."""
    fewer = comm.Split(0 if comm.rank < max(1, comm.size - 1) else 1)
    if comm.rank < max(1, comm.size - 1):
        variables = [np.ones_like(v) for v in new_variables()]
        strategy = MPIStrategy(fewer, shard_state=shard)
        opt = optimizer(sparse, strategy)
        strategy.load(path, opt, named(variables))
        assert int(opt.iterations) == 3
        train(fewer, opt, variables, range(3, 5), comm.size)
        opt.sync()
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted)
        assert int(opt.iterations) == 5
    fewer.Free()


def same_state(whole, alone, expected):
    if whole is None:
        return
    assert len(whole.get_weights()) == len(alone.get_weights())
    for got, wanted in zip(whole.get_weights(), alone.get_weights(), strict=True):
        same(got, wanted)


def check_load_in_the_middle_of_training(comm, folder):
    """Back to a checkpoint in the same process."""
    for sparse, shard in MODES:
        path = folder / f"middle-{sparse}-{shard}.npz"
        variables, strategy = new_variables(), MPIStrategy(comm, shard_state=shard)
        opt = optimizer(sparse, strategy)
        train(comm, opt, variables, range(2), comm.size)
        strategy.save(path, opt, named(variables))
        train(comm, opt, variables, range(7, 9), comm.size)
        strategy.load(path, opt, named(variables))
        train(comm, opt, variables, range(2, 4), comm.size)
        opt.sync()
        expected, _ = one_process(comm.size, sparse, 2, 4)
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted)


def check_errors_of_rank_0_reach_all(comm, folder):
    for shard in (False, True):
        strategy = MPIStrategy(comm, shard_state=shard)
        variables = new_variables()
        opt = optimizer("rows", strategy)
        train(comm, opt, variables, range(1), comm.size)
        before = [v.copy() for v in variables]
        kind = OSError if comm.rank == 0 else RuntimeError
        missing = folder / "no such folder" / "file.npz"
        raised(lambda: strategy.save(missing, opt, named(variables)), kind)  # noqa: B023
        raised(lambda: strategy.load(missing, opt, named(variables)), kind)  # noqa: B023
        for got, wanted in zip(variables, before, strict=True):
            same(got, wanted)
        train(comm, opt, variables, range(1, 2), comm.size)
        same_everywhere(comm, variables)
        expected, _ = one_process(comm.size, "rows", -1, 2)
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted)


def check_skipping_a_step(comm, folder):
    for shard, nonfinite in itertools.product((False, True), ("skip", "raise")):
        strategy = MPIStrategy(comm, shard_state=shard)
        opt = rmsjit.RMSprop(0.125, nonfinite=nonfinite, strategy=strategy)
        variables = new_variables()
        train(comm, opt, variables, range(1), comm.size)
        before = [v.copy() for v in variables]
        gradients = gradients_of(comm.rank, 1, variables)
        if comm.rank == comm.size - 1:
            gradients[1][-1] = np.nan
        pairs = list(zip(gradients, variables, strict=True))
        if nonfinite == "raise":
            assert "variable 1" in raised(lambda: opt.apply_gradients(pairs), FloatingPointError)  # noqa: B023
        else:
            opt.apply_gradients(pairs)
            assert opt.skipped_steps == 1
            strategy.save(folder / "skipped.npz", opt, named(variables))
            other = rmsjit.RMSprop(0.125, nonfinite=nonfinite, strategy=strategy)
            strategy.load(folder / "skipped.npz", other, named(variables))
            assert other.skipped_steps == 1
        assert int(opt.iterations) == 1
        for got, wanted in zip(variables, before, strict=True):
            same(got, wanted)


def check_saved_settings(comm, folder):
    """A checkpoint holds the settings of the optimizer, also where rank 0 gathers the slots."""
    for shard in (False, True):
        strategy = MPIStrategy(comm, shard_state=shard)
        opt = rmsjit.RMSprop(0.125, epsilon=0.5, nonfinite="skip", strategy=strategy)
        variables = new_variables()[:3]
        opt.apply_gradients([(v.copy(), v) for v in variables])
        path = folder / f"settings-{shard}.npz"
        named_three = dict(zip(NAMES, variables, strict=False))
        strategy.save(path, opt, named_three)
        whole = strategy.gathered(opt, named_three)
        assert (whole is None) == (shard and comm.rank > 0)
        assert whole is None or whole._settings.nonfinite == "skip"
        loaded, _ = rmsjit.load(path)
        assert loaded._settings.nonfinite == "skip"
        assert loaded.epsilon == 0.5
        assert int(loaded.iterations) == 1


def check_plateaus_resume_on_all_ranks(comm, folder):
    """Only rank 0 reads the file, and its rate counts; but the others must not fall behind."""
    for shard in (False, True):
        runs = []
        for _ in range(2):
            strategy = MPIStrategy(comm, shard_state=shard)
            rate = rmsjit.schedules.ReduceOnPlateau(0.125, factor=0.5, patience=0)
            runs.append((strategy, rmsjit.RMSprop(rate, strategy=strategy), new_variables()))
        (strategy, opt, variables), (fresh, resumed, empty) = runs
        train(comm, opt, variables, range(2), comm.size)
        for metric in (1.0, 2.0, 0.5):
            opt.learning_rate.update(metric)
        path = folder / f"plateau-{shard}.npz"
        strategy.save(path, opt, named(variables))
        fresh.load(path, resumed, named(empty))
        assert resumed.learning_rate == opt.learning_rate
        assert resumed.learning_rate(0) == 0.0625
        for one, two in ((opt, variables), (resumed, empty)):
            train(comm, one, two, range(2, 4), comm.size)
        for got, wanted in zip(empty, variables, strict=True):
            same(got, wanted)


def check_arrays_in_any_layout_are_loaded_on_all_ranks(comm, folder):
    """Also those that no step has used."""

    def layouts(value):
        return {
            "fortran": np.asfortranarray(np.full((3, 2), value)),
            "reversed": np.full(5, value)[::-1],
            "column": np.full((4, 2), value)[:, 0],
            "plain": np.full(3, value),
        }

    for shard in (False, True):
        strategy, path = MPIStrategy(comm, shard_state=shard), folder / f"layouts-{shard}.npz"
        saved = layouts(7.0)
        opt = optimizer("rows", strategy)
        opt.apply_gradients([(np.ones((3, 2)), saved["fortran"])])
        strategy.save(path, opt, saved)
        loaded = layouts(0.0)
        strategy.load(path, optimizer("rows", strategy), loaded)
        for name, value in saved.items():
            same(loaded[name], value)


CHECKS = {name[6:]: value for name, value in list(globals().items()) if name.startswith("check_")}
