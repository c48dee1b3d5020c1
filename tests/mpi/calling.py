"""What must hold on every number of ranks for blocks of calls and for untrained variables."""

import functools

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


def check_calls_of_a_round_in_any_order_are_summed_by_variable(comm, folder):
    """Each call has a gradient of one variable only, and ranks make the calls in other orders."""
    for shapes, shard in (((2, 2), False), ((2, 3), False), ((2, 3), True)):
        a, b = map(np.zeros, shapes)
        strategy = MPIStrategy(comm, shard_state=shard)
        opt = rmsjit.RMSprop(0.125, gradient_accumulation_steps=2, strategy=strategy)
        alone, expected = rmsjit.RMSprop(0.125), [a.copy(), b.copy()]
        of_a, of_b = np.full(shapes[0], 1.0), np.full(shapes[1], -9.0)
        calls = [[(of_a, a), (None, b)], [(None, a), (of_b, b)]]
        for _ in range(2):
            for pairs in calls[:: -1 if comm.rank % 2 else 1]:
                opt.apply_gradients(pairs)
            sums = [of_a * comm.size / 2, of_b * comm.size / 2]
            alone.apply_gradients(zip(sums, expected, strict=True))
        for got, wanted in zip((a, b), expected, strict=True):
            same(got, wanted, 1e-12)
        same_everywhere(comm, [a, b])


def check_a_round_is_reduced_as_its_calls_say(comm, folder):
    for ends in ("call", "flush"):
        w, gradient = np.zeros(2), np.array([3.0, 4.0])
        steps = 2 if ends == "call" else 3
        opt = rmsjit.RMSprop(
            0.125,
            gradient_accumulation_steps=steps,
            track_norms=True,
            strategy=MPIStrategy(comm),
        )
        for _ in range(2):
            opt.apply_gradients([(gradient, w)], experimental_aggregate_gradients=False)
        opt.flush()
        assert (opt.iterations, opt.last_gradient_norm) == (1, 5.0)
        opt.apply_gradients([(gradient, w)])
        mixed = functools.partial(opt.apply_gradients, experimental_aggregate_gradients=False)
        text = raised(functools.partial(mixed, [(gradient, w)]), ValueError)
        assert "experimental_aggregate_gradients must be the same in all calls" in text
        assert opt.accumulated_calls == 1


def check_groups_that_are_frozen_later(comm, folder):
    for shard, steps in ((False, 2), (True, 2), (True, None)):
        a, b = np.ones(40), np.ones(40)
        given = []

        def aggregator(pairs, given=given):
            given.append(len(pairs))
            return [(comm.allreduce(gradient), variable) for gradient, variable in pairs]

        opt = rmsjit.RMSprop(
            0.125,
            gradient_accumulation_steps=steps,
            gradient_aggregator=None if steps else aggregator,
            strategy=MPIStrategy(comm, shard_state=shard),
        )
        group = opt.add_group([b])
        for step in range(3):
            for _ in range(steps or 1):
                opt.apply_gradients([(np.ones(40), a), (np.ones(40), b)])
            if step == 0:
                frozen, group.frozen = b.copy(), True
        same(b, frozen)
        assert (a < b).all()
        assert given == ([] if steps else [2, 1, 1])
        same_everywhere(comm, [a, b])


CHECKS = {name[6:]: value for name, value in list(globals().items()) if name.startswith("check_")}
