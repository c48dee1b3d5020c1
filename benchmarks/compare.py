"""Compare rmsjit with other libraries: ``python -m benchmarks.compare``; see README.md."""

import argparse
import datetime
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.comparison import machine, plot, report
from benchmarks.comparison.cases import CASES, STARTUP, Case
from benchmarks.comparison.process import PeerError, PeerProcess, chosen, environment
from benchmarks.comparison.registry import PEERS
from benchmarks.comparison.results import Results, Run, Samples, Where

PAUSE = 0.005  # seconds for a peer's spinning threads to go to sleep
RESULTS = "results"  # the folder of figures, a file for each processor
SLOW = 0.25  # seconds; slower steps are measured only in every third round
STARTUPS = {
    "import numpy": "import numpy",
    "import numba": "import numba",
    "import rmsjit": "import rmsjit",
    "an optimizer": "import rmsjit; rmsjit.RMSprop()",
    "first step": (
        "import numpy as np, rmsjit; "
        "v = np.ones(100, np.float32); rmsjit.RMSprop().apply_gradients([(v.copy(), v)])"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, keep the figures of this machine, and write the pages of all machines."""
    arguments = parser().parse_args(argv)
    folder: Path = arguments.output
    if arguments.load:
        run = Run.pooled([Run.load(path) for path in arguments.load])
    elif arguments.pages:
        run = None
    else:
        run = measure(arguments)
    if run is not None:
        if not run.samples:
            print("nothing was measured", file=sys.stderr)
            return 1
        if arguments.save:
            run.save(arguments.save)
        run.results().save(folder / RESULTS)
    write_pages(folder)
    return 0


def write_pages(folder: Path) -> None:
    """RESULTS.md, GOALS.md, results.png and a page for each machine, from the committed figures."""
    machines = Results.all_in(folder / RESULTS)
    for results in machines:
        page = folder / RESULTS / f"{results.where.file_name}.md"
        page.write_text(report.of_machine(results), encoding="utf-8")
    (folder / "RESULTS.md").write_text(report.side_by_side(machines), encoding="utf-8")
    (folder / "GOALS.md").write_text(report.goals(machines), encoding="utf-8")
    plot.draw(machines, folder / "results.png")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Compare the speed of rmsjit with that of other libraries.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--cases", nargs="+", default=[], metavar="PATTERN", help="all if empty")
    add("--peers", nargs="+", default=[], metavar="PATTERN", help="all if empty")
    add("--rounds", type=int, default=15, metavar="N", help="rounds of measurement")
    add("--threads", type=int, default=2, metavar="N", help="threads and CPUs per peer")
    add("--output", type=Path, default=Path(__file__).parent, metavar="FOLDER", help="for results")
    add("--date", default=datetime.date.today().isoformat(), help="date shown in the results")
    add("--save", type=Path, metavar="FILE", help="also write every sample as JSON")
    add(
        "--load",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing; report the runs that --save wrote to these files, combined",
    )
    add("--pages", action="store_true", help="measure nothing; write the pages again")
    add("--list", action=_ListCases, nargs=0, help="list the cases and exit")
    add(
        "--python",
        action="append",
        default=[],
        metavar="PEERS=PATH",
        type=_assignment,
        help="interpreter for the peers that match this pattern",
    )
    return made


class _ListCases(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for case in CASES:
            print(f"{case.name:20} {case.title}")
        print(f"{STARTUP:20} whole processes up to the first step")
        parser.exit()


def _assignment(text: str) -> tuple[str, str]:
    pattern, separator, path = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"must be PEERS=PATH, got {text!r}")
    return pattern, path


# --- measuring ------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> Run:
    """Run every chosen case on every chosen peer."""
    settings = {"rounds": arguments.rounds, "runs": 1, "threads": arguments.threads}
    run = Run(Where(arguments.date, machine.description(arguments.threads), settings))
    cases = [case for case in CASES if chosen(case.name, arguments.cases)]
    peers = start_peers(arguments, run.where)
    try:
        for block, members in groupby(cases, key=lambda case: case.block):
            _say(f"{block}:", end="")
            measure_block(list(members), peers, arguments.rounds, run)
    finally:
        for peer in peers:
            peer.stop()
    if chosen(STARTUP, arguments.cases) and chosen("rmsjit", arguments.peers):
        run.samples[STARTUP] = measure_startup(arguments.rounds, arguments.threads)
    return run


def start_peers(arguments: argparse.Namespace, where: Where) -> list[PeerProcess]:
    """Start the chosen peers; return those that are installed and compute correctly."""
    running = []
    for name in [peer for peer in PEERS if chosen(peer, arguments.peers)]:
        peer = PeerProcess(name, arguments.threads, dict(arguments.python))
        try:
            versions = peer.ask("versions")
            errors = peer.ask("check")
            wrong = [case for case, error in errors.items() if not error <= 1]
            if wrong:
                raise PeerError(f"wrong results in {', '.join(wrong)}")
        except PeerError as error:
            _say(f"{name}: {error}")
            where.absent[name] = str(error)
            peer.stop()
            continue
        _say(f"{name}: " + ", ".join(f"{package} {v}" for package, v in versions.items()))
        where.versions |= versions
        running.append(peer)
    return running


def measure_block(
    cases: Iterable[Case], peers: Iterable[PeerProcess], rounds: int, run: Run
) -> None:
    """Measure cases in the same rounds, with one sample per round of each method and case."""
    start = time.perf_counter()
    turns: list[tuple[PeerProcess, str, str, Samples]] = []
    for peer in peers:
        for case in cases:
            for method, nbytes in _prepared(peer, case).items():
                samples = Samples([], nbytes)
                turns.append((peer, case.name, method, samples))
                run.samples.setdefault(case.name, {})[method] = samples
    slow: set[int] = set()
    for turn in range(rounds):
        for number, (peer, case_name, method, samples) in enumerate(turns):
            if number in slow and turn % 3:
                continue
            time.sleep(PAUSE)
            samples.seconds.append(peer.ask("sample", case_name, method))
            if samples.seconds[-1] > SLOW:
                slow.add(number)
    for peer in {turn[0] for turn in turns}:
        peer.ask("release")
    _say(f" {time.perf_counter() - start:.0f} s")


def _prepared(peer: PeerProcess, case: Case) -> dict[str, float]:
    """The bytes that each method of the peer moves; empty if it can't do the case."""
    if case.only and peer.name not in case.only:
        return {}
    try:
        methods: dict[str, float] = peer.ask("prepare", case.to_dict()) or {}
    except PeerError as error:
        _say(f" {peer.name} fails in {case.name} ({error})", end="")
        return {}
    if methods:
        _say(f" {peer.name}", end="")
    return methods


def measure_startup(rounds: int, threads: int) -> dict[str, Samples]:
    """Measure whole processes with a warm kernel cache."""
    _say("startup:", end="")
    start = time.perf_counter()
    samples = {name: Samples([]) for name in STARTUPS}
    _run(STARTUPS["first step"], threads)
    for _ in range(rounds):
        for name, code in STARTUPS.items():
            samples[name].seconds.append(_run(code, threads))
    _say(f" {time.perf_counter() - start:.0f} s")
    return samples


def _run(code: str, threads: int) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(threads))
    return time.perf_counter() - start


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
