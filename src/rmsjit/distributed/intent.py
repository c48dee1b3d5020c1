"""What a rank is about to do, in terms that ranks can compare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class Act(IntEnum):
    """What ranks do together."""

    STEP = 1
    SAVE = 2
    LOAD = 3
    GATHER = 4
    CONSTRUCT = 5
    CLOSE = 6
    LEAVE = 7
    END = 8
    SEND = 9


FOLLOWED = (Act.STEP, Act.SEND)  # what a rank that has run out of batches takes part in

TEXTS = {
    Act.STEP: "take the step",
    Act.SAVE: "save",
    Act.LOAD: "load",
    Act.GATHER: "gather the state",
    Act.CONSTRUCT: "construct an MPIStrategy",
    Act.CLOSE: "close the strategy",
    Act.LEAVE: "go on in join()",
    Act.END: "end its program",
    Act.SEND: "send gradients",
}


class Claim(NamedTuple):
    """The properties of an act that must be the same on all ranks."""

    header: str  # the settings of the whole act
    names: Sequence[str]  # for each variable, its name in messages
    lines: Sequence[str]  # for each variable, its properties
    fingerprint: int  # a hash of header and lines


def claim(header: str, names: Sequence[str], lines: Sequence[str]) -> Claim:
    """A claim with its hash."""
    text = "\n".join((header, *lines)).encode()
    return Claim(header, names, lines, int(hashlib.sha256(text).hexdigest()[:12], 16))


NO_CLAIM = claim("", (), ())


class Place(NamedTuple):
    """The strategy and the optimizer of an act.

    Attributes
    ----------
    strategy : int
        The strategies of a group are numbered in the order of their construction.
    optimizer : int
        So are the optimizers of a strategy; a copy has the number of its original.
    session : int
        The optimizers of a strategy in the order of their first acts.
    """

    strategy: int = 0
    optimizer: int = 0
    session: int = 0


class Progress(NamedTuple):
    """What the optimizer has done before.

    Attributes
    ----------
    steps : int
        How many steps this rank has completed since all ranks started from equal values.
    iterations : int
        What the counter says, 0 where there is none.
    behind : int
        How many steps tables have counted whose rows have not been brought up to date.
    """

    steps: int = 0
    iterations: int = 0
    behind: int = 0


class Intent(NamedTuple):
    """What a rank is about to do."""

    act: Act
    place: Place = Place()
    progress: Progress = Progress()
    claim: Claim = NO_CLAIM
    joining: bool = False  # whether others may have run out of batches

    def text(self) -> str:
        """The act in words."""
        if self.act is Act.STEP:
            return f"take {self._step()}"
        if self.act is Act.SEND:
            return f"send gradients of {self._step()}"
        return TEXTS[self.act]

    def _step(self) -> str:
        return f"step {self.progress.steps + 1} of optimizer {self.place.optimizer}"


class Flags(NamedTuple):
    """What matters if it holds on any rank.

    Attributes
    ----------
    unprepared : bool
        Whether memory must be allocated or a kernel loaded for the step.
    unfit : bool
        Whether a gradient is known not to be finite.
    """

    unprepared: bool = False
    unfit: bool = False


NO_FLAGS = Flags()
