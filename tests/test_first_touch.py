"""Which thread touches new slots first, on a machine with several memory nodes."""

import mmap

import numpy as np
import pytest

import rmsjit
from rmsjit.arrays.layout import address_of
from rmsjit.kernels import loader, touching
from rmsjit.runtime import processors, threads
from rmsjit.runtime.memory_nodes import memory_nodes
from rmsjit.steps import first_touch, planner

PAGE = mmap.PAGESIZE
NODES = {
    "0-1,4": ("0,4\n", 2),
    "0": ("0\n", 1),
    "0-3": ("0-7\n", 4),
    "0-1": ("2\n", 1),  # as in a broken container
    "many": ("0\n", 1),
    "": ("0\n", 1),
}


@pytest.mark.parametrize(
    ("there", "allowed", "count"), [(there, *rest) for there, rest in NODES.items()]
)
def test_nodes_are_those_with_memory_that_the_process_may_use(tmp_path, there, allowed, count):
    (tmp_path / "sys/devices/system/node").mkdir(parents=True)
    (tmp_path / "sys/devices/system/node/has_memory").write_text(there + "\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    status = f"Cpus_allowed_list:\t0-63\nMems_allowed_list:\t{allowed}Seccomp:\t0\n"
    (tmp_path / "proc/self/status").write_text(status)
    assert memory_nodes(tmp_path) == count


def test_a_system_that_does_not_say_has_one_node(tmp_path):
    assert memory_nodes(tmp_path) == 1


VARIABLES = {
    "one": [(100_000,)],
    "several": [(3_000,), (70_001,), (5,), (256, 64)],
    "empty too": [(0,), (50_000,)],
}


def new_slots(monkeypatch, shapes, **arguments):
    """The slots that a first step makes, and the groups of its update."""
    found = []
    monkeypatch.setattr(planner, "touch_first", lambda fresh, num_threads: found.extend(fresh))
    opt = rmsjit.RMSprop(0.01, momentum=0.9, num_threads=1, **arguments)
    variables = [np.zeros(shape, np.float32) for shape in shapes]
    for _ in range(2):
        opt.apply_gradients([(np.ones_like(v), v) for v in variables])
    return found, opt._engine._plans.last.plan.layout.groups


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("shapes", VARIABLES.values(), ids=VARIABLES)
def test_a_thread_touches_what_it_will_update(monkeypatch, shapes, count, state_dtype):
    found, (group,) = new_slots(monkeypatch, shapes, state_dtype=state_dtype)
    cuts, spans = first_touch.spans_by_thread(found, count)
    touched = [(t, *span) for t in range(count) for span in spans[cuts[t] : cuts[t + 1]].tolist()]

    part, updated = group._partitioned(count, False), []
    for thread in range(count):
        for row, first, length, _ in part.pieces[part.bins[thread] : part.bins[thread + 1]]:
            for memory in (new.memory for new in found if new.entry is group.members[row].entry):
                start = address_of(memory) + first * memory.itemsize
                updated.append((thread, start, start + length * memory.itemsize))
    assert sorted(touched) == sorted(updated)


@pytest.mark.parametrize("shapes", VARIABLES.values(), ids=VARIABLES)
def test_slots_in_8_bits_are_touched_once(monkeypatch, shapes):
    found, _ = new_slots(monkeypatch, shapes, state_dtype="8bit")
    _, spans = first_touch.spans_by_thread(found, 3)
    for new in found:
        start, stop = address_of(new.memory), address_of(new.memory) + new.memory.nbytes
        own = sorted(span for span in spans.tolist() if start <= span[0] and span[1] <= stop)
        bounds = [bound for span in own for bound in span]
        assert bounds[:1] + bounds[-1:] == ([start, stop] if own else [])
        assert bounds[1:-1:2] == bounds[2::2]
        assert own or start == stop


def test_a_byte_of_each_page_is_written():
    memory = np.ones(20 * PAGE, np.uint8)
    start = address_of(memory)
    # From inside of a page to inside of another one, nothing, and the rest of the last page.
    spans = np.array([(5, 5 * PAGE + 1), (6 * PAGE, 6 * PAGE), (20 * PAGE - 1, 20 * PAGE)]) + start
    cuts, words = np.array([0, 1, 3]), np.zeros(touching.WORDS, np.int64)
    words[touching.BINS], words[touching.PAGE_BYTES] = 2, PAGE
    words[touching.CUTS], words[touching.SPANS] = address_of(cuts), address_of(spans)
    threads.prepare()
    loader.run_on_threads().call(loader.touch_pages().address, address_of(words))
    pages = [address - address % PAGE - start for address in range(start, start + 6 * PAGE, PAGE)]
    expected = [5, *(page + PAGE for page in pages if page + PAGE < 5 * PAGE + 1), 20 * PAGE - 1]
    assert np.flatnonzero(memory == 0).tolist() == expected


@pytest.fixture
def touches(monkeypatch):
    """How often pages are touched on a machine that has two nodes."""
    monkeypatch.setattr(first_touch, "memory_nodes", lambda: 2)
    counted = []
    kernel = loader.touch_pages()
    monkeypatch.setattr(loader, "touch_pages", lambda: counted.append(1) or kernel)
    return counted


def trained(size=100_000, **arguments):
    """A variable after two steps."""
    w = np.linspace(-1, 1, size, dtype=np.float32)
    opt = rmsjit.train.RMSPropOptimizer(0.01, momentum=0.9, **{"num_threads": 2, **arguments})
    for _ in range(2):
        opt.apply_gradients([(w * w - 0.5, w)])
    return w


def test_steps_have_the_same_bits(touches):
    touched = trained()
    assert len(touches) == (processors.thread_limit() > 1)
    del touches[:]
    assert np.array_equal(touched, trained(size=100_000, num_threads=1))
    assert not touches


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 100},
        {"num_threads": 1},
        {"slot_allocator": lambda shape, dtype: np.empty(shape, dtype)},
    ],
    ids=["little memory", "one thread", "memory of the user's"],
)
def test_what_is_left_alone(touches, arguments):
    trained(**arguments)
    assert not touches
