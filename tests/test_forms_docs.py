"""The page of forms and the command line: made from the rows, so that they can't be wrong."""

import importlib.util
import re
from pathlib import Path

import pytest

from rmsjit.__main__ import main
from rmsjit.forms import description
from rmsjit.forms.formula import formula
from rmsjit.forms.table import BY_NAME, LIBRARIES
from rmsjit.rule.form import Form

DOCS = Path(__file__).parents[1] / "docs"
in_a_checkout = pytest.mark.skipif(not DOCS.exists(), reason="docs/ is not here")


@pytest.fixture(scope="module")
def make_forms():
    spec = importlib.util.spec_from_file_location("make_forms", DOCS / "make_forms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@in_a_checkout
def test_the_page_is_that_of_the_rows_and_of_the_figures(make_forms):
    text = make_forms.PAGE.read_text(encoding="utf-8")
    assert make_forms.page(text) == text, "run python docs/make_forms.py"


@in_a_checkout
def test_the_page_needs_its_parts(make_forms):
    with pytest.raises(ValueError, match=r"forms\.md must have one part 'forms'"):
        make_forms.page("# nothing")


@pytest.mark.slow
@in_a_checkout
def test_the_picture_is_drawn(make_forms, tmp_path):
    path = tmp_path / "forms.png"
    make_forms.draw(path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(make_forms.DRAWN) == 10


def test_formulas_in_the_words_of_a_library():
    library = BY_NAME["optax"]
    form = library.chosen(
        {"learning_rate": 0.1, "momentum": 0.9, "centered": True, "bias_correction": True}
    ).form
    assert formula(form, {"rho": "decay", "learning_rate": "lr", "epsilon": "eps"}) == [
        "rms <- decay*rms + (1 - decay)*|g|^2",
        "mg  <- decay*mg + (1 - decay)*g",
        "v    = max(rms/(1 - decay^t) - (mg/(1 - decay^t))^2, 0)",
        "mom <- momentum*mom + lr*g / sqrt(v + eps)",
        "p   <- p - mom",
    ]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"weight_decay": "coupled"}, "g   <- g + weight_decay*p"),
        ({"weight_decay": "decoupled"}, "p   <- p*(1 - learning_rate*weight_decay)"),
        ({"weight_decay": "subtracted"}, "p   <- p - p*weight_decay*learning_rate"),
        ({"weight_decay": "independent"}, "p   <- p*(1 - weight_decay)"),
        ({"rms_average": "difference"}, "rms <- rms + (g^2 - rms)*(1 - rho)"),
        ({"clip_weights": True}, "p   <- min(max(p, -clip_weights), clip_weights)"),
        ({"epsilon": "outside"}, "mom <- momentum*mom + learning_rate*g / (sqrt(rms) + epsilon)"),
        ({"learning_rate": "outside"}, "p   <- p - learning_rate*mom"),
        (
            {"learning_rate": "outside", "nesterov": True},
            "p   <- p - learning_rate*(momentum*mom + g / (sqrt(rms) + epsilon))",
        ),
    ],
    ids=str,
)
def test_lines_of_formulas(settings, line):
    assert line in formula(Form.with_slots("rms", "momentum", **settings))


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_every_form_is_printed(library, capsys):
    assert main(["forms", library.name]) == 0
    printed = capsys.readouterr().out
    assert library.title.replace("`", "") in printed
    for lines in description.formulas(library, {}).values():
        for line in lines:
            assert f"    {line}\n" in printed
    for name, said in description.facts(library).items():
        assert re.search(rf"^{re.escape(name)} +{re.escape(said)}$", printed, re.MULTILINE)


def test_all_forms_are_listed(capsys):
    assert main(["forms"]) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^{name} ", printed, re.MULTILINE) for name in BY_NAME)


def test_a_form_with_arguments(capsys):
    assert main(["forms", "timm", "momentum=0.9", "lr_in_momentum=False"]) == 0
    printed = capsys.readouterr().out
    assert "With momentum=0.9, lr_in_momentum=False:" in printed
    assert "    p   <- p - lr*mom" in printed


def test_what_differs(capsys):
    assert main(["forms", "--compare", "torch", "keras"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^epsilon and the root +outside +inside$", printed, re.MULTILINE)
    assert re.search(r"^default of rho +0\.99 +0\.9$", printed, re.MULTILINE)
    assert "slots" not in printed
    assert main(["forms", "--compare", "keras", "tf_keras"]) == 0
    assert "compute the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tocrh"], "there is no form 'tocrh'; the nearest is 'torch'"),
        (["torch", "rho=0.9"], "torch has no argument 'rho'; it has lr, alpha"),
        (["torch", "momentum"], "an argument must be given as NAME=VALUE, got 'momentum'"),
        (["torch", "alpha=2"], "alpha must be between 0 and 1, got 2.0"),
        (["torch", "centered=maybe"], "centered must be one of False, True, got 'maybe'"),
        (["torch", "--compare", "torch", "keras"], "--compare takes two names and nothing else"),
        (["--compare", "torch", "kears"], "the nearest is 'keras'"),
    ],
)
def test_what_can_not_be_printed_is_said(arguments, message, capsys):
    assert main(["forms", *arguments]) == 2
    assert message in capsys.readouterr().err
