"""Mistakes that type checkers must find: without an error, its comment is one.  Never run."""

import numpy as np

import rmsjit

w = np.ones(3)
rmsjit.RMSprop(sparse="row")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
rmsjit.RMSprop(nonfinite="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
rmsjit.RMSprop(clip_norm=1.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
rmsjit.load(7)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
rmsjit.save("run.npz", w, {})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
rmsjit.distributed.MPIStrategy(
    reduce="max"  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
)
