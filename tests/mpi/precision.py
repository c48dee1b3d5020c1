"""What must hold on every number of ranks for half types: of variables, slots and loss scales."""

import numpy as np
from ranks import compare, dense_of, raised, rows_of, same, same_everywhere, start, total

import rmsjit
from rmsjit.distributed import MPIStrategy
from rmsjit.rule.loss_scale import ScaleState

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


def reduced(strategy=None, **settings):
    """An optimizer whose slots are in bfloat16, rounded stochastically."""
    settings = {"momentum": 0.5, "state_dtype": "bfloat16", "seed": 3, **settings}
    return rmsjit.RMSprop(0.125, strategy=strategy, **settings)


def of_all_kinds():
    """Small and large variables, an empty one, layouts, and a table."""
    variables = start([(5,), (4200,), (0, 2), (3, 7), (40, 30), ()], "float32")
    variables[4] = np.asfortranarray(variables[4])
    return [*variables, *start([(12, 3)], "float32", 1)]


def check_slots_in_bfloat16(comm, folder):
    """The bits of one process, wherever parts begin; also resumed, and with variables to come."""
    for shard in (False, True):
        for settings in ({}, {"centered": True, "momentum": 0.0}, {"rounding": "stochastic"}):
            variables = of_all_kinds()
            if settings.get("rounding"):
                variables[1], variables[3] = start([(4200,), (3, 7)], "float16")

            def make(strategy=None, settings=settings):
                return reduced(strategy, **settings)

            compared = compare(comm, make, variables, gradients_of, shard_state=shard)
            strategy, opt, alone, expected = compared
            named = {str(k): v for k, v in enumerate(variables)}
            path = folder / f"reduced-{shard}-{comm.size}.npz"
            strategy.save(path, opt, named)
            if comm.rank == 0:
                resumed = [np.zeros_like(v) for v in variables]
                _, loaded = rmsjit.load(path, make(), dict(zip(named, resumed, strict=True)))
                for name, variable in named.items():
                    same(loaded[name], variable)
            opt = make(strategy)
            strategy.load(path, opt, named)
            go_on(comm, (opt, variables), (alone, expected))


def go_on(comm, *trained):
    """Train on some of the variables, in any order, and on new ones; both in the same way."""
    later = start([(3000,), (6,)], "float32", 2)
    for step, chosen in enumerate(((3,), (1, 3, 8), (7, 8, 1, 0), (0, 1, 2, 3, 4, 5, 7, 8))):
        for opt, variables in trained:
            if len(variables) == 7:
                variables += [v.copy() for v in later]
            used = [variables[k] for k in chosen]
            everyone = [dense_of(rank, step, used) for rank in range(comm.size)]
            sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
            own = everyone[comm.rank] if opt is trained[0][0] else sums
            opt.apply_gradients(zip(own, used, strict=True))
    (_, got), (_, wanted) = trained
    for one, other in zip(got, wanted, strict=True):
        same(one, other)
    same_everywhere(comm, got)


def check_saved_between_variables(comm, folder):
    """Variables that are loaded and not stepped yet keep their numbers in the next file."""
    variables = start([(5,), (4200,), (3, 7)], "float32")
    alone, expected = reduced(), [v.copy() for v in variables]
    alone.apply_gradients([(np.ones_like(v), v) for v in expected])
    path = folder / f"between-{comm.size}.npz"
    named = dict(zip("abc", variables, strict=True))
    if comm.rank == 0:
        rmsjit.save(path, alone, dict(zip("abc", expected, strict=True)))
    comm.Barrier()
    for chosen in ("c", "ac", "bca"):
        strategy = MPIStrategy(comm, reduce="mean", shard_state=True)
        opt = reduced(strategy)
        strategy.load(path, opt, named)
        pairs = [(np.ones_like(named[name]), named[name]) for name in chosen]
        opt.apply_gradients(pairs)
        ours = dict(zip("abc", expected, strict=True))
        alone.apply_gradients([(np.ones_like(ours[name]), ours[name]) for name in chosen])
        strategy.save(path, opt, named)
        for name, wanted in ours.items():
            same(named[name], wanted)


def check_sizes_of_slots_in_bfloat16(comm, folder):
    strategy, v = MPIStrategy(comm, shard_state=True), np.ones(64 * comm.size, np.float32)
    opt = reduced(strategy)
    opt.apply_gradients([(v.copy(), v)])
    own = opt.get_weights()[1:]
    assert [str(slot.dtype) for slot in own] == ["bfloat16", "bfloat16"] * bool(own)
    assert sum(comm.allgather(sum(slot.size for slot in own))) == 2 * v.size


def forgetting(comm, path, sent):
    """Train variables of a file of rank 0, and forget one of each two steps before the second."""
    variables, strategy = start([(40,), (50,), (60,)], "float32"), MPIStrategy(comm)
    opt, named = reduced(strategy), dict(zip("abc", variables, strict=True))
    strategy.load(path, opt, named)
    for number, chosen in enumerate(((0,), (1,), (2, 0))):
        trained = [variables[k] for k in chosen]
        for step in range(4):
            gradients = dense_of(comm.rank, 4 * number + step, trained)
            pairs = list(zip(gradients, trained, strict=True))
            for pair in pairs if sent else ():
                strategy.send(*pair)
            if step == 2:
                opt.forget(trained[0])
            opt.apply_gradients(pairs)
        slots = [opt.get_slot(v, name).numpy() for v in trained for name in ("rms", "momentum")]
        same_everywhere(comm, [*variables, *slots])
    return variables


def check_random_bits_agree_after_a_variable_is_forgotten(comm, folder):
    """Rank 0 has the state of variables that no rank has stepped yet; the others have none."""
    path = folder / f"forgotten-{comm.size}.npz"
    if comm.rank == 0:
        first, variables = reduced(), start([(40,), (50,), (60,)], "float32")
        first.apply_gradients(zip(dense_of(0, 99, variables), variables, strict=True))
        rmsjit.save(path, first, dict(zip("abc", variables, strict=True)))
    comm.Barrier()
    alike = forgetting(comm, path, sent=False), forgetting(comm, path, sent=True)
    for got, wanted in zip(*alike, strict=True):
        same(got, wanted)


def check_stochastic_rounding_must_agree(comm, folder):
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


def check_scales_start_from_rank_0_or_are_refused(comm, folder):
    def make(initial=8.0):
        scale = rmsjit.DynamicLossScale(8.0, growth_interval=3)
        opt = rmsjit.RMSprop(0.125, loss_scale=scale, track_norms=True, strategy=MPIStrategy(comm))
        opt._clipping.loss_scale.state = ScaleState(initial, 2 if comm.rank == 0 else 0)
        opt.skipped_steps = comm.rank
        return opt

    w = np.zeros(2)
    opt = make()
    for _ in range(2):
        opt.apply_gradients([(opt.scale_loss(np.array([3.0, 4.0])), w)])
        assert opt.last_gradient_norm == 5.0 * comm.size
    assert (opt.loss_scale, opt.skipped_steps) == (16.0, 0)  # it has grown on all ranks
    if comm.size > 1:
        odd = make(initial=4.0 if comm.rank == 0 else 8.0)
        text = raised(lambda: odd.apply_gradients([(np.ones(2), w)]), RuntimeError)
        assert "now 4.0" in text
        assert "now 8.0" in text


CHECKS = {name[6:]: value for name, value in list(globals().items()) if name.startswith("check_")}
