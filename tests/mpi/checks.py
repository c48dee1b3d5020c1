"""What must hold on every number of ranks; each check takes the communicator and a folder."""

import copy
import gc
import itertools
import warnings

import numpy as np
from narrow import dense_sum
from ranks import compare, dense_of, exact, raised, rows_of, same, same_everywhere, start, total

import rmsjit
from rmsjit.distributed import MPIStrategy

SHAPES = ((3, 5), (40,), (), (0, 2), (17, 9), (1,))
DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
FORMS = tuple(itertools.product((False, True), (0.0, 0.5)))


def dtype_named(name):
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return name


def keras(learning_rate=0.125, **arguments):
    return lambda **more: rmsjit.RMSprop(learning_rate, **arguments, **more)


def tf1(**arguments):
    return lambda **more: rmsjit.train.RMSPropOptimizer(0.125, **arguments, **more)


def check_every_dtype(comm, folder):
    for name, shard in itertools.product(DTYPES, (False, True)):
        variables = start(SHAPES, dtype_named(name))
        compare(comm, keras(), variables, dense_of, shard_state=shard, bucket_bytes=1024)


def check_bfloat16_messages_of_every_dtype(comm, folder):
    """Eighths and their sums have few bits, so that rounding to bfloat16 does not change them."""
    for name, shard in itertools.product(DTYPES, (False, True)):
        variables = [*start(SHAPES, dtype_named(name)), *start([(12, 3)], dtype_named(name), 5)]
        settings = {"shard_state": shard, "bucket_bytes": 1024, "wire_dtype": "bfloat16"}
        compare(comm, keras(), variables, dense_and_rows, **settings)


def check_bfloat16_messages_round(comm, folder):
    """The same bits as one process with the sums that NumPy makes of rounded gradients."""
    names = ("float16", "bfloat16", "float32", "complex64", "float64")
    for name, shard in itertools.product(names, (False, True)):
        dtype = np.dtype(dtype_named(name))
        wide = {"c": np.complex64}.get(dtype.kind, np.float32)
        variables = [np.zeros(shape, dtype) for shape in (*SHAPES, (1000,))]
        expected = [v.copy() for v in variables]
        settings = {"shard_state": shard, "bucket_bytes": 1024, "wire_dtype": "bfloat16"}
        opt = rmsjit.RMSprop(0.125, strategy=MPIStrategy(comm, **settings))
        alone = rmsjit.RMSprop(0.125)
        for step in range(3):
            everyone = [normal_of(rank, step, variables) for rank in range(comm.size)]
            opt.apply_gradients(zip(everyone[comm.rank], variables, strict=True))
            if name == "float64":
                sums = [sum(of_one) for of_one in zip(*everyone, strict=True)]
            else:
                columns = zip(*everyone, strict=True)
                sums = [dense_sum(of_one, wide, shard).astype(dtype) for of_one in columns]
            alone.apply_gradients(zip(sums, expected, strict=True))
            for got, wanted in zip(variables, expected, strict=True):
                same(got, wanted, 1e-12 if name == "float64" else None)
        same_everywhere(comm, variables)


def normal_of(rank, step, variables):
    """Gradients with random bits."""
    rng = np.random.default_rng([rank, step, 3])
    return [np.asarray(rng.standard_normal(v.shape)).astype(v.dtype) for v in variables]


def check_bfloat16_messages_keep_nan_and_infinity(comm, folder):
    for shard, value in itertools.product((False, True), (np.nan, np.inf)):
        variable = np.ones(40, np.float32)
        gradient = np.full(40, 1.0 + comm.rank, np.float32)
        gradient[comm.rank] = value
        settings = {"shard_state": shard, "wire_dtype": "bfloat16"}
        opt = rmsjit.RMSprop(0.125, nonfinite="skip", strategy=MPIStrategy(comm, **settings))
        opt.apply_gradients([(gradient, variable)])
        assert opt.skipped_steps == 1
        assert bool((variable == 1).all())


def check_every_form(comm, folder):
    for (centered, momentum), shard in itertools.product(FORMS, (False, True)):
        for make in (keras, tf1):
            variables = start(SHAPES, "float32")
            optimizer = make(centered=centered, momentum=momentum)
            compare(comm, optimizer, variables, dense_of, shard_state=shard)


def check_clipping(comm, folder):
    bounds = ({"clipvalue": 0.75}, {"clipnorm": 2.0}, {"global_clipnorm": 3.0})
    both = [{**bounds[0], **bounds[1]}]
    for bound, reduce, shard in itertools.product((*bounds, *both), ("sum", "mean"), (False, True)):
        variables = [*start(SHAPES, "float32"), *start([(12, 3)], "float32", 5)]
        exactly = reduce == "sum" and (not shard or ("clipvalue" in bound and len(bound) == 1))
        compare(
            comm,
            keras(**bound),
            variables,
            dense_and_rows,
            rtol=None if exactly else 2e-5,
            reduce=reduce,
            shard_state=shard,
        )


def dense_and_rows(rank, step, variables):
    return [*dense_of(rank, step, variables[:-1]), rows_of(rank, step, variables[-1])]


def check_mean(comm, folder):
    for name, shard in itertools.product(("float32", "complex64"), (False, True)):
        variables = [*start(SHAPES, name), *start([(12, 3)], name, 5)]
        compare(
            comm, keras(), variables, dense_and_rows, rtol=1e-5, reduce="mean", shard_state=shard
        )


def check_mean_of_half_types_does_not_overflow(comm, folder):
    for shard in (False, True):
        variable, wide = np.zeros(8, np.float16), np.zeros(4, np.float32)
        strategy = MPIStrategy(comm, reduce="mean", shard_state=shard)
        opt = rmsjit.RMSprop(1.0, clipnorm=1.0, strategy=strategy)
        opt.apply_gradients([(np.full(8, 40000, np.float16), variable), (np.ones(4), wide)])
        alone = np.zeros(8, np.float16)
        rmsjit.RMSprop(1.0, clipnorm=1.0).apply_gradients([(np.full(8, 4e4, np.float16), alone)])
        same(variable, alone)


def check_layouts(comm, folder):
    rng = np.random.default_rng(3)
    for shard, exactly in itertools.product((False, True), (False, True)):
        base = exact(rng, (8, 6), "float32")
        base[...] = comm.bcast(base)
        made = [
            np.asfortranarray(base),
            base.copy()[::-1, ::2],
            base.copy().T,
            base.copy()[:, 1:3],
            np.ascontiguousarray(base[0])[::-1],
        ]

        def gradients_of(rank, step, variables):
            first, *others = dense_of(rank, step, variables)
            return [first.astype(np.float16), *map(np.asfortranarray, others)]

        def gradients_in_order(rank, step, variables):
            return dense_of(rank, step, variables)

        make = gradients_in_order if exactly else gradients_of
        expected = [v.copy(order="K") for v in made]
        opt = rmsjit.RMSprop(
            0.125, momentum=0.5, strategy=MPIStrategy(comm, shard_state=shard, bucket_bytes=1024)
        )
        alone = rmsjit.RMSprop(0.125, momentum=0.5)
        for step in range(3):
            everyone = [make(rank, step, made) for rank in range(comm.size)]
            sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
            # New views of the same memory at every step, as users make them.
            views = [v[...] for v in made]
            opt.apply_gradients(zip(everyone[comm.rank], views, strict=True))
            alone.apply_gradients(zip(sums, expected, strict=True))
        for got, wanted in zip(made, expected, strict=True):
            same(got, wanted)


def check_large_gradients_go_in_pieces(comm, folder):
    for shard in (False, True):
        variables = start([(3000,), (5,), (7, 400), (33,)], "float64")
        compare(comm, keras(), variables, dense_of, shard_state=shard, bucket_bytes=4096)


def check_lists_and_variables(comm, folder):
    w = rmsjit.Variable([1.0, 2.0], name="w")
    opt = rmsjit.RMSprop(0.5, strategy=MPIStrategy(comm))
    opt.apply_gradients([([1.0, -2.0], w)])
    alone = rmsjit.Variable([1.0, 2.0])
    rmsjit.RMSprop(0.5).apply_gradients([([1.0 * comm.size, -2.0 * comm.size], alone)])
    same(w.array, alone.array)


def check_same_variable_twice(comm, folder):
    for shard in (False, True):
        variables = start([(9,), (30,)], "float32")

        def gradients_of(rank, step, variables):
            return dense_of(rank, step, [*variables, variables[0]])

        opt = rmsjit.RMSprop(0.125, strategy=MPIStrategy(comm, shard_state=shard))
        alone, expected = rmsjit.RMSprop(0.125), [v.copy() for v in variables]
        for step in range(2):
            everyone = [gradients_of(rank, step, variables) for rank in range(comm.size)]
            sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
            opt.apply_gradients(zip(everyone[comm.rank], [*variables, variables[0]], strict=True))
            alone.apply_gradients(zip(sums, [*expected, expected[0]], strict=True))
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted)


def check_constraint(comm, folder):
    for shard in (False, True):
        start_value = exact(np.random.default_rng(1), (11,), "float32")
        made = [
            rmsjit.Variable(start_value.copy(), constraint=lambda v: np.maximum(v, 0))
            for _ in range(2)
        ]
        opt = rmsjit.RMSprop(0.5, strategy=MPIStrategy(comm, shard_state=shard))
        opt.apply_gradients([(np.ones(11, np.float32), made[0])])
        rmsjit.RMSprop(0.5).apply_gradients([(np.full(11, comm.size, np.float32), made[1])])
        same(made[0].array, made[1].array)


# --- sparse ---------------------------------------------------------------------------------


def check_sparse(comm, folder):
    shapes = ((23, 4), (9,), (6, 2, 3), (2, 5))
    for name, shard in itertools.product(DTYPES, (False, True)):
        tables = start(shapes, dtype_named(name))
        compare(
            comm,
            keras(momentum=0.5),
            tables,
            lambda rank, step, tables: [rows_of(rank, step, t) for t in tables],
            steps=4,
            shard_state=shard,
        )


def check_sparse_layouts(comm, folder):
    for shard in (False, True):
        base = start([(12, 6)], "float32")[0]
        tables = [np.asfortranarray(base), base.copy()[:, ::2], base.copy()[::-1]]
        compare(
            comm,
            keras(),
            tables,
            lambda rank, step, tables: [rows_of(rank, step, t) for t in tables],
            shard_state=shard,
        )


def check_sparse_that_goes_dense(comm, folder):
    for name in ("float32", "float16"):
        compare(
            comm,
            keras(),
            start([(2, 3), (50, 2)], name),
            lambda rank, step, tables: [rows_of(rank, step, t, 60) for t in tables],
            bucket_bytes=1024,
        )


def check_sparse_exact(comm, folder):
    for momentum in (0.0, 0.5):
        tables = start([(23, 4), (5, 3)], "float32")
        _, opt, alone, expected = compare_exact(comm, tables, momentum)
        opt.sync()
        alone.sync()
        for got, wanted in zip(tables, expected, strict=True):
            same(got, wanted)
        same_everywhere(comm, tables)


def compare_exact(comm, tables, momentum):
    opt = rmsjit.RMSprop(0.125, momentum=momentum, sparse="exact", strategy=MPIStrategy(comm))
    alone = rmsjit.RMSprop(0.125, momentum=momentum, sparse="exact")
    expected = [t.copy() for t in tables]
    for step in range(5):
        everyone = [[rows_of(rank, step, t) for t in tables] for rank in range(comm.size)]
        sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
        opt.apply_gradients(zip(everyone[comm.rank], tables, strict=True))
        alone.apply_gradients(zip(sums, expected, strict=True))
    return None, opt, alone, expected


def check_sparse_exact_sharded_is_refused(comm, folder):
    table = np.zeros((5, 2), np.float32)
    strategy = MPIStrategy(comm, shard_state=True)
    opt = rmsjit.RMSprop(0.1, sparse="exact", strategy=strategy)
    text = raised(lambda: opt.apply_gradients([(rows_of(0, 0, table), table)]), ValueError)
    assert "shard_state" in text


def check_dense_gradient_of_a_table(comm, folder):
    for shard in (False, True):
        table = start([(13, 3)], "float32")

        def gradients_of(rank, step, tables):
            return (
                [rows_of(rank, step, t) for t in tables]
                if step % 2 == 0
                else dense_of(rank, step, tables)
            )

        compare(comm, keras(), table, gradients_of, steps=4, shard_state=shard)


def check_sparse_after_dense_sharded_is_refused(comm, folder):
    table = np.zeros((5, 2), np.float32)
    opt = rmsjit.RMSprop(0.1, strategy=MPIStrategy(comm, shard_state=True))
    opt.apply_gradients([(np.ones((5, 2), np.float32), table)])
    text = raised(lambda: opt.apply_gradients([(rows_of(0, 0, table), table)]), ValueError)
    assert "dense gradient before" in text


# --- disagreement ---------------------------------------------------------------------------


def disagree(comm, pairs_of, expected, shard=False, before=False):
    """Rank 0 against the last: all must raise, and nothing may change."""
    strategy = MPIStrategy(comm, shard_state=shard)
    opt = rmsjit.RMSprop(0.5, strategy=strategy)
    good = [rmsjit.Variable(np.ones(4, np.float32), "a"), rmsjit.Variable(np.ones(4, "f4"), "b")]
    if before:
        opt.apply_gradients([(np.ones(4, np.float32), v) for v in good])
    values = [v.numpy() for v in good]
    odd = comm.rank == comm.size - 1
    pairs = pairs_of(odd, good)
    text = raised(lambda: opt.apply_gradients(pairs), RuntimeError)
    assert expected in text, text
    for got, wanted in zip(good, values, strict=True):
        same(got.array, wanted)
    assert int(opt.iterations) == before
    opt.apply_gradients([(np.ones(4, np.float32), v) for v in good])  # and it can go on
    same_everywhere(comm, [v.array for v in good])


def check_disagreement(comm, folder):
    if comm.size == 1:
        return
    g, last = np.ones(4, np.float32), comm.size - 1
    none = lambda odd, v: [(g, v[0]), (None if odd else g, v[1])]  # noqa: E731
    order = lambda odd, v: [(g, v[1]), (g, v[0])] if odd else [(g, v[0]), (g, v[1])]  # noqa: E731
    count = lambda odd, v: [(g, v[0])] if odd else [(g, v[0]), (g, v[1])]  # noqa: E731
    rows = rmsjit.IndexedSlices(g[:1], [0])
    kind = lambda odd, v: [(g, v[0]), (rows if odd else g, v[1])]  # noqa: E731
    for shard, before in itertools.product((False, True), (False, True)):
        disagree(comm, none, f"variable 1 (b:0): rank {last}", shard, before)
        disagree(comm, order, f"variable 0 (b:0): rank {last}", shard, before)
        disagree(comm, count, f"rank {last} has 1 variable", shard, before)
        disagree(comm, kind, f"variable 1 (b:0): rank {last}", shard, before)


def check_empty_list_on_one_rank(comm, folder):
    if comm.size == 1:
        return
    v = np.ones(4, np.float32)
    opt = rmsjit.RMSprop(0.5, strategy=MPIStrategy(comm))
    pairs = [(v.copy(), v)] if comm.rank else []
    text = raised(lambda: opt.apply_gradients(pairs), RuntimeError)
    assert "rank 1 has 1 variable and rank 0 has 0 variables" in text
    opt.apply_gradients([])
    assert int(opt.iterations) == opt.skipped_steps == 0
    assert bool((v == 1).all())


def check_malformed_pairs_on_one_rank(comm, folder):
    odd = comm.rank == comm.size - 1
    v = np.ones(4, np.float32)
    opt = rmsjit.RMSprop(0.5, strategy=MPIStrategy(comm))
    pairs = [(v.copy(), v, v) if odd else (v.copy(), v)]
    kind = TypeError if odd else RuntimeError
    assert "grads_and_vars[0]" in raised(lambda: opt.apply_gradients(pairs), kind)
    assert bool((v == 1).all())
    opt.apply_gradients([[v.copy(), v]])  # a list of two is a pair
    same_everywhere(comm, [v])


def check_counter_starts_from_rank_0(comm, folder):
    v, counter = np.ones(4, np.float32), np.array(5 - comm.rank)
    opt = rmsjit.train.RMSPropOptimizer(0.5, strategy=MPIStrategy(comm))
    opt.apply_gradients([(v.copy(), v)], counter)
    assert int(counter) == 6


def check_report(comm, folder):
    from rmsjit.distributed.report import report

    ranks = report(comm)
    if comm.rank == 0:
        assert [one["rank"] for one in ranks] == list(range(comm.size))
        assert all(one["threads"] >= 1 for one in ranks)
    else:
        assert ranks is None


def check_disagreement_in_shape_and_dtype(comm, folder):
    if comm.size == 1:
        return
    odd = comm.rank == comm.size - 1
    for wrong in (np.ones((2, 2), np.float32), np.ones(4), np.ones(3, np.float32)):
        variable = wrong if odd else np.ones(4, np.float32)
        opt = rmsjit.RMSprop(0.5, strategy=MPIStrategy(comm))
        pair = [(np.ones_like(variable), variable)]
        text = raised(lambda: opt.apply_gradients(pair), RuntimeError)  # noqa: B023
        assert f"variable 0: rank {comm.size - 1} has shape {wrong.shape}, {wrong.dtype}" in text
        assert bool((variable == 1).all())


def check_disagreement_in_settings(comm, folder):
    if comm.size == 1:
        return
    odd = comm.rank == comm.size - 1
    v = np.ones(4, np.float32)
    opt = rmsjit.RMSprop(0.5, centered=odd, strategy=MPIStrategy(comm))
    assert "ranks must agree" in raised(lambda: opt.apply_gradients([(v, v)]), RuntimeError)
    opt = rmsjit.RMSprop(0.5, strategy=MPIStrategy(comm, reduce="mean" if odd else "sum"))
    assert "ranks must agree" in raised(lambda: opt.apply_gradients([(v, v)]), RuntimeError)
    opt = rmsjit.RMSprop(0.5, strategy=MPIStrategy(comm, wire_dtype="bfloat16" if odd else None))
    assert "ranks must agree" in raised(lambda: opt.apply_gradients([(v, v)]), RuntimeError)


def check_bad_gradient_on_one_rank(comm, folder):
    """The rank at fault raises its own error; the others quote it."""
    odd = comm.rank == comm.size - 1
    variable, table = np.ones(4, np.float32), np.ones((3, 2), np.float32)
    good = [(np.ones(4, np.float32), variable), (rmsjit.IndexedSlices(table[:1], [0]), table)]
    bad = (
        ([(np.ones(5, np.float32), variable), good[1]], ValueError),
        ([(np.ones(4, np.complex64), variable), good[1]], TypeError),
        ([good[0], (rmsjit.IndexedSlices(table[:1], [7]), table)], IndexError),
        ([("text", variable), good[1]], TypeError),
        ([(None, variable), (None, table)], ValueError),
    )
    for shard, (pairs, kind) in itertools.product((False, True), bad):
        opt = rmsjit.RMSprop(0.5, strategy=MPIStrategy(comm, shard_state=shard))
        if odd:
            raised(lambda: opt.apply_gradients(pairs), kind)  # noqa: B023
        else:
            text = raised(lambda: opt.apply_gradients(good), RuntimeError)  # noqa: B023
            assert f"rank {comm.size - 1} can't take the step: {kind.__name__}" in text
        assert variable[0] == 1
        assert len(opt.weights) == 1


def check_bad_hyperparameter_on_one_rank(comm, folder):
    odd = comm.rank == comm.size - 1
    v = np.ones(4, np.float32)
    opt = rmsjit.RMSprop(0.5, rho=lambda: 2.0 if odd else 0.5, strategy=MPIStrategy(comm))
    text = raised(lambda: opt.apply_gradients([(v.copy(), v)]), ValueError if odd else RuntimeError)
    assert "rho" in text
    assert bool((v == 1).all())


def check_none_everywhere(comm, folder):
    for shard in (False, True):
        variables = start([(5,), (6,)], "float32")
        untouched = variables[1].copy()
        opt = rmsjit.RMSprop(0.5, strategy=MPIStrategy(comm, shard_state=shard))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opt.apply_gradients([(variables[0].copy(), variables[0]), (None, variables[1])])
        assert sum("variable 1" in str(one.message) for one in caught) == 1
        same(variables[1], untouched)
        text = raised(lambda: opt.apply_gradients([(None, variables[0])]), ValueError)  # noqa: B023
        assert "variable 0" in text


# --- the first step -------------------------------------------------------------------------


def check_first_step_starts_from_rank_0(comm, folder):
    for shard in (False, True):
        variables = [v + comm.rank for v in start([(5,), (3, 7)], "float32")]
        table = start([(6, 2)], "float32")[0] + comm.rank
        strategy = MPIStrategy(comm, shard_state=shard)
        rate = 0.125 if comm.rank == 0 else 0.5
        opt = rmsjit.RMSprop(rate, momentum=0.5, clipnorm=1.0 + comm.rank, strategy=strategy)
        alone = rmsjit.RMSprop(0.125, momentum=0.5, clipnorm=1.0)
        expected = [v - comm.rank for v in (*variables, table)]
        everyone = [
            [*dense_of(rank, 0, variables), rows_of(rank, 0, table)] for rank in range(comm.size)
        ]
        opt.apply_gradients(zip(everyone[comm.rank], [*variables, table], strict=True))
        sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
        alone.apply_gradients(zip(sums, expected, strict=True))
        for got, wanted in zip((*variables, table), expected, strict=True):
            same(got, wanted, 1e-5)
        same_everywhere(comm, [*variables, table])


def check_slots_start_from_rank_0(comm, folder):
    for shard in (False, True):
        variables = start([(5,), (3, 7)], "float32")
        expected = [v.copy() for v in variables]
        alone = rmsjit.RMSprop(0.125, momentum=0.5)
        opt = rmsjit.RMSprop(0.125, momentum=0.5, strategy=MPIStrategy(comm, shard_state=shard))
        alone.apply_gradients(zip(dense_of(9, 9, expected), expected, strict=True))
        if comm.rank == 0:  # the others have no slots yet
            opt.build(variables)
            opt.set_weights(alone.get_weights())
            for variable, value in zip(variables, expected, strict=True):
                variable[...] = value
        for step in range(2):
            everyone = [dense_of(rank, step, variables) for rank in range(comm.size)]
            sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
            opt.apply_gradients(zip(everyone[comm.rank], variables, strict=True))
            alone.apply_gradients(zip(sums, expected, strict=True))
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted)


def check_variables_that_come_later(comm, folder):
    """A second list, that shares a variable with the first, and one strategy for two optimizers."""
    for shard in (False, True):
        strategy = MPIStrategy(comm, shard_state=shard)
        a, b, c = start([(30,), (20,), (7,)], "float32")
        wanted = [v.copy() for v in (a, b, c)]
        b += comm.rank
        opts = [rmsjit.RMSprop(0.125, strategy=strategy) for _ in range(2)]
        alone = [rmsjit.RMSprop(0.125) for _ in range(2)]
        turns = ((0, (0,)), (0, (0, 1)), (1, (2,)), (0, (1, 0)), (0, (0,)), (1, (2,)))
        for step, (which, members) in enumerate(turns):
            mine, theirs = [(a, b, c)[k] for k in members], [wanted[k] for k in members]
            everyone = [dense_of(rank, step, mine) for rank in range(comm.size)]
            sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
            opts[which].apply_gradients(zip(everyone[comm.rank], mine, strict=True))
            alone[which].apply_gradients(zip(sums, theirs, strict=True))
        for got, value in zip((a, b, c), wanted, strict=True):
            same(got, value)


def check_numbers_of_rank_0_every_step(comm, folder):
    strategy = MPIStrategy(comm)
    opt = rmsjit.RMSprop(lambda: 0.25 + comm.rank, strategy=strategy)
    v = np.ones(6, np.float32)
    for _ in range(3):
        opt.apply_gradients([(np.full(6, 0.5, np.float32), v)])
    same_everywhere(comm, [v])


def check_without_aggregation(comm, folder):
    for shard in (False, True):
        variables = [*start([(5,), (40,)], "float32"), *start([(12, 3)], "float32", 5)]
        expected = [v.copy() for v in variables]
        opt = rmsjit.RMSprop(0.125, strategy=MPIStrategy(comm, reduce="mean", shard_state=shard))
        alone = rmsjit.RMSprop(0.125)
        for step in range(3):
            gradients = dense_and_rows(0, step, variables)
            opt.apply_gradients(
                zip(gradients, variables, strict=True), experimental_aggregate_gradients=False
            )
            alone.apply_gradients(zip(gradients, expected, strict=True))
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted)


def check_memory_of_shares(comm, folder):
    variables = start([(1000, 7), (513,), (4096,)], "float32")
    opt = rmsjit.RMSprop(0.1, momentum=0.5, strategy=MPIStrategy(comm, shard_state=True))
    opt.apply_gradients(zip(dense_of(0, 0, variables), variables, strict=True))
    own = sum(weight.array.nbytes for weight in opt.weights[1:])
    whole = 2 * sum(v.nbytes for v in variables)
    assert own <= 1.05 * whole / comm.size
    assert comm.allreduce(own) == whole


def check_nonfinite_norm(comm, folder):
    """A norm that is not finite makes everything NaN, on every rank alike."""
    for shard in (False, True):
        variables = start([(5,), (40,)], "float32")
        gradients = dense_of(comm.rank, 0, variables)
        gradients[0][1] = np.inf if comm.rank == comm.size - 1 else 0
        opt = rmsjit.RMSprop(
            0.1, global_clipnorm=1.0, strategy=MPIStrategy(comm, shard_state=shard)
        )
        opt.apply_gradients(zip(gradients, variables, strict=True))
        assert all(bool(np.isnan(v).all()) for v in variables)


def check_skipping_without_aggregation(comm, folder):
    """A NaN on one rank alone, whose gradients the others never see."""
    for shard, policy in itertools.product((False, True), ("skip", "raise")):
        variables = start([(5,), (40,)], "float32")
        strategy = MPIStrategy(comm, shard_state=shard)
        opt = rmsjit.RMSprop(0.125, nonfinite=policy, strategy=strategy)

        def take(gradients, opt=opt, variables=variables):
            pairs = zip(gradients, variables, strict=True)
            opt.apply_gradients(pairs, experimental_aggregate_gradients=False)

        take(dense_of(0, 0, variables))
        before, gradients = [v.copy() for v in variables], dense_of(0, 1, variables)
        if comm.rank == comm.size - 1:
            gradients[1][:] = np.nan
        if policy == "raise":
            text = raised(lambda: take(gradients), FloatingPointError)  # noqa: B023
            assert "variable 1" in text
        else:
            take(gradients)
        for got, wanted in zip(variables, before, strict=True):
            same(got, wanted)
        take(dense_of(0, 2, variables))
        assert int(opt.iterations) == 2
        assert opt.skipped_steps == (policy == "skip")
        same_everywhere(comm, variables)


def check_ranks_that_own_nothing(comm, folder):
    """Fewer cache lines of elements than ranks, and fewer rows."""
    bounds = ({}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.25})
    for bound, policy, reduce in itertools.product(bounds, ("propagate", "skip"), ("sum", "mean")):
        for shape, gradients_of in (((2,), dense_of), ((1, 2), rows_of_first)):
            compare(
                comm,
                keras(nonfinite=policy, **bound),
                start([shape], "float32"),
                gradients_of,
                rtol=1e-5,
                reduce=reduce,
                shard_state=True,
            )


def rows_of_first(rank, step, variables):
    return [rows_of(rank, step, variables[0])]


def check_numbers_of_other_forms(comm, folder):
    """All numbers of a step are those of rank 0, and so are the slots that start from one."""
    form = rmsjit.Form.with_slots(
        "rms",
        rms_start="epsilon",
        weight_decay="decoupled",
        clip_weights=True,
        bias_correction=True,
    )
    for shard in (False, True):
        numbers = {"epsilon": 0.5, "weight_decay": 0.25, "clip_weights": 1.5}
        own = {name: value + comm.rank for name, value in numbers.items()}
        strategy = MPIStrategy(comm, shard_state=shard)
        opt = rmsjit.RMSprop(0.125, form=form, strategy=strategy, **own)
        alone = rmsjit.RMSprop(0.125, form=form, **numbers)
        step_beside(comm, opt, alone, start([(5,), (40,)], "float32"), steps=3)


def step_beside(comm, opt, alone, variables, steps):
    """Steps of `opt` on all ranks and of `alone` on their sums, with the same results."""
    expected = [v.copy() for v in variables]
    for step in range(steps):
        everyone = [dense_of(rank, step, variables) for rank in range(comm.size)]
        sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
        opt.apply_gradients(zip(everyone[comm.rank], variables, strict=True))
        alone.apply_gradients(zip(sums, expected, strict=True))
        for got, wanted in zip(variables, expected, strict=True):
            same(got, wanted)


def check_groups(comm, folder):
    """Groups, frozen variables and the factor of gradients are as in one process."""
    shapes = [(5,), (40,), (3, 4), (7,)]

    def make(strategy=None, odd=0.0):
        opt = rmsjit.RMSprop(
            0.125, momentum=0.5, weight_decay=0.25, maximize=True, strategy=strategy
        )
        variables = start(shapes, "float32")
        opt.add_group([variables[0]], learning_rate=lambda: 0.5 + odd, weight_decay=0.0)
        return opt, variables, opt.add_group([variables[2]], rho=0.5 + odd / 8)

    for shard in (False, True):  # the numbers of rank 0 count
        opt, variables, group = make(MPIStrategy(comm, shard_state=shard), odd=comm.rank)
        alone, expected, same_group = make()
        for step in range(6):
            group.frozen = same_group.frozen = step in (2, 3)
            everyone = [dense_of(rank, step, variables) for rank in range(comm.size)]
            sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
            opt.apply_gradients(zip(everyone[comm.rank], variables, strict=True))
            alone.apply_gradients(zip(sums, expected, strict=True))
            for got, wanted in zip(variables, expected, strict=True):
                same(got, wanted)
        group.frozen = True  # then no gradient is missed, and a warning would be an error
        gradients = [None if k == 2 else np.zeros_like(v) for k, v in enumerate(variables)]
        opt.apply_gradients(zip(gradients, variables, strict=True))
        group.frozen = False
        same_everywhere(comm, variables)
        groups_must_agree(comm, opt, variables, group)


def groups_must_agree(comm, opt, variables, group):
    pairs = [(v.copy(), v) for v in variables]
    if comm.size > 1:
        group.frozen = comm.rank == comm.size - 1
        text = raised(lambda: opt.apply_gradients(pairs), RuntimeError)
        assert "in group 2, frozen" in text, text
        group.frozen = False
        if comm.rank == comm.size - 1:
            opt.add_group([variables[1]], rho=0.5)
        text = raised(lambda: opt.apply_gradients(pairs), RuntimeError)
        assert "ranks must agree" in text, text


def check_groups_of_parts(comm, folder):
    """By memory and by name, added before and after the first step, also where a rank has no part;
    their norms; saved as in one process, and loaded."""

    def make(strategy=None):
        opt = rmsjit.RMSprop(0.125, momentum=0.5, global_clipnorm=4.0, strategy=strategy)
        arrays = start([(1,), (40, 3), (9,)], "float32")
        table = start([(6, 2)], "float32")[0]
        named = {"a": rmsjit.Variable(arrays[0], name="a/bias"), "b": arrays[1], "c": arrays[2]}
        named["t"] = table
        opt.add_group("*/bias", lr_multiplier=2.0)
        return opt, named, opt.add_group([table], rho=0.5)

    strategy = MPIStrategy(comm, shard_state=True)
    (opt, named, group), (alone, expected, same_group) = make(strategy), make()
    for step in range(6):
        if step == 2:
            for one, held in ((opt, named), (alone, expected)):
                one.add_group([held["c"]], learning_rate=0.25)
        group.frozen = same_group.frozen = step == 3
        arrays = [np.asarray(v) for v in named.values()]
        everyone = [
            [*dense_of(rank, step, arrays[:3]), rows_of(rank, step, arrays[3])]
            for rank in range(comm.size)
        ]
        sums = [total(of_one) for of_one in zip(*everyone, strict=True)]
        opt.apply_gradients(zip(everyone[comm.rank], named.values(), strict=True))
        alone.apply_gradients(zip(sums, expected.values(), strict=True))
        for name, wanted in expected.items():
            same(np.asarray(named[name]), np.asarray(wanted), 1e-6)
        np.testing.assert_allclose(opt.last_gradient_norms, alone.last_gradient_norms, rtol=1e-6)
    same_everywhere(comm, [np.asarray(v) for v in named.values()])
    path = folder / f"groups-{comm.size}.npz"
    strategy.save(path, opt, named)
    again, loaded = rmsjit.load(path)
    assert [group.to_dict() for group in again.groups] == [g.to_dict() for g in alone.groups]
    strategy.load(path, opt, named)
    step_of_both(comm, opt, named, again, loaded)
    text = raised(lambda: opt.add_group([0], rho=0.5), NotImplementedError)
    assert "does not number variables" in text
    text = raised(opt.get_config, NotImplementedError)
    assert "configuration with groups" in text


def step_of_both(comm, opt, named, alone, expected):
    """Equal steps of all ranks and of one process."""
    for step in range(2):
        gradients = [dense_of(0, step, [np.asarray(v)])[0] for v in named.values()]
        rows = rows_of(0, step, np.asarray(named["t"]))
        empty = rmsjit.IndexedSlices(rows.values[:0], rows.indices[:0])
        own = [g if comm.rank == 0 else np.zeros_like(g) for g in gradients[:3]]
        own.append(rows if comm.rank == 0 else empty)
        opt.apply_gradients(zip(own, named.values(), strict=True))
        sums = [*gradients[:3], rows.coalesce()]
        alone.apply_gradients(zip(sums, expected.values(), strict=True))
    for name, wanted in expected.items():
        same(np.asarray(named[name]), wanted, 1e-6)


def check_momentum_set_later(comm, folder):
    """The form changes, and ranks agree on the new one."""
    for shard in (False, True):
        strategy = MPIStrategy(comm, shard_state=shard)
        opt = rmsjit.RMSprop(0.125, strategy=strategy)
        variables = start([(5,), (40,)], "float32")
        path, named = folder / "momentum.npz", dict(zip("ab", variables, strict=True))
        opt.apply_gradients(zip(dense_of(comm.rank, 0, variables), variables, strict=True))
        if comm.size > 1:
            odd, pairs = comm.rank == 0, [(v.copy(), v) for v in variables]  # it may have no parts
            opt.momentum = 0.5 if odd else 0.0
            for act in (
                lambda: opt.apply_gradients(pairs),  # noqa: B023
                lambda: strategy.save(path, opt, named),  # noqa: B023
            ):
                assert "ranks must agree" in raised(act, RuntimeError)
        opt.momentum = 0.5
        strategy.save(path, opt, named)
        if comm.rank == 0:
            whole, saved = rmsjit.load(path)
            slots = [whole._store.slot_of(v, "momentum") for v in saved.values()]
            assert all(slot is None or not slot.numpy().any() for slot in slots)
            assert all(whole.get_slot(v, "rms").numpy().any() for v in saved.values())
        opt.apply_gradients(zip(dense_of(comm.rank, 1, variables), variables, strict=True))
        same_everywhere(comm, variables)


def check_forgotten_sums(comm, folder):
    """Those of the variable that is meant, whatever it is called elsewhere."""
    a, b = np.zeros(2), np.zeros(2)
    opt = rmsjit.RMSprop(0.125, gradient_accumulation_steps=2, strategy=MPIStrategy(comm))
    opt.add_group([b], lr_multiplier=1.0)
    opt.apply_gradients([(np.ones(2), a), (np.ones(2), b)])
    opt.forget(b)
    opt.apply_gradients([(np.zeros(2), a), (np.zeros(2), b)])
    assert (a < 0).all()
    assert (b == 0).all()


def check_copies(comm, folder):
    """A copy has a session of its own, and starts equal on all ranks again."""
    variables = start([(5,), (40,)], "float32")
    opt = rmsjit.RMSprop(0.125, momentum=0.5, strategy=MPIStrategy(comm))
    opt.apply_gradients(zip(dense_of(comm.rank, 0, variables), variables, strict=True))
    twin, others = copy.deepcopy((opt, variables))
    for one, own in ((opt, variables), (twin, others)):
        one.apply_gradients(zip(dense_of(comm.rank, 1, variables), own, strict=True))
        assert int(one.iterations) == 2
    for got, wanted in zip(others, variables, strict=True):
        same(got, wanted)
    same_everywhere(comm, others)


def check_untrained_variables(comm, folder):
    """No gradient, no demands: a dtype that is not trained, memory that is read-only."""
    for shard in (False, True):
        variable = np.ones(4, np.float32)
        others = [np.arange(3), np.broadcast_to(np.float32(1), (2, 2))]
        opt = rmsjit.RMSprop(0.125, strategy=MPIStrategy(comm, shard_state=shard))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt.apply_gradients([(variable.copy(), variable), *((None, o) for o in others)])
        assert variable[0] < 1


def check_engines_are_not_kept_alive(comm, folder):
    strategy = MPIStrategy(comm)
    opt, v = rmsjit.RMSprop(0.125, strategy=strategy), np.ones(3)
    opt.apply_gradients([(v, v)])
    assert len(strategy._sessions) == 1
    del opt
    gc.collect()
    assert len(strategy._sessions) == 0


def check_norms_and_finiteness_are_those_of_sums_of_rows(comm, folder):
    for shard, aggregate in itertools.product((False, True), (False, True)):
        if shard and not aggregate:
            continue  # it divides sums, so it must make them
        strategy = MPIStrategy(comm, shard_state=shard)
        count = comm.size if aggregate else 1
        table = np.ones((8, 2))
        opt = rmsjit.RMSprop(0.125, track_norms=True, strategy=strategy)
        slices = rmsjit.IndexedSlices(np.full((2, 2), 2.5), [3, 3])
        opt.apply_gradients([(slices, table)], experimental_aggregate_gradients=aggregate)
        assert np.isclose(opt.last_gradient_norm, np.sqrt(2 * (5.0 * count) ** 2))
        table = np.ones((8, 2), np.float32)
        opt = rmsjit.RMSprop(0.125, nonfinite="skip", strategy=strategy)
        slices = rmsjit.IndexedSlices(np.full((2, 2), 3e38, np.float32), [3, 3])
        opt.apply_gradients([(slices, table)], experimental_aggregate_gradients=aggregate)
        assert (opt.skipped_steps, opt.iterations) == (1, 0)
        same(table, np.ones((8, 2), np.float32))


CHECKS = {name[6:]: value for name, value in list(globals().items()) if name.startswith("check_")}
