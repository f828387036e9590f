"""Curves of scale: one training and one measurement for each value, each done once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from small_model import small_pipe
from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.errors import InvalidInput
from apl_guard.trainer import minifaces
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.identities import Identities, load_identities
from apl_guard.trainer.evaluate.curves import Curve, draw_curves, read_curves
from apl_guard.trainer.evaluate.scale import measure_scale, vary
from apl_guard.trainer.report.plots import draw_lines, panels

RECIPE = TrainConfig(
    n_vectors=2, steps=2, identity_batch=2, generic_batch=2, warmup_steps=0, images_per_identity=1, generic_count=4,
    sampling_steps=1, precision="float32",
)  # fmt: skip


@pytest.fixture(name="weights")
def _weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of random weights and six people, laid out as the shipped ones; the judges are the shipped ones."""
    judges = minifaces.judges()
    folder = tmp_path / "weights"
    small_pipe(shallow=True).save_pretrained(folder / "base")
    entries = [{"name": p.name, "neutral": {"coarse": p.neutral("coarse")}} for p in minifaces.people()[:120:20]]
    (folder / "identities.yaml").write_text(yaml.safe_dump({"identities": entries}))
    monkeypatch.setattr(minifaces, "WEIGHTS", folder)
    monkeypatch.setattr(minifaces, "judges", lambda: judges)
    (tmp_path / "recipe.yaml").write_bytes(RECIPE.to_bytes())
    return folder


def test_the_command_trains_measures_and_goes_on(weights: Path, tmp_path: Path) -> None:
    """A point for each value; the second time only what is new is trained, and what was measured is the same."""
    command = [
        "minifaces", "scale", "--output", tmp_path / "scale", "--config", tmp_path / "recipe.yaml", "--people", 6,
        "--axis", "identities", "--images-per-person", 1, "--steps", 1, "--quiet", "--value", 2, "--value", 6,
    ]  # fmt: skip
    texts = [str(part) for part in command]

    first = CliRunner().invoke(app, texts, catch_exceptions=False)

    assert first.exit_code == 0, first.output
    (curve,) = read_curves(tmp_path / "scale" / "curves.json")
    assert [point["x"] for point in curve.points] == [2, 6]
    assert set(curve.series) == {"leak, trained people", "leak, unseen people", "attributes kept, other prompts"}
    assert Image.open(tmp_path / "scale" / "curves.png").format == "PNG"
    prefixes = sorted((tmp_path / "scale").glob("people*/prefix.safetensors"))
    assert [path.parent.name.split("-")[0] for path in prefixes] == ["people2", "people6"]
    before = {path: path.stat().st_mtime_ns for path in prefixes}

    second = CliRunner().invoke(app, [*texts, "--value", "3"], catch_exceptions=False)

    assert second.exit_code == 0, second.output
    assert {path: path.stat().st_mtime_ns for path in prefixes} == before
    points = json.loads((tmp_path / "scale" / "curves.json").read_text())["curves"][0]["points"]
    assert [point["x"] for point in points] == [2, 6, 3]
    assert points[:2] == curve.points


def test_other_axes_and_values_are_added_to_what_is_there(weights: Path, tmp_path: Path) -> None:
    """Curves that took hours are not lost to a later run; one that measures otherwise is refused before it trains."""
    folder = tmp_path / "scale"
    shared = ["minifaces", "scale", "--output", str(folder), "--config", str(tmp_path / "recipe.yaml"), "--people", "6"]
    shared += ["--images-per-person", "1", "--steps", "1", "--quiet"]

    for axis, value in (("eta", "1"), ("vectors", "2"), ("eta", "0")):
        answer = CliRunner().invoke(app, [*shared, "--axis", axis, "--value", value], catch_exceptions=False)
        assert answer.exit_code == 0, answer.output

    curves = read_curves(folder / "curves.json")
    assert [(curve.x, [point["x"] for point in curve.points]) for curve in curves] == [("η", [1, 0]), ("N", [2])]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = [*shared, "--axis", "share", "--seed", "1", "--set", "lr=0.1"]
    with pytest.raises(InvalidInput, match=r"curves\.json: .*made otherwise, by measurement\.seed, recipe\.lr; "):
        CliRunner().invoke(app, other, catch_exceptions=False)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ['{"curves": [{', '{"curves": []}'])
def test_curves_that_say_not_how_they_were_made_are_not_added_to(weights: Path, tmp_path: Path, content: str) -> None:
    """Damaged ones, or of an older version: nothing is trained, and the file stays."""
    (path := tmp_path / "curves.json").write_text(content)
    command = ["minifaces", "scale", "--output", tmp_path, "--config", tmp_path / "recipe.yaml", "--quiet"]

    with pytest.raises(InvalidInput, match=r"curves\.json: "):
        CliRunner().invoke(app, [str(part) for part in command], catch_exceptions=False)

    assert path.read_text() == content
    assert not list(tmp_path.glob("people*"))


def test_a_scale_that_is_stopped_says_where_training_stands(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What training says of its last checkpoint reaches the terminal, with the exit code of Ctrl-C."""

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("stopped at step 3; the same command goes on from here")

    monkeypatch.setattr("apl_guard.trainer.evaluate.scale.train", stopped)
    command = ["minifaces", "scale", "--output", tmp_path, "--config", tmp_path / "recipe.yaml", "--axis", "eta"]

    answer = CliRunner().invoke(app, [str(part) for part in command])

    assert answer.exit_code == 130
    assert "stopped at step 3; the same command goes on from here" in answer.stderr


def test_a_prefix_of_other_options_is_not_taken(weights: Path, tmp_path: Path) -> None:
    """A folder of another recipe is refused with its name."""
    people, pipe = load_identities(weights / "identities.yaml"), small_pipe(shallow=True)
    options = {"judges": minifaces.judges(), "people_limit": 6, "images_per_person": 1, "steps": 1, "progress": False}
    axes = {"vectors": (1,)}
    measure_scale(pipe, RECIPE, people, tmp_path / "scale", axes, **options)

    with pytest.raises(InvalidInput, match=r"people6-N1.*other options"):
        measure_scale(pipe, RECIPE.with_overrides(["lr=0.1"]), people, tmp_path / "scale", axes, **options)


@pytest.mark.parametrize(
    ("axis", "value"),
    [
        ("identities", 7),
        ("identities", 0),
        ("identities", 2.5),
        ("vectors", 2.5),
        ("vectors", float("nan")),
        ("share", 0.01),
        ("share", 1),
        ("share", float("nan")),
    ],
)
def test_values_that_cannot_be_are_refused(axis: str, value: float) -> None:
    """More people than there are, nobody, half of somebody, no number, or a batch without one kind of example."""
    with pytest.raises(InvalidInput, match=axis):
        vary(RECIPE, 6, axis, value)


def test_the_last_value_that_cannot_be_is_found_before_the_first_is_trained(tmp_path: Path) -> None:
    """There is no model here to train on."""
    people = Identities.model_validate({"identities": [{"name": "Ada", "neutral": {"coarse": "a woman"}}]})

    with pytest.raises(InvalidInput, match="identities: found 2; expected 1 to 1"):
        measure_scale(None, RECIPE, people, tmp_path, {"vectors": (1,), "identities": (1, 2)})

    assert not list(tmp_path.iterdir())


def test_axes_that_are_unknown_are_refused(tmp_path: Path) -> None:
    """The message says which there are."""
    people = Identities.model_validate({"identities": [{"name": "Ada", "neutral": {}}]})
    with pytest.raises(InvalidInput, match=r"found \['size'\]; expected some of"):
        measure_scale(None, RECIPE, people, tmp_path, {"size": (1,)})


def test_a_drawing_of_curves_shows_what_is_there() -> None:
    """Also before there is a first point, and where an interval is missing."""
    curves = [
        Curve("a", "N"),
        Curve("b", "N", [{"x": 1, "label": "", "leak": 0.5}, {"x": 2, "label": "", "leak": 0.0}]),
    ]

    assert Image.open(io.BytesIO(draw_curves(curves))).width > 800


def test_a_line_looks_alike_in_each_panel() -> None:
    """One name has one colour and marker, however many lines are before it; x is marked where something was measured;
    there is one legend."""
    figure, all_axes = panels(2, size=(4, 3))
    line = ([1, 5], [0.5, 0.1], [[0.4, 0.6], None])

    draw_lines(figure, all_axes, [{"a": line, "b": line}, {"b": line}])

    a, b, again = (
        (bar.lines[0].get_color(), bar.lines[0].get_marker()) for axes in all_axes for bar in axes.containers
    )
    assert a != b == again
    assert [label.get_text() for label in all_axes[0].get_xticklabels()] == ["1", "5"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_legend_is_no_wider_than_its_figure(count: int) -> None:
    """Names that do not fit beside each other stand below each other, and none is cut off."""
    figure, all_axes = panels(count, size=(5.5, 4))
    names = ["minifaces", "control: words to be found", "control: invented name", "control: random UNet"]

    draw_lines(figure, all_axes, [{name: ([0, 1], [0.5, 0.1], [None, None]) for name in names}] * count)

    figure.draw_without_rendering()
    (legend,) = figure.legends
    extent = legend.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.width
    assert [text.get_text() for text in legend.get_texts()] == names
