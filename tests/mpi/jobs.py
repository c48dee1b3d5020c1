"""Random jobs: ``mpiexec -n 4 python jobs.py FOLDER FIRST COUNT``, on 1, 2, 3 and 4 ranks.

Results go to a folder for each number of ranks.  A fourth argument is the only number to run on.
A job has one or two optimizers, whose settings, variables and steps follow from its number alone:
so every rank knows what all others do, and what must come out.  The expected values come from
``tests/reference.py``, a NumPy implementation that shares no code with rmsjit.  Among the steps
there are gradients that are not finite, errors on one rank, ranks that do something else than the
others, other acts, gradients that are sent before their step, and ends with different numbers of
batches.  Every message is compared between ranks before it is sent.
"""

import contextlib
import faulthandler
import json
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
from mpi4py import MPI
from narrow import dense_sum, sparse_parts
from parties import parties

sys.path.append(str(Path(__file__).parents[1]))
import rmsjit
from reference import (
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    dense_gradient,
    initial_slots,
    reference_sparse_step,
    reference_step,
    sum_duplicates,
)
from rmsjit.distributed import MPIStrategy
from rmsjit.distributed import comm as messages

SECONDS = 300  # for one job with its kernels; after that, it must wait for what never comes
CLIPS = ({}, {"clipvalue": 0.5}, {"clipnorm": 1.0}, {"global_clipnorm": 2.0})
SHAPES = ((), (1,), (0, 3), (7,), (40,), (6, 4), (2100,), (3, 5, 2))
TABLES = ((1, 2), (5, 3), (23, 2), (9,))
LARGE_SHAPES = ((4100,), (70, 60), (3, 5, 300), (2, 2304))  # whose slots are in 8 bits
LARGE_TABLE = (300, 20)
ERRORS = {"bfloat16": 0.1, "8bit": 0.5}  # after steps of some 0.1, of 1/128 or 1/16 in each
TROUBLES = ("nan", "error", "order", "save", "none", "local")


class Model:
    """The settings of one optimizer, and its state as the reference computes it."""

    def __init__(self, rng, shard):
        self.momentum = float(rng.choice([0.0, 0.5]))
        self.centered = bool(rng.integers(2))
        self.clip = CLIPS[rng.integers(len(CLIPS))]
        self.policy = str(rng.choice(["propagate", "skip", "raise"]))
        self.sparse = "exact" if not shard and rng.random() < 0.3 else "rows"
        self.dtype = str(rng.choice(["float32", "float64"]))
        # Rounding errors of a centered variance may be of any size.
        may_reduce = self.sparse == "rows" and not self.centered
        self.state_dtype = "bfloat16" if may_reduce and rng.random() < 0.4 else None
        shapes = [SHAPES[k] for k in rng.integers(0, len(SHAPES), rng.integers(1, 5))]
        tables = [TABLES[k] for k in rng.integers(0, len(TABLES), rng.integers(0, 3))]
        if may_reduce and self.dtype == "float32" and rng.random() < 0.5:
            self.state_dtype, self.momentum = "8bit", 0.5  # a kernel takes ten seconds to compile
            shapes.append(LARGE_SHAPES[rng.integers(len(LARGE_SHAPES))])
            tables.append(LARGE_TABLE)
        self.is_table = [False] * len(shapes) + [True] * len(tables)
        self.values = [
            np.asarray(rng.standard_normal(shape), self.dtype) for shape in (*shapes, *tables)
        ]
        names = ["rms", *["mg"] * self.centered, *["momentum"] * (self.momentum > 0)]
        self.slots = [initial_slots(value, names) for value in self.values]
        self.slow = int(rng.integers(len(self.values)))  # in a group with half the learning rate
        self.iterations = self.skipped = 0

    def optimizer(self, strategy, rate):
        return rmsjit.RMSprop(
            rate,
            momentum=self.momentum,
            centered=self.centered,
            nonfinite=self.policy,
            sparse=self.sparse,
            strategy=strategy,
            state_dtype=self.state_dtype,
            seed=7,
            **self.clip,
        )

    def step(self, gradients, rate):
        """Update by whole gradients; a sparse one is a pair of values and indices."""
        numbers = {
            "rho": 0.9,
            "momentum": self.momentum,
            "eps": 1e-7,
            "eps_inside": self.momentum > 0,
            "compute_dtype": self.dtype,
        }
        gradients = clipped(gradients, self.clip, self.dtype)
        for k, gradient in enumerate(gradients):
            value, slots = self.values[k], self.slots[k]
            numbers["lr"] = rate / 2 if k == self.slow else rate
            if isinstance(gradient, tuple) and self.sparse == "rows" and len(gradient[1]):
                stepped = reference_sparse_step(value, *gradient, slots, **numbers)
            elif isinstance(gradient, tuple) and self.sparse == "exact":
                stepped = reference_step(value, whole_table(value, gradient), slots, **numbers)
            elif gradient is None or isinstance(gradient, tuple):
                continue
            else:
                stepped = reference_step(value, gradient, slots, **numbers)
            self.values[k], self.slots[k] = stepped
        self.iterations += 1


def whole_table(table, gradient):
    """The dense gradient that rows of a table stand for."""
    values, indices = gradient
    return dense_gradient(values, indices, table.shape, table.dtype) if len(indices) else 0 * table


def clipped(gradients, clip, dtype):
    """Gradients clipped by the reference; None stays None."""
    values = [g[0] if isinstance(g, tuple) else g for g in gradients]
    given = [k for k, value in enumerate(values) if value is not None]
    if "clipvalue" in clip:
        for k in given:
            values[k] = clip_by_value(values[k], clip["clipvalue"], dtype)
    if "clipnorm" in clip:
        for k in given:
            values[k] = clip_by_norm(values[k], clip["clipnorm"], dtype)
    if "global_clipnorm" in clip:
        whole = clip_by_global_norm([values[k] for k in given], clip["global_clipnorm"], dtype)
        for k, value in zip(given, whole, strict=True):
            values[k] = value
    pairs = zip(values, gradients, strict=True)
    return [(v, g[1]) if isinstance(g, tuple) else v for v, g in pairs]


def gradients_of(rng, model, trained):
    """The gradients of one rank; None for variables that are not trained."""
    made = []
    for k, value in enumerate(model.values):
        gradient = None
        if k in trained and model.is_table[k]:
            count = int(rng.integers(0, 6))
            rows = rng.standard_normal((count, *value.shape[1:])).astype(model.dtype)
            gradient = rows, rng.integers(0, len(value), count)
        elif k in trained:
            gradient = np.asarray(rng.standard_normal(value.shape), model.dtype)
        made.append(gradient)
    return made


def through_bfloat16(everyone, model, shard):
    """What arrives of the gradients of all ranks if they are sent as bfloat16."""

    def combine(values, indices):
        return sum_duplicates(values, indices, model.dtype)

    columns = []
    for value, of_one in zip(model.values, zip(*everyone, strict=True), strict=True):
        if of_one[0] is None:
            columns.append(of_one)
        elif isinstance(of_one[0], tuple):
            columns.append(sparse_parts(of_one, combine, len(value), shard))
        else:
            columns.append([dense_sum(of_one, model.dtype, shard)])
    return columns


def total(columns, scale, dtype):
    """The sum of what has arrived for each variable, times `scale`."""
    sums = []
    for of_one in columns:
        if of_one[0] is None:
            sums.append(None)
        elif isinstance(of_one[0], tuple):
            values = np.concatenate([values for values, _ in of_one])
            indices = np.concatenate([indices for _, indices in of_one])
            if len(indices):
                indices, values = sum_duplicates(values, indices, dtype)
            sums.append((np.asarray(values * scale, dtype), np.asarray(indices, np.int64)))
        else:
            sums.append(np.asarray(sum(of_one) * scale, dtype))
    return sums


def is_finite(gradients):
    return all(
        np.isfinite(g[0] if isinstance(g, tuple) else g).all() for g in gradients if g is not None
    )


class Job:
    """One job; all ranks make the same."""

    def __init__(self, comm, number, folder):
        self.comm = comm
        self.folder = folder
        self.rng = np.random.default_rng([number, comm.size])
        self.shard, self.mean = bool(self.rng.integers(2)), bool(self.rng.integers(2))
        self.wire_dtype = [None, "bfloat16"][self.rng.integers(2)]
        self.strategy = self.new_strategy()
        self.models = [Model(self.rng, self.shard) for _ in range(self.rng.integers(1, 3))]
        self.rates = [0.05 / (k + 1) for k in range(len(self.models))]
        # Rank 0's values count: the others start from something else.
        self.variables = [
            [np.asarray(v + comm.rank) for v in model.values] for model in self.models
        ]
        self.opts = [self.new_optimizer(k) for k in range(len(self.models))]
        self.is_known = [set() for _ in self.models]
        self.sends = self.rng.random() < 0.6

    def new_strategy(self):
        return MPIStrategy(
            self.comm,
            reduce="mean" if self.mean else "sum",
            shard_state=self.shard,
            bucket_bytes=int(self.rng.choice([1024, 1 << 22])),
            wire_dtype=self.wire_dtype,
        )

    def new_optimizer(self, which):
        rate = self.rates[which] * (1 + self.comm.rank)  # that of rank 0 counts
        model = self.models[which]
        opt = model.optimizer(self.strategy, rate)
        opt.add_group([self.variables[which][model.slow]], lr_multiplier=0.5)
        return opt

    def run(self):
        for which in range(len(self.models)):
            self.step(which, "none")
        for _ in range(self.rng.integers(2, 7)):
            which = int(self.rng.integers(len(self.models)))
            if self.rng.random() < 0.15:
                self.resume(which)
            else:
                self.step(which, str(self.rng.choice(TROUBLES)))
        self.end_unevenly()
        self.check()
        if self.rng.random() < 0.5:
            self.strategy.close()

    def trained(self, which):
        """The variables that a step has gradients of; one that is known may be left out."""
        everything = set(range(len(self.models[which].values)))
        known = sorted(self.is_known[which])
        if len(everything) > 1 and known and self.rng.random() < 0.3:
            everything.discard(known[self.rng.integers(len(known))])
        self.is_known[which] |= everything
        return everything

    def pairs(self, which, gradients):
        pairs = []
        for gradient, variable in zip(gradients, self.variables[which], strict=True):
            if isinstance(gradient, tuple):
                gradient = rmsjit.IndexedSlices(*gradient)
            pairs.append((gradient, variable))
        return pairs

    def send(self, pairs, most=None):
        """Send the dense gradients before the step, the last ones first, or some of them."""
        if self.sends:
            for gradient, variable in pairs[::-1][:most]:
                self.strategy.send(gradient, variable)

    def step(self, which, trouble):
        """One step, or what comes in its place; the state of the model follows it."""
        model, opt = self.models[which], self.opts[which]
        odd = int(self.rng.integers(self.comm.size))
        trained = self.trained(which)
        everyone = [gradients_of(self.rng, model, trained) for _ in range(self.comm.size)]
        if trouble == "local":  # gradients that need no sum
            everyone = everyone[:1] * self.comm.size
        if trouble == "nan":
            spoil(everyone[odd])
        pairs, is_odd = self.pairs(which, everyone[self.comm.rank]), odd == self.comm.rank
        if trouble in ("error", "order", "save"):
            if self.comm.size > 1 or trouble == "error":
                self.refused(which, trouble, pairs, is_odd)
            return
        whole = self.whole(everyone, model)
        if trouble == "local":
            own = zip(everyone[0], strict=True)
            whole = total(own, 1.0, model.dtype)  # rows that are named twice are summed
        if trouble != "local":
            self.send(pairs, self.rng.choice([None, None, None, 1]))
        expected = contextlib.nullcontext()
        if not is_finite(whole) and model.policy == "raise":
            expected = raising(FloatingPointError)
        with expected:
            opt.apply_gradients(pairs, experimental_aggregate_gradients=trouble != "local")
        if is_finite(whole) or model.policy == "propagate":
            model.step(whole, self.rates[which])
        else:
            model.skipped += model.policy == "skip"

    def whole(self, everyone, model):
        """What the strategy makes of the gradients of all ranks."""
        columns = zip(*everyone, strict=True)
        if self.wire_dtype is not None and model.dtype == "float32":
            columns = through_bfloat16(everyone, model, self.shard)
        return total(columns, 1 / self.comm.size if self.mean else 1.0, model.dtype)

    def refused(self, which, trouble, pairs, is_odd):
        """Something that all ranks must raise an error for, and that changes nothing."""
        opt, kind = self.opts[which], RuntimeError
        act = lambda: opt.apply_gradients(pairs)  # noqa: E731
        if trouble == "error" and is_odd:
            kind = TypeError
            act = lambda: opt.apply_gradients([*pairs, ("text", self.variables[which][0])])  # noqa: E731
        elif trouble == "order" and is_odd:
            act = lambda: opt.apply_gradients([*pairs, pairs[0]])  # noqa: E731
        elif trouble == "save" and is_odd:
            act = lambda: self.save(which)  # noqa: E731
        with raising(kind, RuntimeError):  # which comes first if not all ranks have sent something
            self.send(pairs, self.comm.rank % 3)
            act()

    def named(self, which):
        return {f"v{k}": variable for k, variable in enumerate(self.variables[which])}

    def save(self, which):
        path = self.folder / f"job{which}.npz"
        self.strategy.save(path, self.opts[which], self.named(which))
        return path

    def resume(self, which):
        """Go on from a checkpoint in a new optimizer, with other memory."""
        path = self.save(which)
        self.variables[which] = [np.zeros_like(v) for v in self.variables[which]]
        self.opts[which] = self.new_optimizer(which)
        self.strategy.load(path, self.opts[which], self.named(which))
        self.step(which, "none")

    def end_unevenly(self):
        """Ranks have different numbers of batches of the first optimizer."""
        model, opt = self.models[0], self.opts[0]
        batches = self.rng.integers(0, 4, self.comm.size)
        trained = set(range(len(model.values)))
        self.step(0, "none")
        steps = [
            [gradients_of(self.rng, model, trained) for _ in range(self.comm.size)]
            for _ in range(batches.max())
        ]
        with self.strategy.join():
            own = [everyone[self.comm.rank] for everyone in steps[: batches[self.comm.rank]]]
            for gradients in (self.zeros(model, trained), *own):
                pairs = self.pairs(0, gradients)
                self.send(pairs)
                opt.apply_gradients(pairs)
        model.step(self.whole([self.zeros(model, trained)] * self.comm.size, model), self.rates[0])
        for number, everyone in enumerate(steps):
            present = [
                own if number < batches[rank] else self.zeros(model, trained)
                for rank, own in enumerate(everyone)
            ]
            model.step(self.whole(present, model), self.rates[0])

    @staticmethod
    def zeros(model, trained):
        """The gradients of a rank that has no batch."""
        return [
            (np.zeros((0, *v.shape[1:]), v.dtype), np.zeros(0, np.int64))
            if table
            else np.zeros_like(v)
            for v, table in zip(model.values, model.is_table, strict=True)
        ]

    def check(self):
        for model, opt, variables in zip(self.models, self.opts, self.variables, strict=True):
            opt.sync()
            assert int(opt.iterations) == model.iterations
            assert opt.skipped_steps == model.skipped
            rtol = 1e-9 if model.dtype == "float64" else 2e-3
            rtol = ERRORS.get(model.state_dtype, rtol)
            for got, wanted in zip(variables, model.values, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol)
                assert len(set(self.comm.allgather(got.tobytes()))) == 1


def spoil(gradients):
    """Put a NaN or an infinity into the first gradient that has elements."""
    for gradient in gradients:
        values = gradient[0] if isinstance(gradient, tuple) else gradient
        if values is not None and values.size:
            values.reshape(-1)[-1] = np.nan if values.size % 2 else np.inf
            return


@contextlib.contextmanager
def raising(*kinds):
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"none of {kinds} was raised")


def compare_messages():
    """Have all ranks compare every message before they send it."""
    check = messages.check_message
    # An attribute of the communicator, because handles of freed ones are used again, and not by all
    # ranks for the same communicator.
    duplicate = MPI.Comm.Create_keyval(delete_fn=lambda comm, key, other: other.Free())

    def compared(comm, act, array, dtype, count):
        check(comm, act, array, dtype, count)
        if comm.Get_attr(duplicate) is None:
            comm.Set_attr(duplicate, comm.Dup())
        said = set(comm.Get_attr(duplicate).allgather((act, str(dtype), int(count))))
        assert len(said) == 1, f"ranks send different messages: {said}"

    messages.check_message = compared


def run(comm, folder, numbers):
    """Run jobs on the ranks of a communicator."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            Job(comm, number, folder).run()
        except BaseException:
            error = f"job {number} on rank {comm.rank} of {comm.size}:\n{traceback.format_exc()}"
            (folder / f"jobs.{comm.rank}.json").write_text(json.dumps({"error": error}))
            time.sleep(2)  # for the other ranks to write theirs, if they fail alike
            comm.Abort(1)
        comm.Barrier()
    faulthandler.cancel_dump_traceback_later()
    (folder / f"jobs.{comm.rank}.json").write_text(json.dumps({"error": ""}))


def main(folder, first, count, only=None):
    """Run jobs on all numbers of ranks, or on one."""
    warnings.simplefilter("ignore")
    compare_messages()
    for comm in parties(MPI.COMM_WORLD):
        if only in (None, comm.size):
            run(comm, folder / str(comm.size), range(first, first + count))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
