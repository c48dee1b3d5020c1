"""What must hold on every number of ranks for half types: master weights and loss scales."""

import numpy as np
from ranks import compare, dense_of, raised, rows_of, same, same_everywhere, start, total

import rmsjit
from rmsjit.distributed import MPIStrategy

SHAPES = [(5,), (40, 3)]


def gradients_of(rank, step, variables):
    *dense, table = variables
    return [*dense_of(rank, step, dense), rows_of(rank, step, table)]


def mixed():
    """Two variables in float16, one in float32, and a table in float16."""
    halves, wide = start([*SHAPES, (6, 2)], "float16"), start([(9,)], "float32")
    return [*halves[:2], *wide, halves[2]]


def check_master_weights(comm, folder):
    """As in one process; masters are divided, too, and saved as in one process."""
    for shard in (False, True):
        for rounding in ("nearest", "stochastic"):
            if shard and rounding == "stochastic":
                continue

            def make(strategy=None, rounding=rounding):
                settings = {"master_weights": True, "rounding": rounding, "seed": 3}
                return rmsjit.RMSprop(0.125, momentum=0.5, strategy=strategy, **settings)

            variables = mixed()
            compared = compare(comm, make, variables, gradients_of, shard_state=shard)
            strategy, opt, alone, expected = compared
            named = dict(zip("abct", variables, strict=True))
            path = folder / f"master-{shard}-{rounding}-{comm.size}.npz"
            strategy.save(path, opt, named)
            _, loaded = rmsjit.load(path, make(), dict(zip("abct", mixed(), strict=True)))
            whole = strategy.gathered(opt, named)
            for name, wanted in zip("abct", expected, strict=True):
                same(loaded[name], wanted)
                if whole is not None and wanted.dtype == np.float16:
                    ours = whole.get_slot(named[name], "master").numpy()
                    same(ours, alone.get_slot(wanted, "master").numpy())


def check_stochastic_rounding_must_agree(comm, folder):
    sharded = MPIStrategy(comm, shard_state=True)
    text = raised(
        lambda: rmsjit.RMSprop(rounding="stochastic", strategy=sharded), NotImplementedError
    )
    assert "shard_state" in text
    if comm.size > 1:
        opt = rmsjit.RMSprop(rounding="stochastic", seed=comm.rank, strategy=MPIStrategy(comm))
        w = np.ones(3, "f2")
        text = raised(lambda: opt.apply_gradients([(w.copy(), w)]), RuntimeError)
        assert "seed=" in text


def check_loss_scale(comm, folder):
    """All ranks skip where one has an infinity, and their scales stay equal; also when loaded."""
    for shard in (False, True):
        scale = rmsjit.DynamicLossScale(8.0, growth_interval=2)
        settings = {"loss_scale": scale, "global_clipnorm": 1.0, "master_weights": True}
        strategy = MPIStrategy(comm, shard_state=shard)
        opt = rmsjit.RMSprop(0.125, strategy=strategy, **settings)
        alone, variables = rmsjit.RMSprop(0.125, **settings), start(SHAPES, "float16")
        expected, scales = [v.copy() for v in variables], []
        for step, good in enumerate((True, False, True, True, True)):
            everyone = [dense_of(rank, step, variables) for rank in range(comm.size)]
            if not good:
                everyone[-1][0][2] = np.inf
            sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
            opt.apply_gradients(zip(everyone[comm.rank], variables, strict=True))
            alone.apply_gradients(zip(sums, expected, strict=True))
            assert (opt.loss_scale, opt.skipped_steps) == (alone.loss_scale, alone.skipped_steps)
            scales.append(opt.loss_scale)
            for got, wanted in zip(variables, expected, strict=True):
                same(got, wanted, 1e-3)
        assert scales == [8.0, 4.0, 4.0, 8.0, 8.0]
        same_everywhere(comm, variables)
        named = dict(zip("ab", variables, strict=True))
        path = folder / f"scale-{shard}-{comm.size}.npz"
        strategy.save(path, opt, named)
        other = rmsjit.RMSprop(0.125, strategy=strategy, **settings)
        strategy.load(path, other, named)
        assert other._clipping.loss_scale.state == (8.0, 1)


def check_a_rank_without_batches_follows_the_scale(comm, folder):
    strategy, variable = MPIStrategy(comm), np.ones(4, np.float32)
    scale = rmsjit.DynamicLossScale(8.0, growth_interval=1)
    opt = rmsjit.RMSprop(0.125, loss_scale=scale, strategy=strategy)
    with strategy.join():
        for step in range(1 + 2 * comm.rank):
            gradient = np.full(4, np.nan if step == 1 else opt.loss_scale, np.float32)
            opt.apply_gradients([(gradient, variable)])
    assert comm.allgather(opt.loss_scale) == [opt.loss_scale] * comm.size
    same_everywhere(comm, [variable])


CHECKS = {name[6:]: value for name, value in list(globals().items()) if name.startswith("check_")}
