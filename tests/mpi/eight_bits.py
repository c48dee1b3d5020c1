"""What must hold on every number of ranks for slots in blocks of 8 bits."""

import numpy as np
from ranks import compare, dense_of, raised, rows_of, same, same_everywhere, start, total

import rmsjit
from rmsjit.distributed import MPIStrategy

SETTINGS = (
    {},
    {"centered": True, "clipvalue": 1.5, "state_dtype": {"rms": "8bit", "mg": "bfloat16"}},
)
NAMES = "abcdefghijklm"


def eight(strategy=None, **settings):
    settings = {"momentum": 0.5, "state_dtype": "8bit", "seed": 3, **settings}
    return rmsjit.RMSprop(0.125, strategy=strategy, **settings)


def laid_out():
    """Variables in every layout, whole blocks and others; some are small, the last is a table."""
    shapes = [(70, 60), (3,), (40, 300), (4200,), (4, 2048), (0, 2), (2000, 5), (9_999,)]
    variables = start([*shapes, (80, 120), (1000, 8), (90, 50), (90, 50), (96, 50)], "float32")
    variables[8] = variables[8][:, ::2]
    variables[9] = variables[9][:, :5]
    variables[10] = np.asfortranarray(variables[10])
    variables[11] = np.asfortranarray(variables[11])[1:]
    variables[7] = variables[7][::2]
    return variables


def gradients_of(rank, step, variables):
    return [*dense_of(rank, step, variables[:-1]), rows_of(rank, step, variables[-1])]


def one_process(ranks, steps):
    """What training on the sums of so many ranks gives."""
    variables, opt = laid_out(), eight()
    train(opt, variables, steps, ranks, range(1), 0)
    return variables, opt


def train(opt, variables, steps, ranks, sharing, rank):
    """Steps on the gradients of `ranks`, each of which one of the processes `sharing` them has."""
    for step in steps:
        everyone = [gradients_of(other, step, variables) for other in range(ranks)]
        mine = everyone[rank :: len(sharing)]
        own = [total(of_one) for of_one in zip(*mine, strict=True)]
        opt.apply_gradients(zip(own, variables, strict=True))


def named(variables):
    return dict(zip(NAMES, variables, strict=True))


def same_state(whole, alone):
    for got, wanted in zip(whole.get_weights(), alone.get_weights(), strict=True):
        same(got, wanted)


def check_slots_in_8_bits(comm, folder):
    """As in one process, and equal on all ranks; saved and loaded as they are."""
    for shard in (False, True):
        for settings in SETTINGS:

            def make(strategy=None, settings=settings):
                return eight(strategy, **settings)

            variables = laid_out()
            compared = compare(comm, make, variables, gradients_of, shard_state=shard)
            strategy, opt, alone, _ = compared
            whole = strategy.gathered(opt, named(variables))
            if whole is not None:
                same_state(whole, alone)


def check_resume_in_8_bits(comm, folder):
    """With one rank less, with and without parts, and in one process."""
    for shard, then_shard in ((True, True), (True, False), (False, True)):
        path = folder / f"eight-{shard}-{then_shard}.npz"
        variables, strategy = laid_out(), MPIStrategy(comm, shard_state=shard)
        opt = eight(strategy)
        train(opt, variables, range(2), comm.size, range(comm.size), comm.rank)
        strategy.save(path, opt, named(variables))
        train(opt, variables, range(2, 4), comm.size, range(comm.size), comm.rank)
        expected, alone = one_process(comm.size, range(4))
        whole = strategy.gathered(opt, named(variables))
        if whole is not None:
            same_state(whole, alone)
            read = named(laid_out())
            loaded = eight()
            rmsjit.load(path, loaded, read)
            train(loaded, list(read.values()), range(2, 4), comm.size, range(1), 0)
            same_state(loaded, alone)
        resume(comm, path, then_shard, expected, alone)


def resume(comm, path, shard, expected, alone):
    """Go on with one rank less, from other values."""
    ranks = max(1, comm.size - 1)
    fewer = comm.Split(comm.rank >= ranks)
    if comm.rank < ranks:
        variables = laid_out()
        strategy = MPIStrategy(fewer, shard_state=shard)
        opt = eight(strategy)
        strategy.load(path, opt, named(variables))
        train(opt, variables, range(2, 4), comm.size, range(ranks), fewer.rank)
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted)
        whole = strategy.gathered(opt, named(variables))
        if whole is not None:
            same_state(whole, alone)
    fewer.Free()


def check_parts_in_8_bits(comm, folder):
    """Each rank has the bytes of its part, which consists of whole blocks."""
    strategy, v = MPIStrategy(comm, shard_state=True), np.ones(256 * 40 + 7, np.float32)
    opt = eight(strategy)
    opt.apply_gradients([(v.copy(), v)])
    held = [slot for entry in opt._store.entries.values() for slot in entry.slots.values()]
    sizes = comm.allgather(sum(slot.nbytes for slot in held))
    assert sum(sizes) == 2 * 41 * 260  # rms and momentum
    assert max(sizes) - min(sizes) <= 2 * 2 * 260  # two blocks


def check_ranks_without_a_part_in_8_bits(comm, folder):
    """Two long rows have two records; the rank that has none follows."""
    variables = start([(2, 2100), (1, 4100)], "float32")

    def make(strategy=None):
        return eight(strategy, global_clipnorm=2.0)

    compared = compare(comm, make, variables, dense_of, shard_state=True)
    strategy, opt, alone, _ = compared
    parts = comm.allgather(len(opt.get_weights()) // 2)
    assert sum(parts) == min(comm.size, 2) + 1
    whole = strategy.gathered(opt, dict(zip("ab", variables, strict=True)))
    if whole is not None:
        same_state(whole, alone)


def check_flipped_variables_in_8_bits(comm, folder):
    """A variable whose rows do not follow each other in memory is the last rank's."""
    variables, expected = (start([(300, 40)], "float32")[0][::-1, ::2] for _ in range(2))
    strategy, alone = MPIStrategy(comm, shard_state=True), eight()
    opt = eight(strategy)
    for step in range(3):
        everyone = [dense_of(rank, step, [variables])[0] for rank in range(comm.size)]
        opt.apply_gradients([(everyone[comm.rank], variables)])
        alone.apply_gradients([(total(everyone), expected)])
    same(variables, expected)
    same_everywhere(comm, [variables])
    assert comm.allgather(len(opt.get_weights())) == [1] * (comm.size - 1) + [3]


def check_rows_that_share_blocks_are_refused(comm, folder):
    """On all ranks, before any has done something."""
    table, opt = np.ones((1000, 8), np.float32), eight(MPIStrategy(comm, shard_state=True))
    gradient = rows_of(comm.rank, 0, table)
    text = raised(lambda: opt.apply_gradients([(gradient, table)]), (ValueError, RuntimeError))
    assert "rows of at least 16" in text
    opt.apply_gradients([(np.ones_like(table), table)])
    same_everywhere(comm, [table])


def check_blocks_follow_the_shape_of_the_first_step(comm, folder):
    """A file may have been made from another view, whose blocks are others."""
    first, path = eight(), folder / f"views-{comm.size}.npz"
    if comm.rank == 0:
        table = start([(70, 60)], "float32")[0]
        first.apply_gradients([(np.ones(table.size, np.float32), table.reshape(-1))])
        rmsjit.save(path, first, {"a": table})
    comm.Barrier()
    for shard in (False, True):
        table, strategy = np.zeros((70, 60), np.float32), MPIStrategy(comm, shard_state=shard)
        opt = eight(strategy)
        strategy.load(path, opt, {"a": table})
        opt.apply_gradients([(np.ones_like(table), table)])
        opt.apply_gradients([(np.ones(table.size, np.float32), table.reshape(-1))])
        same_everywhere(comm, [table])
        whole = strategy.gathered(opt, {"a": table})
        if whole is not None:
            rms = whole.get_slot(table, "rms").numpy()
            np.testing.assert_allclose(rms, 0.1 * 0.81 + 0.19 * comm.size**2, rtol=0.3)


def check_copies_of_parts_in_8_bits_are_refused(comm, folder):
    opt, v = eight(MPIStrategy(comm, shard_state=True)), np.ones(8192, np.float32)
    opt.apply_gradients([(v.copy(), v)])
    for act in (opt.__getstate__, lambda: opt.forget(v), lambda: opt.rebind({"v": v})):
        raised(act, NotImplementedError)


CHECKS = {name[6:]: value for name, value in list(globals().items()) if name.startswith("check_")}
