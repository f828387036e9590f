"""The figures that the pages publish are those of the evaluation that ships with them."""

import json
import re
from pathlib import Path

import pytest

from apl_guard.trainer.evaluate.result import show_figure
from apl_guard.trainer.minifaces import WEIGHTS

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="needs the sources")

FIGURES = {
    "identified among 160 people and 1,440 twins": "top1",
    "verified at FAR 1e-2": "leak_far_1e-2",
    "verified at FAR 1e-3": "leak_far_1e-3",
    "face ratio": "face_ratio",
    "attributes that the neutral prompt keeps": "attribute_fidelity",
    "attributes kept": "attribute_fidelity",
    "scene kept": "scene_fidelity",
}
"""What the page calls a figure → what it is in the evaluation."""


def test_the_table_of_the_first_page_is_the_evaluation():
    """Every share of it, with its interval, in every arm."""
    suites = json.loads((WEIGHTS / "evaluation.json").read_bytes())["suites"]
    rows = re.findall(
        r"^\| (seen|unseen|generic): (.*?) \| (.*?) \| (.*?) \| (.*?) \|", (ROOT / "README.md").read_text(), re.M
    )
    shares = [(suite, FIGURES[label], cells) for suite, label, *cells in rows if label in FIGURES]

    assert len(shares) == 13
    for suite, figure, cells in shares:
        arms = (suites[suite].get(arm, {}) for arm in ("plain", "neutral", "guarded"))
        assert [show_figure(arm, figure) for arm in arms] == cells, (suite, figure)


def test_the_number_of_images_is_that_of_the_command():
    """The page names as many images as its command makes, and as the evaluation has."""
    evaluation = json.loads((WEIGHTS / "evaluation.json").read_bytes())
    page = (ROOT / "README.md").read_text()

    each = evaluation["settings"]["images_per_person"]
    assert f"--images-per-person {each} --steps {evaluation['settings']['steps']} --format json" in page
    for suite in ("seen", "unseen", "generic"):
        assert f"{evaluation['suites'][suite]['plain']['images']:,}" in page
