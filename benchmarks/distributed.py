"""The overhead of `MPIStrategy` over MPI: ``mpiexec -n 2 python benchmarks/distributed.py``.

Rank 0 prints three tables:

- the time (lower quartile, in microseconds) of a step with the strategy, of a bare ``Allreduce`` of
  the same bytes with a local step on its result, and of the same with an in-place ``Allreduce``,
  which overwrites the gradients and finds them in the cache after the previous step;
- the memory of slots on each rank with ``shard_state=True``, relative to an equal share;
- with ``--count``, the bytes on the wire per step, compared with the model in ``docs/scaling.md``.
  All traffic must then use the loopback device: ``--count`` prints the settings for MPICH.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import rmsjit
from rmsjit.distributed import MPIStrategy, shared

LOOPBACK = "MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp FI_TCP_IFACE=lo MPIR_CVAR_NOLOCAL=1"
CASES = {
    "one large (4,194,304)": [(2048, 2048)],
    "a network (1,710,602)": [
        (784, 1024),
        (1024,),
        (1024, 768),
        (768,),
        (768, 150),
        (150,),
        (4052,),
    ],
    "many small (200 x 1,024)": [(1024,)] * 200,
}
COMM = MPI.COMM_WORLD


def arrays(shapes, seed):
    """Random float32 arrays."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def seconds(work):
    """The time of the slowest rank; all ranks start together."""
    COMM.Barrier()
    begin = time.perf_counter()
    work()
    return COMM.allreduce(time.perf_counter() - begin, MPI.MAX)


def contenders(shapes, **settings):
    """A step with the strategy, the bare one, and the bare one in place."""
    strategy = MPIStrategy(**settings)
    variables, gradients = arrays(shapes, 0), arrays(shapes, 1 + COMM.rank)
    opt = rmsjit.RMSprop(1e-3, strategy=strategy)
    pairs = list(zip(gradients, variables, strict=True))

    bare_opt = rmsjit.RMSprop(1e-3, num_threads=strategy.threads)
    flat = np.concatenate([gradient.ravel() for gradient in gradients])
    reduced = flat.copy()
    ends = np.cumsum([gradient.size for gradient in gradients])
    places = [
        reduced[end - gradient.size : end].reshape(gradient.shape)
        for gradient, end in zip(gradients, ends, strict=True)
    ]
    bare_pairs = list(zip(places, [v.copy() for v in variables], strict=True))

    def bare():
        COMM.Allreduce(flat, reduced)
        bare_opt.apply_gradients(bare_pairs)

    def in_place():
        COMM.Allreduce(MPI.IN_PLACE, reduced)
        bare_opt.apply_gradients(bare_pairs)

    return lambda: opt.apply_gradients(pairs), bare, in_place


def table_of_times(rounds, chosen, **options):
    """Print times of the cases whose names contain `chosen`.

    They are measured in turns, so that changes in the machine's load affect all alike.
    """
    say(f"{'step':36} {'strategy':>9} {'bare':>9} {'in place':>9} {'/ bare':>7} {'/ in place':>10}")
    for name in (name for name in CASES if chosen in name):
        for shard in (False, True):
            works = contenders(CASES[name], shard_state=shard, **options)
            for work in works * 2:
                work()
            times = np.array([[seconds(work) for work in works] for _ in range(rounds)])
            ours, bare, in_place = 1e6 * np.quantile(times, 0.25, axis=0)
            say(
                f"{name + ', sharded' * shard:36} {ours:9.0f} {bare:9.0f} {in_place:9.0f} "
                f"{ours / bare:7.2f} {ours / in_place:10.2f}"
            )


def table_of_memory():
    """Print the largest share of any rank."""
    say(f"\n{'slots with shard_state':28} {'largest':>12} {'equal share':>12} {'ratio':>7}")
    for name, shapes in CASES.items():
        opt = rmsjit.RMSprop(1e-3, momentum=0.5, strategy=MPIStrategy(shard_state=True))
        variables = arrays(shapes, 0)
        opt.apply_gradients(zip(arrays(shapes, 1), variables, strict=True))
        own = sum(weight.array.nbytes for weight in opt.weights[1:])
        largest = max(COMM.allgather(own))
        even = 2 * sum(v.nbytes for v in variables) / COMM.size
        say(f"{name:28} {largest:12,} {even:12,.0f} {largest / even:7.3f}")


# --- bytes on the wire ----------------------------------------------------------------------


def loopback_bytes():
    """The bytes that this machine has sent to itself."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[0])
    raise RuntimeError("no loopback device")


def counted(work, steps=5):
    """The bytes on the wire per call, over all ranks."""
    work()
    COMM.Barrier()
    before = loopback_bytes()
    COMM.Barrier()
    for _ in range(steps):
        work()
    COMM.Barrier()
    after = loopback_bytes()
    COMM.Barrier()
    return (after - before) / steps


def table_of_bytes(wire_dtype):
    """Print the counted bytes of all ranks and those of the model."""
    ranks, others = COMM.size, COMM.size - 1
    wire = 4 if wire_dtype is None else 2  # bytes of an element of a gradient
    say(f"\n{'bytes of a step, all ranks':36} {'counted':>12} {'model':>12} {'ratio':>7}")
    for name, shapes in CASES.items():
        size = sum(int(np.prod(shape)) for shape in shapes)
        for shard in (False, True):
            ours, _, _ = contenders(shapes, shard_state=shard, wire_dtype=wire_dtype)
            model = others * size * (wire + (4 if shard else wire))
            report(name + ", sharded" * shard, counted(ours), model)
    rows, width, named = 100_000, 64, 4096
    for shard in (False, True):
        strategy = MPIStrategy(shard_state=shard, wire_dtype=wire_dtype)
        opt = rmsjit.RMSprop(1e-3, strategy=strategy)
        table = np.zeros((rows, width), np.float32)
        rng = np.random.default_rng(COMM.rank)
        indices = rng.choice(rows, named, replace=False)
        gradient = rmsjit.IndexedSlices(np.ones((named, width), np.float32), indices)
        everyone = np.concatenate(COMM.allgather(indices))
        per_row = wire * width + 4
        if shard:
            updated = others * len(np.unique(everyone)) * (4 * width + 4)
            model = named * others * per_row + updated
        else:
            model = ranks * others * named * per_row
        label = f"{named:,} rows of {rows:,} x {width}" + ", sharded" * shard
        report(label, counted(lambda: opt.apply_gradients([(gradient, table)])), model)  # noqa: B023


def report(label, count, model):
    """Print a line of the table of bytes."""
    say(f"{label:36} {count:12,.0f} {model:12,.0f} {count / max(model, 1):7.3f}")


def say(text):
    """Print on rank 0."""
    if COMM.rank == 0:
        print(text, flush=True)


def main():
    """Print the requested tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--case", default="", help="part of the names of the cases to time")
    parser.add_argument("--bucket-bytes", type=int, default=1 << 22)
    parser.add_argument("--wire-dtype", choices=["bfloat16"], help="of gradients in messages")
    parser.add_argument(
        "--by-messages", action="store_true", help="as on several machines, without shared memory"
    )
    parser.add_argument("--count", action="store_true", help="count bytes instead of time")
    options = parser.parse_args()
    if options.by_messages:
        shared._MOST_RANKS = 1
    say(f"{COMM.size} ranks, {MPI.Get_library_version().splitlines()[0]}")
    if options.count:
        say(f"(to count, run under: env {LOOPBACK} mpiexec -n {COMM.size} ...)")
        table_of_bytes(options.wire_dtype)
    else:
        settings = {"bucket_bytes": options.bucket_bytes, "wire_dtype": options.wire_dtype}
        table_of_times(options.rounds, options.case, **settings)
        table_of_memory()


if __name__ == "__main__":
    main()
