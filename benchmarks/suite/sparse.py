"""A step of an embedding table: by rows, width, duplicates among the indices, and mode."""

import tracemalloc

from rmsjit.cli.stopwatch import median_times

from .common import SparseStep, require, sparse_step

TABLES = {  # rows, width, number of indices
    "100000x16": (100_000, 16, 16_384),
    "100000x64": (100_000, 64, 16_384),
    "50000x256": (50_000, 256, 4_096),
    "1000000x64": (1_000_000, 64, 65_536),
    "10000000x16": (10_000_000, 16, 65_536),
}
ORDINARY = 200_000_000  # bytes of table and slots; larger ones run only with RMSJIT_BENCH_HEAVY=1


class Table:
    """Momentum form, rows drawn uniformly or like words of a text."""

    param_names = ("table", "duplication", "mode")
    params = (list(TABLES), ["uniform", "zipf"], ["rows", "exact"])

    def setup(self, table, duplication, mode):
        rows, width, count = TABLES[table]
        nbytes = rows * width * 4 * 3
        require(nbytes, heavy=nbytes > ORDINARY)
        self.step = sparse_step(rows, width, count, duplication, mode)

    def time_step(self, table, duplication, mode):
        self.step()


class Speed:
    """Bytes per second: touched rows of table and slots in and out, and the gradient in."""

    param_names = ("table",)
    params = (list(TABLES),)

    def setup(self, table):
        rows, width, count = TABLES[table]
        nbytes = rows * width * 4 * 3
        require(nbytes, heavy=nbytes > ORDINARY)
        self.step = sparse_step(rows, width, count, "uniform", "rows")

    def track_useful_speed(self, table):
        seconds = median_times({"step": self.step}, rounds=9)["step"]
        return round(self.step.nbytes / seconds / 1e9, 2)

    track_useful_speed.unit = "GB/s"


class Scratch:
    """The peak memory that a step takes in addition to table and slots."""

    param_names = ("mode",)
    params = (["rows", "exact"],)

    def track_bytes_per_row(self, mode):
        rows, width, count = TABLES["100000x16"]
        SparseStep(rows, width, count, "uniform", mode)  # loads the kernels
        tracemalloc.start()  # it sees the arrays of NumPy
        step = SparseStep(rows, width, count, "uniform", mode)
        state = step.table.nbytes * 3
        batches = sum(batch.values.nbytes + batch.indices.nbytes for batch in step.batches)
        tracemalloc.reset_peak()
        for _ in range(step.BATCHES):
            step()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return round((peak - state - batches) / rows, 2)

    track_bytes_per_row.unit = "B"
