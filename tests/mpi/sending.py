"""What must hold on every number of ranks for gradients that are sent before their step."""

import itertools
from functools import partial

import numpy as np
from ranks import dense_of, exact, raised, rows_of, same, same_everywhere, start, total

import rmsjit
from rmsjit.distributed import MPIStrategy, traffic

SHAPES = ((3, 5), (4200,), (), (17, 9), (1,), (0, 2))
DTYPES = ("float16", "float32", "float64", "complex64")


class Run:
    """Training on all ranks with gradients that are sent, and on the sums in one process."""

    shard_state = False

    def __init__(self, comm, variables, order=None, settings=None, **optimizer):
        self.comm = comm
        self.variables = variables
        self.order = range(len(variables))[::-1] if order is None else order
        self.scale = 1 / comm.size if (settings or {}).get("reduce") == "mean" else 1.0
        settings = {"bucket_bytes": 1024, "shard_state": self.shard_state, **(settings or {})}
        self.strategy = MPIStrategy(comm, **settings)
        self.opt = rmsjit.RMSprop(0.125, strategy=self.strategy, **optimizer)
        self.alone = rmsjit.RMSprop(0.125, **optimizer)
        self.expected = [v.copy(order="K") for v in variables]
        self.steps = 0

    def gradients(self, rank):
        return dense_of(rank, self.steps, self.variables)

    def send(self, gradients, most=None):
        for k in list(self.order)[:most]:
            self.strategy.send(gradients[k], self.variables[k])

    def step(self, gradients):
        self.opt.apply_gradients(zip(gradients, self.variables, strict=True))

    def train(self, steps=3, rtol=None):
        for _ in range(steps):
            everyone = [self.gradients(rank) for rank in range(self.comm.size)]
            self.send(everyone[self.comm.rank])
            self.step(everyone[self.comm.rank])
            sums = [total(of_one, self.scale) for of_one in zip(*everyone, strict=True)]
            self.alone.apply_gradients(zip(sums, self.expected, strict=True))
            self.steps += 1
        self.compare(rtol)

    def compare(self, rtol=None):
        for got, wanted in zip(self.variables, self.expected, strict=True):
            same(got, wanted, rtol)
        same_everywhere(self.comm, self.variables)

    @property
    def is_travelling(self):
        """Whether the gradients sent last travel before their step."""
        return self.strategy._outbox.sending._plan is not None


class ShardedRun(Run):
    """The same where every rank has a part of each slot."""

    shard_state = True


def is_odd(comm):
    return comm.rank == comm.size - 1


def check_sent_gradients_of_every_dtype(comm, folder, make):
    for dtype, wire in itertools.product(DTYPES, (None, "bfloat16")):
        for momentum in (0.0, 0.5):
            settings = {"wire_dtype": wire}
            make(comm, start(SHAPES, dtype), settings=settings, momentum=momentum).train()


def check_sent_gradients_with_clipping(comm, folder, make):
    for bound, reduce in itertools.product(
        ({"clipvalue": 0.75}, {"clipnorm": 2.0}, {"global_clipnorm": 3.0}), ("sum", "mean")
    ):
        run = make(comm, start(SHAPES, "float32"), settings={"reduce": reduce}, **bound)
        run.train(rtol=None if reduce == "sum" and make is Run else 2e-5)


def check_sent_gradients_travel_from_the_second_step_on(comm, folder, make):
    run = make(comm, start(SHAPES, "float32"))
    for step in range(3):
        gradients = run.gradients(comm.rank)
        run.send(gradients)
        assert run.is_travelling == (step > 0 and comm.size > 1)
        run.step(gradients)


def check_sent_gradients_have_the_bits_of_others(comm, folder, make):
    """Random gradients; on more than two ranks MPI may add in another order."""
    runs = [make(comm, [np.zeros(s, np.float32) for s in SHAPES]) for _ in range(2)]
    for step in range(4):
        rng = np.random.default_rng([step, comm.rank])
        gradients = [np.asarray(rng.standard_normal(s), np.float32) for s in SHAPES]
        runs[0].send(gradients)
        for run in runs:
            run.step(gradients)
    for got, wanted in zip(runs[0].variables, runs[1].variables, strict=True):
        same(got, wanted, None if comm.size <= 2 else 1e-5)
    same_everywhere(comm, runs[0].variables)


def check_sent_gradients_without_threads(comm, folder, make):
    """As where MPI was started for one thread."""
    traffic._may_use_threads, kept = lambda: False, traffic._may_use_threads
    try:
        make(comm, start(SHAPES, "float32")).train()
    finally:
        traffic._may_use_threads = kept


def check_some_gradients_are_sent(comm, folder, make):
    """The others, sparse ones among them, go with the step; the order is any."""
    variables = [*start(SHAPES, "float32"), *start([(12, 3)], "float32", 5)]
    run = make(comm, variables, order=(3, 0, 6, 1))
    run.gradients = lambda rank: [
        *dense_of(rank, run.steps, variables[:-1]),
        rows_of(rank, run.steps, variables[-1]),
    ]
    run.train()
    for gradient in (None, rows_of(0, 0, variables[-1])):
        run.strategy.send(gradient, variables[-1])
    assert run.strategy._outbox.sending is None


def check_sent_gradients_in_any_layout_and_dtype(comm, folder, make):
    variables = [np.asfortranarray(v) for v in start([(6, 7), (4, 300)], "float32")]
    variables.append(start([(8, 40)], "float32", 3)[0][:, ::2])
    run = make(comm, variables)
    run.gradients = lambda rank: [g.astype("float64") for g in dense_of(rank, run.steps, variables)]
    run.train()


def check_order_of_sending_that_changes(comm, folder, make):
    """On all ranks alike: the step sends the gradients once more, and learns the new order."""
    run = make(comm, start(SHAPES, "float32"))
    run.train()
    for run.order in ((0, 1, 2, 3, 4), (4, 3, 1, 2, 0), (4, 3)):
        run.train()
    run.send(run.gradients(comm.rank), 1)
    assert run.is_travelling == (comm.size > 1)


def check_acts_between_sending_and_the_step(comm, folder, make):
    """Any act of all ranks may come in between: the step sends the gradients once more."""
    run = make(comm, start(SHAPES, "float32"))
    named = {str(k): v for k, v in enumerate(run.variables)}
    run.train()
    acts = (
        lambda: run.strategy.save(folder / "sent.npz", run.opt, named),
        lambda: run.strategy.gathered(run.opt, named),
        lambda: MPIStrategy(comm),
    )
    for act, first in itertools.product(acts, (1, 3)):
        gradients = run.gradients(comm.rank)
        run.send(gradients, first)
        act()
        for k in list(run.order)[first:]:
            run.strategy.send(gradients[k], run.variables[k])
        run.step(gradients)
        sums = [run.gradients(rank) for rank in range(comm.size)]
        sums = [total(of_one) for of_one in zip(*sums, strict=True)]
        run.alone.apply_gradients(zip(sums, run.expected, strict=True))
        run.steps += 1
        run.compare()
    run.strategy.load(folder / "sent.npz", run.opt, named)
    run.send(run.gradients(comm.rank))
    assert not run.is_travelling


def check_ranks_that_send_and_then_differ(comm, folder, make):
    """Each rank has sent another number of gradients when one of them does something else."""
    if comm.size == 1:
        return
    run = make(comm, start(SHAPES, "float32"))
    named = {str(k): v for k, v in enumerate(run.variables)}
    run.train()
    before = [v.copy() for v in run.variables]

    def fail():
        run.opt.apply_gradients(3)

    others = (
        (lambda: run.strategy.save(folder / "x.npz", run.opt, named), RuntimeError, "save"),
        (lambda: MPIStrategy(comm), RuntimeError, "construct"),
        (run.strategy.close, RuntimeError, "close"),
        (fail, TypeError, ""),
    )
    for (act, kind, name), first in itertools.product(others, (0, 2)):

        def attempt(act=act, first=first):
            gradients = run.gradients(comm.rank)
            run.send(gradients, first + comm.rank % 2 if is_odd(comm) else None)
            if is_odd(comm):
                act()
            else:
                run.step(gradients)

        assert name in raised(attempt, kind if is_odd(comm) else RuntimeError)
        for got, wanted in zip(run.variables, before, strict=True):
            same(got, wanted)
    run.train()


def check_ranks_that_send_differently(comm, folder, make):
    if comm.size == 1:
        return
    for order in ((0, 1), (1,), ()):
        run = make(comm, start([(40,), (6, 4)], "float32"))
        for steps in (0, 2):
            run.train(steps)
            run.order = order if is_odd(comm) else (1, 0)
            gradients = run.gradients(comm.rank)

            def attempt(run=run, gradients=gradients):
                run.send(gradients)
                run.step(gradients)

            text = raised(attempt, RuntimeError)
            assert "sent as number" in text or "about to send" in text, text
            run.order = (1, 0)
        run.train()


def check_wrong_gradients_that_are_sent(comm, folder, make):
    run = make(comm, start([(40,), (6, 4)], "float32"))
    run.train(2)
    first, second = run.variables
    gradients = run.gradients(comm.rank)
    raised(lambda: run.strategy.send(gradients[0], "text"), TypeError)
    run.send(gradients, 1)
    text = raised(lambda: run.strategy.send(gradients[1], second), ValueError)
    assert "a second one" in text
    if comm.size > 1:
        raised(lambda: run.strategy.send(np.zeros(3), first), ValueError)
        raised(lambda: run.strategy.send(np.zeros(40, complex), first), TypeError)
    run.strategy.send(gradients[0], first)
    others = [gradients[0].copy(), gradients[1]]
    assert "must be those of the next step" in raised(lambda: run.step(others), RuntimeError)
    run.send(gradients)
    pairs = list(zip(gradients, run.variables, strict=True))
    text = raised(
        lambda: run.opt.apply_gradients(pairs, experimental_aggregate_gradients=False), RuntimeError
    )
    assert "experimental_aggregate_gradients" in text
    run.train()
    run.strategy.close()
    raised(lambda: run.strategy.send(gradients[0], first), RuntimeError)


def check_sent_gradients_are_not_accumulated(comm, folder, make):
    strategy, v = MPIStrategy(comm, shard_state=make.shard_state), np.ones(40)
    opt = rmsjit.RMSprop(0.1, gradient_accumulation_steps=2, strategy=strategy)
    strategy.send(np.ones(40), v)
    opt.apply_gradients([(np.ones(40), v)])
    text = raised(lambda: opt.apply_gradients([(np.ones(40), v)]), RuntimeError)
    assert "accumulated" in text
    assert bool((v == 1).all())


def check_sent_gradients_that_are_not_finite(comm, folder, make):
    """All ranks skip, or raise, and go on."""
    for policy in ("skip", "raise"):
        run = make(comm, start([(40,), (6, 4)], "float32"), nonfinite=policy)
        run.train(2)
        gradients = run.gradients(comm.rank)
        if is_odd(comm):
            gradients[0][3] = np.nan
        run.send(gradients)
        if policy == "raise":
            raised(lambda: run.step(gradients), FloatingPointError)  # noqa: B023
        else:
            run.step(gradients)
            assert run.opt.skipped_steps == 1
        run.train(2)


def check_sending_in_join(comm, folder, make):
    """Rank r has r + 1 batches more than the first one; those that end early send zeros."""
    for wire in (None, "bfloat16"):
        run = make(comm, start([(40,), (600,)], "float32"), settings={"wire_dtype": wire})
        made = [[dense_of(r, n, run.variables) for n in range(r + 2)] for r in range(comm.size)]
        with run.strategy.join():
            for gradients in made[comm.rank]:
                run.send(gradients)
                run.step(gradients)
        for number in range(comm.size + 1):
            there = [batches[number] for batches in made if number < len(batches)]
            sums = [total(of_one) for of_one in zip(*there, strict=True)]
            run.alone.apply_gradients(zip(sums, run.expected, strict=True))
        run.compare()


def check_sending_for_several_optimizers(comm, folder, make):
    """In turns with one strategy, and at the same time with two."""
    shapes = [(40,), (6, 4)]
    runs = [make(comm, start(shapes, "float32", seed)) for seed in range(2)]
    for _ in range(3):
        made = [run.gradients(comm.rank) for run in runs]
        for run, gradients in zip(runs, made, strict=True):
            run.send(gradients)
        for run, gradients in zip(runs, made, strict=True):
            run.step(gradients)
            everyone = [run.gradients(rank) for rank in range(comm.size)]
            sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
            run.alone.apply_gradients(zip(sums, run.expected, strict=True))
            run.steps += 1
            run.compare()
    one = runs[0].strategy
    others = [exact(np.random.default_rng(k), (30,), "float32") for k in range(2)]
    opts = [rmsjit.RMSprop(0.125, strategy=one) for _ in others]
    for step in range(3):
        for opt, v in zip(opts, others, strict=True):
            gradient = np.full(30, 1.0 + comm.rank + step, np.float32)
            one.send(gradient, v)
            assert (one._outbox.sending._plan is not None) == (step > 0 and comm.size > 1)
            opt.apply_gradients([(gradient, v)])
    same_everywhere(comm, others)


CHECKS = {
    f"{name[6:]}{suffix}": partial(check, make=make)
    for name, check in list(globals().items())
    if name.startswith("check_")
    for suffix, make in (("", Run), ("_in_shards", ShardedRun))
}
