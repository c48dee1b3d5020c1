"""What must hold on every number of ranks for averages of weights and accumulated gradients."""

import numpy as np
from ranks import dense_of, raised, rows_of, same, same_everywhere, start, total

import rmsjit
from rmsjit.distributed import MPIStrategy

EMA = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}


def everyone_of(comm, step, variables, table):
    """The gradients of all ranks."""
    return [
        [*dense_of(rank, step, variables), rows_of(rank, step, table)] for rank in range(comm.size)
    ]


def check_average(comm, folder):
    """Averages are those of one process, also where ranks start from other values."""
    for shard in (False, True):
        variables = [v + comm.rank for v in start([(5,), (40, 3)], "float64")]
        table = start([(6, 2)], "float64")[0] + comm.rank
        expected = [v - comm.rank for v in (*variables, table)]
        strategy = MPIStrategy(comm, shard_state=shard)
        opt = rmsjit.RMSprop(0.125, momentum=0.5, strategy=strategy, **EMA)
        alone = rmsjit.RMSprop(0.125, momentum=0.5, **EMA)
        for step in range(4):
            everyone = everyone_of(comm, step, variables, table)
            opt.apply_gradients(zip(everyone[comm.rank], [*variables, table], strict=True))
            sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
            alone.apply_gradients(zip(sums, expected, strict=True))
        named = {"a": variables[0], "b": variables[1], "t": table}
        for got, wanted in zip(named.values(), expected, strict=True):
            same(got, wanted, 1e-12)
        whole = strategy.gathered(opt, named)
        if whole is not None:
            for got, wanted in zip(named.values(), expected, strict=True):
                average = alone.get_slot(wanted, "average").numpy()
                same(whole.get_slot(got, "average").numpy(), average, 1e-12)
            with whole.averaged(named.values()):
                same(table, alone.get_slot(expected[2], "average").numpy(), 1e-12)
        same_everywhere(comm, named.values())


def check_accumulation(comm, folder):
    """Ranks add up their own calls, and reduce the sums at the step."""
    for shard in (False, True):
        variables, table = start([(5,), (40,)], "float64"), start([(6, 2)], "float64")[0]
        expected = [v.copy() for v in (*variables, table)]
        strategy = MPIStrategy(comm, shard_state=shard)
        opt = rmsjit.RMSprop(0.125, clipnorm=0.5, gradient_accumulation_steps=2, strategy=strategy)
        alone = rmsjit.RMSprop(0.125, clipnorm=0.5)
        named = {"a": variables[0], "b": variables[1], "t": table}
        for step in range(2):
            sums = []
            for call in range(2):
                everyone = everyone_of(comm, 2 * step + call, variables, table)
                opt.apply_gradients(zip(everyone[comm.rank], named.values(), strict=True))
                sums += everyone
                if call == 0:
                    text = raised(lambda: strategy.save(folder / "x.npz", opt, named), RuntimeError)  # noqa: B023
                    assert "wait for one" in text
            sums = [total(of_one, 0.5) for of_one in zip(*sums, strict=True)]
            alone.apply_gradients(zip(sums, expected, strict=True))
            for got, wanted in zip(named.values(), expected, strict=True):
                same(got, wanted, 1e-12)
        same_everywhere(comm, named.values())
        assert int(opt.iterations) == 2


def check_norm_of_reduced_gradients(comm, folder):
    for shard in (False, True):
        strategy = MPIStrategy(comm, reduce="mean", shard_state=shard)
        opt, variable = rmsjit.RMSprop(0.5, track_norms=True, strategy=strategy), np.zeros(9)
        opt.apply_gradients([(np.full(9, 1.0 + comm.rank), variable)])
        assert np.isclose(opt.last_gradient_norm, 3 * (comm.size + 1) / 2)


def check_norms_are_tracked_on_all_ranks_or_none(comm, folder):
    if comm.size == 1:
        return
    strategy = MPIStrategy(comm)
    opt = rmsjit.RMSprop(0.5, track_norms=comm.rank == 0, strategy=strategy)
    text = raised(lambda: opt.apply_gradients([(np.ones(3), np.zeros(3))]), RuntimeError)
    assert "track_norms" in text


CHECKS = {name[6:]: value for name, value in list(globals().items()) if name.startswith("check_")}
