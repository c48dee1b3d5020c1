"""How often messages that travel are asked for, on a clock of the test."""

import pytest

from rmsjit.distributed import traffic


class Clock:
    """In place of the module `time`."""

    now = 100.0

    def perf_counter(self):
        return self.now


class Request:
    """A message that has arrived from some time on."""

    def __init__(self, clock, arrival):
        self.clock, self.arrival = clock, arrival

    def Test(self):
        return self.clock.now >= self.arrival


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(traffic, "time", clock)
    monkeypatch.setattr(traffic, "_may_use_threads", lambda: False)
    return clock


@pytest.mark.parametrize("most", [1, 2])
def test_slow_messages_are_asked_for_less_often(most, clock):
    messages = traffic.Traffic(most)
    assert messages._pause() == traffic._LEAST_PAUSE
    messages.add(lambda: Request(clock, 106.4))
    assert messages._pause() == traffic._LEAST_PAUSE
    clock.now = 103.2  # longer and longer while one travels
    assert messages._pause() == pytest.approx(0.05 * most)
    clock.now = 106.4
    messages._advance()  # and from then on by what that took
    assert messages._pause() == pytest.approx(0.1 * most)


def test_the_time_in_which_nothing_travels_does_not_count(clock):
    messages = traffic.Traffic(1)
    clock.now = 200.0
    messages.add(lambda: Request(clock, 200.64))
    clock.now = 200.64
    messages._advance()
    clock.now = 300.0
    assert messages._pause() == pytest.approx(0.01)
    messages.add(lambda: Request(clock, 300.064))
    clock.now = 300.064
    messages._advance()
    assert messages._pause() == pytest.approx(0.001)
