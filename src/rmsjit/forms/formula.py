"""A form as a formula, in plain text."""

from __future__ import annotations

from collections.abc import Mapping

from rmsjit.rule.form import Form

_WORDS = ("learning_rate", "rho", "momentum", "epsilon", "weight_decay", "clip_weights")


def formula(form: Form, words: Mapping[str, str] | None = None) -> list[str]:
    """The lines of a form's formula, in the order in which they are computed.

    Parameters
    ----------
    form : Form
    words : mapping, optional
        What the numbers are called, by the arguments of `rmsjit.RMSprop`.

    Returns
    -------
    list of str
        ``g`` is the gradient after clipping, ``p`` the variable, ``t`` the number of the step.

    Examples
    --------
    >>> import rmsjit
    >>> from rmsjit.forms.formula import formula
    >>> print(*formula(rmsjit.Form(), {"learning_rate": "lr", "epsilon": "eps"}), sep="\\n")
    rms <- rho*rms + (1 - rho)*g^2
    p   <- p - lr*g / (sqrt(rms) + eps)
    """
    word = {name: name for name in _WORDS} | dict(words or {})
    return [*_decay(form, word), *_averages(form, word), *_step(form, word)]


def _decay(form: Form, word: Mapping[str, str]) -> list[str]:
    decay = word["weight_decay"]
    lines = {
        "coupled": f"g   <- g + {decay}*p",
        "decoupled": f"p   <- p*(1 - {word['learning_rate']}*{decay})",
        "subtracted": f"p   <- p - p*{decay}*{word['learning_rate']}",
        "independent": f"p   <- p*(1 - {decay})",
    }
    return [lines[form.weight_decay]] if form.weight_decay else []


def _averages(form: Form, word: Mapping[str, str]) -> list[str]:
    rho = word["rho"]
    square = "|g|^2" if form.complex_square == "modulus" else "g^2"
    lines = [_average("rms", form.rms_average, rho, square)]
    if form.centered:
        lines.append(_average("mg ", form.mg_average, rho, "g"))
    return lines


def _average(name: str, kind: str, rho: str, new: str) -> str:
    old = name.strip()
    if kind == "difference":
        return f"{name} <- {old} + ({new} - {old})*(1 - {rho})"
    return f"{name} <- {rho}*{old} + (1 - {rho})*{new}"


def _step(form: Form, word: Mapping[str, str]) -> list[str]:
    size, lines = _size(form, word)
    rate, factor = word["learning_rate"], word["momentum"]
    outside = form.learning_rate == "outside"
    step = f"g / {size}" if outside else f"{rate}*g / {size}"
    if form.has_momentum:
        lines.append(f"mom <- {factor}*mom + {step}")
        step = f"{factor}*mom + {step}" if form.nesterov else "mom"
        step = f"({step})" if form.nesterov else step
    lines.append(f"p   <- p - {rate}*{step}" if outside else f"p   <- p - {step}")
    if form.clip_weights:
        bound = word["clip_weights"]
        lines.append(f"p   <- min(max(p, -{bound}), {bound})")
    return lines


def _size(form: Form, word: Mapping[str, str]) -> tuple[str, list[str]]:
    """The denominator, and the lines before it."""
    epsilon, correction = word["epsilon"], f"/(1 - {word['rho']}^t)" if form.bias_correction else ""
    variance = f"rms{correction}"
    lines = []
    if form.centered:
        mean = f"(mg{correction})" if correction else "mg"
        inner = f"{variance} - {mean}^2"
        lines.append(f"v    = max({inner}, 0)" if form.clamp else f"v    = {inner}")
        variance = "v"
    if form.epsilon == "inside":
        return f"sqrt({variance} + {epsilon})", lines
    return f"(sqrt({variance}) + {epsilon})", lines
