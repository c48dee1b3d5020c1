"""What must hold on every number of ranks for blocks of calls and for untrained variables."""

import numpy as np
from ranks import dense_of, raised, rows_of, same, same_everywhere, start, total

import rmsjit
from rmsjit.distributed import MPIStrategy


def in_one_step(opt, pairs):
    """A block with a call for each pair."""
    with opt.one_step():
        for pair in pairs:
            opt.apply_gradients([pair])


def check_the_calls_of_a_block_are_one_step(comm, folder):
    for shard in (False, True):
        variables = [*start([(5,), (40, 3)], "float64"), start([(6, 2)], "float64", 1)[0]]
        expected = [v.copy() for v in variables]
        strategy = MPIStrategy(comm, shard_state=shard)
        opt = rmsjit.RMSprop(0.125, global_clipnorm=2.0, strategy=strategy)
        alone = rmsjit.RMSprop(0.125, global_clipnorm=2.0)
        for step in range(3):
            everyone = [
                [*dense_of(rank, step, variables[:2]), rows_of(rank, step, variables[2])]
                for rank in range(comm.size)
            ]
            sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
            in_one_step(opt, zip(everyone[comm.rank], variables, strict=True))
            alone.apply_gradients(zip(sums, expected, strict=True))
        assert opt.iterations == 3
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted, 1e-12)
        same_everywhere(comm, variables)


def check_an_error_in_the_block_of_one_rank_is_raised_on_all(comm, folder):
    variable, odd = np.ones(3), comm.rank == comm.size - 1
    opt = rmsjit.RMSprop(0.125, strategy=MPIStrategy(comm))
    opt.apply_gradients([(np.ones(3), variable)])
    before = variable.copy()

    def fail():
        with opt.one_step():
            opt.apply_gradients([(np.ones(3), variable)])
            if odd:
                raise ArithmeticError("a loss that failed")

    text = raised(fail, ArithmeticError if odd else RuntimeError)
    assert "a loss that failed" in text
    same(variable, before)
    in_one_step(opt, [(np.ones(3), variable)])
    assert opt.iterations == 2


def check_variables_that_are_not_trainable(comm, folder):
    w, fixed = np.ones(3), rmsjit.Variable(np.ones(3), name="fixed", trainable=False)
    opt = rmsjit.RMSprop(0.125, strategy=MPIStrategy(comm))
    for _ in range(2):
        opt.apply_gradients([(w.copy(), w), (np.ones(3), fixed)])
    assert (w < 1).all()
    same(fixed.array, np.ones(3))
    same_everywhere(comm, [w])
    if comm.size > 1:
        odd = rmsjit.Variable(np.ones(3), name="fixed", trainable=comm.rank == 0)
        text = raised(lambda: opt.apply_gradients([(w.copy(), w), (w.copy(), odd)]), RuntimeError)
        assert "not trainable" in text
    sharded = rmsjit.RMSprop(0.125, strategy=MPIStrategy(comm, shard_state=True))
    assert "shard_state=False" in raised(
        lambda: sharded.apply_gradients([(w.copy(), w), (w.copy(), fixed)]), ValueError
    )


CHECKS = {name[6:]: value for name, value in list(globals().items()) if name.startswith("check_")}
