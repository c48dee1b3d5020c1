"""The forms of the rule that rmsjit's two optimizers use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rmsjit.rule.form import Form
from rmsjit.rule.slot import STOCHASTIC


def keras_legacy(*, centered: bool, momentum: bool) -> Form:
    """`tf.keras.optimizers.legacy.RMSprop`: momentum moves epsilon inside the root."""
    names = ["rms", *["momentum"] * momentum, *["mg"] * centered]
    return Form.with_slots(*names, epsilon="inside" if momentum else "outside")


def tf1(*, centered: bool) -> Form:
    """`tf.train.RMSPropOptimizer`: it has a momentum slot even at momentum 0."""
    names = ["rms", *["mg"] * centered, "momentum"]
    return Form.with_slots(*names, rms_start=1.0, epsilon="inside", creation="by_variable")


def has_plain_rule(form: Form) -> bool:
    """Whether a form is tf-keras's without momentum, with any dtypes and any slots of averages.

    Such a form can get momentum later.
    """
    form = form.without_additions.with_state(dict.fromkeys(form.slot_names))
    return form == keras_legacy(centered=form.centered, momentum=False)


def with_terms(form: Form, *, decays: bool, decoupled: bool, clips: bool) -> Form:
    """A form with weight decay and a bound on variables, as far as they are used.

    Decoupled decay is rounded as in Keras 3, coupled decay is that of PyTorch.
    """
    kind = "subtracted" if decoupled else "coupled"
    return replace(form, weight_decay=kind if decays else None, clip_weights=clips)


def with_precision(
    form: Form, *, master_weights: bool, rounding: str, state_dtype: Mapping[str, str]
) -> Form:
    """A form with reduced state, master weights and stochastic rounding, as far as asked for."""
    form = form.with_state(state_dtype)
    if rounding == STOCHASTIC:
        form = replace(form, rounding=rounding)
    return form.with_master() if master_weights else form
