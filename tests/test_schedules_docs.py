"""The page of schedules names every schedule, and its picture can be drawn."""

import importlib.util
import re
from pathlib import Path

import pytest

from rmsjit import schedules

DOCS = Path(__file__).parents[1] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="docs/ is not here")
NAMES = set(schedules.__all__) - {"LearningRateSchedule", "serialize", "deserialize"}


def test_every_schedule_has_a_row_and_a_formula():
    text = (DOCS / "schedules.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[`(\w+)`\]", text, re.MULTILINE)) == NAMES
    assert set(re.findall(r"^### (\w+)\n\n {4}\S", text, re.MULTILINE)) == NAMES


@pytest.mark.slow
def test_the_picture_is_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("make_schedules", DOCS / "make_schedules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PICTURE", tmp_path / "schedules.png")
    module.main()
    assert (tmp_path / "schedules.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
