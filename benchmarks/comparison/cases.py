"""The cases that `benchmarks.compare` measures, and the goals of rmsjit in them."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.suite.common import LEARNING_RATE, VARIANTS, dense_bytes, slot_count

RMSJIT, FLOOR, ROW_LOOP = "rmsjit", "floor", "row-loop"


@dataclass(frozen=True)
class Case:
    """A step to measure.

    Attributes
    ----------
    name, title : str
        For the command line and for reports.
    block : str
        Cases in the same block are measured in the same rounds, so that their times are comparable.
    variables, size : int
        The number of dense variables, and of elements in each.
    by_norm : bool
        Whether gradients are clipped to half of their global norm.
    rows, width, count : int
        The shape of a table and the number of indices of its gradient.
    only : tuple of str
        The peers to measure; empty for all that support the case.
    """

    name: str
    title: str
    block: str
    variables: int = 1
    size: int = 0
    dtype: str = "float32"
    variant: str = "plain"
    by_norm: bool = False
    rows: int = 0
    width: int = 0
    count: int = 0
    duplication: str = "uniform"
    mode: str = "rows"
    learning_rate: float = LEARNING_RATE
    only: tuple[str, ...] = ()

    @property
    def sparse(self) -> bool:
        return self.rows > 0

    @property
    def momentum(self) -> float:
        return VARIANTS[self.variant][0]

    @property
    def centered(self) -> bool:
        return VARIANTS[self.variant][1]

    @property
    def slots(self) -> int:
        return slot_count(self.momentum, self.centered)

    @property
    def is_half(self) -> bool:
        return self.dtype in ("float16", "bfloat16")

    def dense_bytes(self, itemsize: int) -> int:
        """The bytes that a dense step must move."""
        return dense_bytes(self.variables * self.size, itemsize, self.slots, self.by_norm)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Case":
        return cls(**{**fields, "only": tuple(fields["only"])})


def _dense() -> list[Case]:
    large = Case("16M-plain", "16,000,000 elements, plain", "16M", size=16_000_000)
    middle = Case("1M-plain", "1,000,000 elements, plain", "1M", size=1_000_000)
    cases = [
        large,
        replace(large, name="16M-norm", title="16M plain with global_clipnorm", by_norm=True),
        replace(large, name="16M-float16", title="16M plain, float16", dtype="float16"),
        replace(large, name="16M-bfloat16", title="16M plain, bfloat16", dtype="bfloat16"),
    ]
    for variant in ("momentum", "centered", "both"):
        name, title = f"16M-{variant}", f"16,000,000 elements, {variant}"
        cases.append(replace(large, name=name, title=title, block=name, variant=variant))
    cases += [
        middle,
        replace(middle, name="1M-both", title="1,000,000 elements, both", variant="both"),
        Case("200x1024", "200 variables of 1,024", "small", variables=200, size=1024),
        Case("200x16", "200 variables of 16", "small", variables=200, size=16),
        Case("100", "one variable of 100", "small", size=100),
    ]
    for size in (1_000, 10_000, 100_000, 4_000_000):
        cases.append(Case(f"{size}", f"{size:,} elements, plain", "curve", size=size))
    return cases


def _sparse() -> list[Case]:
    uniform = Case(
        "table-uniform",
        "1,000,000 x 64, 65,536 uniform indices, momentum",
        "table-uniform",
        rows=1_000_000,
        width=64,
        count=65_536,
        variant="momentum",
    )
    small = replace(
        uniform,
        name="table-16",
        title="1,000,000 x 16, momentum",
        block="table-rows",
        width=16,
        only=(RMSJIT,),
    )
    zipf = uniform.title.replace("uniform", "Zipf(1.2)")
    plain = uniform.title.replace("momentum", "plain")
    return [
        uniform,
        replace(
            uniform,
            name="table-exact",
            title=f"{uniform.title}, exact",
            mode="exact",
            only=(RMSJIT,),
        ),
        replace(uniform, name="table-zipf", title=zipf, block="table-zipf", duplication="zipf"),
        replace(uniform, name="table-plain", title=plain, block="table-plain", variant="plain"),
        replace(
            uniform,
            name="table-256",
            title="250,000 x 256, 16,384 uniform indices, momentum",
            block="table-rows",
            rows=250_000,
            width=256,
            count=16_384,
            only=(RMSJIT,),
        ),
        small,
        replace(small, name="table-16-long", title="10,000,000 x 16, momentum", rows=10_000_000),
    ]


CASES = _dense() + _sparse()
STARTUP = "startup"  # measured in separate processes
NOT_FASTER = 0.97  # no peer by more than 3 %


@dataclass(frozen=True)
class Goal:
    """A bound on one figure divided by another.

    Attributes
    ----------
    case : str
        The name of the case in the report.
    text : str
    over, under : (case, method)
        The figures to divide; `under` is None for a time in seconds.
    bound : float
    at_most : bool
        Whether the bound is an upper one.
    figure : {"time", "speed"}
        Seconds, or bytes per second.
    """

    case: str
    text: str
    over: tuple[str, str]
    under: tuple[str, str] | None
    bound: float
    at_most: bool = False
    figure: str = "time"


def _goals() -> list[Goal]:
    large = {
        "torch-compile": NOT_FASTER,
        "optax": 1.3,
        "torch-foreach": 7.0,
        "numpy-inplace": 5.0,
        "numpy": 8.0,
        "tf-keras": 20.0,
    }
    goals: list[Goal] = []
    for variant in VARIANTS:
        case = f"16M-{variant}"
        text = "time of a step divided by that of the floor loop"
        goals.append(Goal(case, text, (case, RMSJIT), (case, FLOOR), 1.08, at_most=True))
        goals += _faster(case, large)
    goals += _faster("1M-plain", {"torch-compile": 1.33, "optax": 1.3, "torch-foreach": 5.0})
    goals += _faster("200x1024", {"optax": 10.0, "torch-compile": 10.0, "torch-foreach": 25.0})
    text = "one apply_gradients, in µs"
    goals.append(Goal("200x16", text, ("200x16", RMSJIT), None, 60e-6, at_most=True))
    for small in ("100", "1000"):
        goals += _faster(small, {"numpy-inplace": 1.54})
    goals.append(_by_case("time divided by that without clipping", "16M-norm", "16M-plain", 1.25))
    for half in ("16M-float16", "16M-bfloat16"):
        text = "elements per second relative to float32"
        goals.append(Goal(half, text, ("16M-plain", RMSJIT), (half, RMSJIT), 1.6))
        goals += _faster(half, {"torch-compile": NOT_FASTER})
    goals += [
        _startup("first step", "first step with a warm cache", "import numba", 1.4),
        _startup("import rmsjit", "`import rmsjit`", "import numpy", 1.3),
        _startup("an optimizer", "`rmsjit.RMSprop()`", "import numpy", 1.3),
    ]
    sparse = {"tf1": 12.0, "tf-keras": 12.0, "jax-scatter": 12.0, "torch-sparseadam": 20.0}
    goals += _faster("table-uniform", sparse) + _faster("table-zipf", sparse)
    goals += _faster("table-plain", {"tf-keras": 100.0})
    for case in ("table-uniform", "table-zipf"):
        text = "time of a step divided by that of a loop over the same rows"
        goals.append(Goal(case, text, (case, RMSJIT), (case, ROW_LOOP), 1.15, at_most=True))
    text = "time of exact divided by that of rows"
    goals.append(_by_case(text, "table-exact", "table-uniform", 1.5))
    text = "relative time with ten times the rows"
    goals.append(_by_case(text, "table-16-long", "table-16", 1.3))
    for case, bound in (("table-uniform", 0.35), ("table-256", 0.5)):
        text = "useful bytes per second relative to a sequential pass"
        goals.append(Goal(case, text, (case, RMSJIT), (case, FLOOR), bound, figure="speed"))
    return goals


def _startup(over: str, name: str, under: str, bound: float) -> Goal:
    text = f"{name}, divided by `{under}`"
    return Goal(STARTUP, text, (STARTUP, over), (STARTUP, under), bound, at_most=True)


def _faster(case: str, bounds: dict[str, float]) -> list[Goal]:
    return [
        Goal(case, f"times as fast as {peer}", (case, peer), (case, RMSJIT), bound)
        for peer, bound in bounds.items()
    ]


def _by_case(text: str, case: str, other: str, bound: float) -> Goal:
    return Goal(case, text, (case, RMSJIT), (other, RMSJIT), bound, at_most=True)


GOALS = _goals()
