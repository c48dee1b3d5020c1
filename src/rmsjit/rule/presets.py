"""The forms of the rule that rmsjit's two optimizers use."""

from __future__ import annotations

from rmsjit.rule.form import Form


def keras_legacy(*, centered: bool, momentum: bool) -> Form:
    """`tf.keras.optimizers.legacy.RMSprop`: momentum moves epsilon inside the root."""
    names = ["rms", *["momentum"] * momentum, *["mg"] * centered]
    return Form.with_slots(*names, epsilon="inside" if momentum else "outside")


def tf1(*, centered: bool) -> Form:
    """`tf.train.RMSPropOptimizer`: it has a momentum slot even at momentum 0."""
    names = ["rms", *["mg"] * centered, "momentum"]
    return Form.with_slots(*names, rms_start=1.0, epsilon="inside", creation="by_variable")
