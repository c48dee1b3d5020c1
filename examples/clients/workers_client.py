"""dask and joblib: a run that goes from worker to worker, or stays with an actor.

Send the optimizer and its variables in one object, and the copy goes on as the original would.  An
actor keeps the run in its process, and only what it returns travels.
"""

import dask.distributed
import joblib
import numpy as np

import rmsjit
from comparison import report

# --- glue ---


class Run:
    """An optimizer and its variables, which travel together."""

    def __init__(self, optimizer, params):
        self.optimizer = optimizer
        self.params = params


# --- the program ---


def trained(run, steps):
    """The run after some more steps."""
    for _ in range(steps):
        run.optimizer.step(run.params, {name: w - 3 for name, w in run.params.items()})
    return run


class Actor:
    """A run that stays in a worker."""

    def __init__(self, run):
        self.run = run

    def train(self, steps):
        return list(trained(self.run, steps).params.values())


def new_run():
    params = {"W": np.linspace(0, 1, 2000).reshape(20, 100), "b": np.zeros(100)}
    return Run(rmsjit.RMSprop(0.01, momentum=0.9), params)


def main():
    straight = list(trained(new_run(), 30).params.values())

    parallel = joblib.Parallel(n_jobs=2)
    (run,) = parallel(joblib.delayed(trained)(run, 10) for run in [new_run()])
    (run,) = parallel(joblib.delayed(trained)(run, 20) for run in [run])
    report("a run in one process (joblib)", run.params.values(), straight)

    with (
        dask.distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        dask.distributed.Client(cluster) as client,
    ):
        run = client.submit(trained, new_run(), 10)
        run = client.submit(trained, run, 20).result()
        report("a run in one process (dask)", run.params.values(), straight)
        actor = client.submit(Actor, trained(new_run(), 10), actor=True).result()
        report("a run in one process (an actor)", actor.train(20).result(), straight)


if __name__ == "__main__":
    main()
