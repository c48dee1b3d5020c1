"""What a run would lose if its state went on under another form.

Forms that differ in rounding only continue each other's runs; others do not, however well their
arrays fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rmsjit.rule.form import Form
from rmsjit.rule.slot import MG, MOMENTUM, RMS

_RULES_SLOTS = {RMS.name, MG.name, MOMENTUM.name}
_SAME_BUT_ROUNDING = {"subtracted": "decoupled"}


def refuse_losses(
    here: Form,
    there: Form,
    library: str,
    *,
    momentum: float,
    weight_decay: float,
    unstepped: Sequence[str] = (),
    is_complex: bool = False,
) -> None:
    """Raise `ValueError` unless two forms compute the same, but for rounding.

    Parameters
    ----------
    here, there : Form
        Of rmsjit's optimizer, and of the other library's.
    library : str
        How messages call the latter.
    momentum, weight_decay : float
        Those of the run.  What a form does with a number that is 0 does not matter.
    unstepped : sequence of str
        The variables that have no state, and so start from what the form says.
    is_complex : bool
        Whether a variable is complex.
    """
    found = list(_slot_losses(here, there, momentum))
    found += _setting_losses(here, there, momentum, weight_decay, is_complex)
    starts = here.slot(RMS.name).start, there.slot(RMS.name).start
    if starts[0] != starts[1] and unstepped:
        names = ", ".join(map(repr, unstepped))
        found.append(
            f"the start of rms: {starts[0]} here, {starts[1]} there; not stepped yet: {names}"
        )
    if found:
        raise ValueError(
            f"the run can't continue unchanged between this optimizer and {library}; "
            f"what would be lost:\n- " + "\n- ".join(found)
        )


def _slot_losses(here: Form, there: Form, momentum: float) -> Iterator[str]:
    if here.centered != there.centered:
        has = "here" if here.centered else "there"
        yield f"the average of gradients, by which the form {has} is centered"
    if momentum and here.has_momentum != there.has_momentum:
        yield f"the momentum, which is {'here' if here.has_momentum else 'there'} only"
    for ours, theirs, where in ((here, there, "here"), (there, here, "there")):
        for name in {*ours.slot_names} - {*theirs.slot_names} - _RULES_SLOTS:
            yield f"the slot {name!r}, which is {where} only"


def _setting_losses(
    here: Form, there: Form, momentum: float, weight_decay: float, is_complex: bool
) -> Iterator[str]:
    if here.epsilon != there.epsilon:
        yield f"the place of epsilon: {here.epsilon} of the root here, {there.epsilon} there"
    if momentum and here.learning_rate != there.learning_rate:
        yield (
            f"the learning rate of each past step: it is {here.learning_rate} of the momentum "
            f"here, {there.learning_rate} there, and only a constant one could be divided out "
            f"(a form with learning_rate={there.learning_rate!r} carries the buffer as it is)"
        )
    if momentum and here.nesterov != there.nesterov:
        yield f"nesterov: {here.nesterov} here, {there.nesterov} there"
    if here.bias_correction != there.bias_correction:
        yield f"bias correction: {here.bias_correction} here, {there.bias_correction} there"
    decays = [_SAME_BUT_ROUNDING.get(f.weight_decay or "", f.weight_decay) for f in (here, there)]
    if weight_decay and decays[0] != decays[1]:
        yield f"weight decay of {weight_decay}: {decays[0]} here, {decays[1]} there"
    if here.clip_weights != there.clip_weights:
        yield f"the clipping of weights: {here.clip_weights} here, {there.clip_weights} there"
    if is_complex and here.complex_square != there.complex_square:
        yield f"the square of complex gradients: {here.complex_square} here, {there.complex_square}"
