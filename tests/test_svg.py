"""The pictures that notebooks show of schedules and range tests."""

import sys
from xml.etree import ElementTree

import numpy as np
import pytest

import rmsjit
from rmsjit.cli.schedule import EXAMPLES
from rmsjit.schedules import (
    Chain,
    CosineDecay,
    InverseTimeDecay,
    Join,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    ReduceOnPlateau,
)
from rmsjit.svg import Axis, Line, chart

SVG = "{http://www.w3.org/2000/svg}"
FLAT = Axis("x", 0.0, 10.0)


class Picture:
    """What a picture shows, read from its SVG."""

    def __init__(self, text):
        self.root = ElementTree.fromstring(text)
        self.texts = [element.text for element in self.root.iter(f"{SVG}text")]
        self.lines = [
            np.array([pair.split(",") for pair in line.get("points").split()], dtype=float)
            for line in self.root.iter(f"{SVG}polyline")
        ]
        self.plot = self.root.find(f"{SVG}svg")
        self.size = np.array([float(self.plot.get("width")), float(self.plot.get("height"))])


def drawn(x=FLAT, y=FLAT, **line):
    points = {"x": np.array([0.0, 5.0, 10.0]), "y": np.array([0.0, 5.0, 10.0]), **line}
    return Picture(chart("a chart", x, y, [Line(color="#000", **points)]))


# --- charts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis("x", 0.0, 10.0), [0, 2, 4, 6, 8, 10]),
        (Axis("x", 0.0, 1.06), [0, 0.5, 1]),
        (Axis("x", -0.25, 0.25), [-0.2, -0.1, 0, 0.1, 0.2]),
        (Axis("x", 1e-6, 5e-6), [1e-6, 2e-6, 3e-6, 4e-6, 5e-6]),
        (Axis("x", 0.0, 2e15), [0, 5e14, 1e15, 1.5e15, 2e15]),
        (Axis("x", 3.0, 3.0), [0, 2, 4, 6]),
        (Axis("x", 0.0, 0.0), [-1, -0.5, 0, 0.5, 1]),
        (Axis("x", 1e-3, 1.0, logarithmic=True), [1e-3, 1e-2, 1e-1, 1]),
        (Axis("x", 1e-30, 1.0, logarithmic=True), [10.0**k for k in range(-30, 1, 3)]),
        (Axis("x", 2.0, 9.0, logarithmic=True), [2, 4, 6, 8]),
    ],
    ids=repr,
)
def test_ticks_are_round_numbers_within_the_axis(axis, ticks):
    assert axis.ticks() == pytest.approx(ticks, abs=1e-12)


@pytest.mark.parametrize(
    ("axis", "values", "places"),
    [
        (FLAT, [0, 5, 10, 20], [0, 0.5, 1, 2]),
        (Axis("x", 1e-4, 1.0, logarithmic=True), [1e-4, 1e-2, 1.0], [0, 0.5, 1]),
        (Axis("x", 3.0, 3.0), [3.0], [0.5]),
        (Axis("x", 0.1, 0.1, logarithmic=True), [0.1], [0.5]),
    ],
    ids=repr,
)
def test_places_run_from_the_low_end_to_the_high_one(axis, values, places):
    assert axis.places(values) == pytest.approx(places)


def test_a_line_goes_from_corner_to_corner():
    picture = drawn()
    width, height = picture.size
    assert picture.lines[0].tolist() == [[0, height], [width / 2, height / 2], [width, 0]]


def test_stairs_hold_a_value_up_to_the_next_point():
    picture = drawn(stairs=True)
    width, height = picture.size
    half, middle = width / 2, height / 2
    assert picture.lines[0].tolist() == [
        [0, height],
        [half, height],
        [half, middle],
        [width, middle],
        [width, 0],
    ]


def test_a_chart_has_its_title_labels_names_and_numbers():
    picture = drawn(Axis("step", 0.0, 10.0), Axis("rate", 0.0, 0.5), name="<smooth>", dashed=True)
    assert {"a chart", "step", "rate", "<smooth>", "0.1", "10"} <= set(picture.texts)
    assert next(picture.root.iter(f"{SVG}polyline")).get("stroke-dasharray")


@pytest.mark.parametrize("title", ["x" * 500, "many words " * 50, "<b> & 'quotes'", ""])
def test_any_title_fits(title):
    picture = Picture(chart(title, FLAT, FLAT, []))
    shown = picture.texts[: -2 * len(FLAT.ticks()) - 2]
    assert max(map(len, shown), default=0) < 80
    assert "".join(shown).replace(" ", "") == title.replace(" ", "")
    bottom = float(picture.plot.get("y")) + picture.size[1]
    assert bottom < float(picture.root.get("height"))


# --- schedules ------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", EXAMPLES.values(), ids=EXAMPLES)
def test_a_schedule_shows_its_curve(schedule):
    picture = Picture(schedule._repr_svg_())
    (line,) = picture.lines
    assert "".join(picture.texts).replace(" ", "").startswith(repr(schedule).replace(" ", ""))
    assert (np.diff(line[:, 0]) >= 0).all()
    assert (line >= -0.05).all()
    assert (line <= picture.size + 0.05).all()


def test_the_curve_is_that_of_the_schedule():
    width, height = Picture(CosineDecay(0.5, 100)._repr_svg_()).size
    (line,) = Picture(CosineDecay(0.5, 100)._repr_svg_()).lines
    steps = np.arange(len(line))
    rates = np.where(steps < 100, 0.25 * (1 + np.cos(np.pi * steps / 100)), 0.0)
    assert line[:, 0] == pytest.approx(steps / steps[-1] * width, abs=0.06)
    assert line[:, 1] == pytest.approx(height * (1 - rates / (1.06 * 0.5)), abs=0.06)


@pytest.mark.parametrize(
    "schedule",
    [
        PiecewiseConstantDecay([], [0.0]),
        PiecewiseConstantDecay([5], [-0.1, 0.1]),
        PiecewiseConstantDecay([5], [-0.1, -0.2]),
        InverseTimeDecay(1e-38, 1e38, 0.5),
        CosineDecay(1e38, 1),
    ],
    ids=repr,
)
def test_extreme_schedules_have_a_picture(schedule):
    picture = Picture(schedule._repr_svg_())
    assert (np.concatenate(picture.lines) >= -0.05).all()
    assert (np.concatenate(picture.lines) <= picture.size + 0.05).all()


def test_a_plateau_is_shown_from_its_start_and_keeps_what_it_knows():
    plateau = ReduceOnPlateau(0.1, factor=0.5, patience=1)
    fresh = plateau._repr_svg_()
    for metric in (3.0, 3.0, 3.0):
        plateau.update(metric)
    state = plateau.state
    assert plateau._repr_svg_() == fresh
    assert plateau.state == state
    assert state.reductions == 1


class Own(LearningRateSchedule):
    """A schedule of the user's, whose span nobody knows."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate


@pytest.mark.parametrize(
    "schedule",
    [
        ReduceOnPlateau(CosineDecay(0.1, 10_000_000)),
        Chain([CosineDecay(0.1, 100), Own(float("nan"))]),
        Join([0.1, Own(float("inf"))], [5]),
    ],
    ids=["too-many-metrics", "nan", "infinity"],
)
def test_what_has_no_curve_is_left_to_its_text(schedule):
    assert schedule._repr_svg_() is None


def test_a_class_of_the_users_is_not_called_for_a_picture():
    assert not hasattr(Own(0.1), "_repr_svg_")


def test_an_own_schedule_is_shown_within_others():
    assert Picture(Chain([CosineDecay(0.1, 100), Own(0.5)])._repr_svg_()).lines


# --- range tests ----------------------------------------------------------------------------


def range_test(*losses):
    """A range test in which the losses are these."""
    return rmsjit.lr_range_test(
        iter(losses).__next__,
        rmsjit.RMSprop(),
        [],
        start_lr=1e-4,
        end_lr=1.0,
        num_steps=len(losses),
        smoothing=0.0,
    )


def test_a_range_test_shows_losses_and_suggestion():
    result = range_test(4.0, 4.0, 2.0, 1.0, 1.0)
    picture = Picture(result._repr_svg_())
    loss, smoothed, suggestion = picture.lines
    width, _ = picture.size
    assert loss[:, 0] == pytest.approx(width * np.arange(5) / 4, abs=0.06)
    assert smoothed.tolist() == loss.tolist()
    steepest = width * np.log(result.suggestion / 1e-4) / np.log(1e4)
    assert suggestion[:, 0] == pytest.approx([steepest, steepest], abs=0.06)
    assert f"suggestion: {result.suggestion:.2g}" in picture.texts
    assert {"loss", "smoothed", "learning rate", "0.01"} <= set(picture.texts)


@pytest.mark.parametrize(
    "losses", [(1.0, 2.0), (1.0, float("nan")), (0.0, 0.0), (-1.0, -1.0), (1.0, 1e300)], ids=str
)
def test_a_range_test_without_a_suggestion_shows_the_losses(losses):
    result = range_test(*losses)
    assert result.suggestion is None
    loss, smoothed = Picture(result._repr_svg_()).lines
    assert (np.abs([*loss, *smoothed]) <= 1e5).all()


def test_a_picture_needs_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert CosineDecay(0.1, 10)._repr_svg_()
    assert range_test(2.0, 1.0)._repr_svg_()
