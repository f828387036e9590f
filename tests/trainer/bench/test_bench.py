"""The bench: what is counted, that it goes on where it was, and that its reports hold everything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_model import small_pipe
from typer.testing import CliRunner

from apl_guard.testing import random_prefix, tiny_pipe
from apl_guard.trainer import minifaces
from apl_guard.trainer.bench.afterwards import personalised, restyled
from apl_guard.trainer.bench.figures import people_figures
from apl_guard.trainer.bench.page import write_page
from apl_guard.trainer.bench.plot import draw_plot
from apl_guard.trainer.bench.run import BenchResult, Elsewhere, all_peers, run_bench
from apl_guard.trainer.bench.table import to_markdown, to_text
from apl_guard.trainer.data.identities import load_identities
from apl_guard.trainer.evaluate.asking import ask_for_people
from apl_guard.trainer.evaluate.gated import h_c_figures
from apl_guard.trainer.evaluate.result import Asked
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.minifaces.judge import Gallery, Judges
from apl_guard.trainer.minifaces.variants import VariantRecipe
from apl_guard.trainer.model.pipeline import model_digest
from apl_guard.trainer.peers.peer import Applied, Files, Peer, Task
from apl_guard.trainer.peers.prefix import APL, Plain
from apl_guard.trainer.peers.text_level import Block
from apl_guard.trainer.peers.uce import UCE
from apl_guard.trainer.personalise.recipe import Recipe
from apl_guard.trainer.train.card import training_seconds

KNOWN = [person.name for person in minifaces.known_people()]
FAST_UCE = UCE(templates=1, generic=2)


@pytest.fixture(name="world", scope="module")
def _world() -> Any:
    return small_pipe(shallow=True)


@pytest.fixture(name="task", scope="module")
def _task() -> Task:
    """The seen people whom a bench of two draws."""
    people = load_identities(minifaces.identities_file())
    return Task(people.model_copy(update={"identities": people.identities[::60]}), ("a photo of a cat", "a red car"))


@pytest.fixture(name="setting")
def _setting(world: Any, judges: Judges, tmp_path: Path) -> Setting:
    return Setting.of(
        world, random_prefix(world, n=3), judges, images_per_person=1, people_limit=2, steps=1,
        folder=tmp_path / "pictures", progress=False,
    )  # fmt: skip


@pytest.fixture(name="result", scope="module")
def _result(world: Any, judges: Judges, task: Task, tmp_path_factory: pytest.TempPathFactory) -> BenchResult:
    folder = tmp_path_factory.mktemp("bench")
    setting = Setting.of(
        world, random_prefix(world, n=3), judges, images_per_person=1, people_limit=2, steps=1, folder=None,
        progress=False,
    )  # fmt: skip
    peers = (Plain(), Block(), FAST_UCE, APL(setting.prefix))
    asked = ask_for_people(setting, "seen")
    restyled = Elsewhere([(small_pipe(shallow=True), asked[:1]), (world, asked[1:])], judges)
    return run_bench(setting, peers, task, folder, {"restyled": restyled})


class Stopping:
    """A real peer that is stopped when it draws for the second time, and counts how often it learns."""

    key, source = "stopping", ""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.settings = peer, peer.settings
        self.learned = self.calls = 0
        self.stops = True

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        self.learned += 1
        return self.peer.learn(pipe, task, progress)

    def apply(self, pipe: Any, files: Files) -> Applied:
        applied = self.peer.apply(pipe, files)

        def call(prompt: list[str], **options: Any) -> Any:
            self.calls += 1
            if self.stops and self.calls == 2:
                raise KeyboardInterrupt
            return applied.call(prompt, **options)

        return Applied(call)


def test_a_stopped_bench_goes_on_where_it_was(setting: Setting, task: Task, tmp_path: Path) -> None:
    """Nothing is learned twice and no picture drawn twice, and the figures are those of a bench that ran through."""
    stopping, whole = Stopping(FAST_UCE), Stopping(FAST_UCE)
    with pytest.raises(KeyboardInterrupt):
        run_bench(setting, (Plain(), stopping), task, tmp_path / "bench")
    before = stopping.calls
    stopping.stops = whole.stops = False

    went_on = run_bench(setting, (Plain(), stopping), task, tmp_path / "bench")
    drawn = stopping.calls - before
    again = run_bench(setting, (Plain(), stopping), task, tmp_path / "bench")
    through = run_bench(replace(setting, folder=None), (Plain(), whole), task, tmp_path / "another")

    assert stopping.learned == 1
    assert drawn == whole.calls - 1  # the suite that was drawn before it was stopped is not drawn again
    assert stopping.calls == before + drawn  # nor is anything timed again
    assert again.to_json() == went_on.to_json()
    took = ("training_seconds", "training_core_seconds", "seconds_per_image", "time_ratio")
    for key, row in went_on.rows.items():
        measured, wanted = ({k: v for k, v in r.items() if k not in took} for r in (row, through.rows[key]))
        assert measured == wanted


def test_times_are_of_the_bench_that_tells_them(setting: Setting, task: Task, tmp_path: Path) -> None:
    """A bench of other people in the same folder draws other prompts, so it times anew; what was learned stays."""
    peer = Stopping(FAST_UCE)
    peer.stops = False
    run_bench(setting, (Plain(), peer), task, tmp_path / "bench")
    before = json.loads((tmp_path / "bench" / "times.json").read_text())

    found = run_bench(replace(setting, people_limit=1), (Plain(), peer), task, tmp_path / "bench")

    after = json.loads((tmp_path / "bench" / "times.json").read_text())
    assert after["binding"] != before["binding"]
    assert found.rows[peer.key]["seconds_per_image"] == after["times"][peer.key]["seconds_per_image"]
    assert peer.learned == 1


def test_a_bench_of_another_model_is_refused_before_anything_is_learned(tmp_path: Path) -> None:
    """The judges look at pictures of 64 pixels, and there is nobody in another model to look for."""
    from apl_guard.cli import app
    from apl_guard.errors import ModelInvalid

    other = tiny_pipe()
    other.save_pretrained(tmp_path / "model")
    random_prefix(other, n=2).save(tmp_path / "prefix")
    options = ["--model", str(tmp_path / "model"), "--prefix", str(tmp_path / "prefix"), "--no-afterwards"]

    answer = CliRunner().invoke(app, ["bench", *options, "--output", str(tmp_path / "bench")])

    assert isinstance(answer.exception, ModelInvalid)
    assert "32 pixels" in str(answer.exception)
    assert not (tmp_path / "bench" / "learned").exists()


def test_a_place_that_cannot_hold_a_bench_is_found_first(tmp_path: Path) -> None:
    """Before models are trained for a quarter of an hour."""
    from apl_guard.cli import app
    from apl_guard.errors import StorageFailed

    (tmp_path / "bench" / "bench.json").mkdir(parents=True)

    answer = CliRunner().invoke(app, ["bench", "--prefix", "no such prefix", "--output", str(tmp_path / "bench")])

    assert isinstance(answer.exception, StorageFailed)


def test_every_figure_is_there_with_its_interval(result: BenchResult) -> None:
    """One row a peer; rates lie in their intervals; what was not measured is absent and not zero."""
    rates = ("leak_seen", "leak_unseen", "leak_restyled", "h_c", "refused", "face_ratio", "generic_fidelity")

    assert list(result.rows) == ["plain", "block names", "UCE", "APL"]
    for row in result.rows.values():
        for name in rates:
            low, high = row[f"{name}_ci"]
            assert 0 <= low <= row[name] <= high <= 1
        assert row["images"] == {"seen": 2, "unseen": 2, "generic": 8}
        assert row["seconds_per_image"] > 0
        assert "leak_personalised" not in row
    assert result.rows["plain"]["time_ratio"] == 1
    assert result.rows["plain"]["shipped_bytes"] == 0 < result.rows["UCE"]["shipped_bytes"]


def test_a_blocked_prompt_is_no_leak_and_no_use(result: BenchResult) -> None:
    """Blocked: no picture, no leak, no face, nothing kept; prompts that name others are drawn as ever."""
    blocked, plain = result.rows["block names"], result.rows["plain"]

    assert blocked["refused"] == 1
    assert blocked["leak_seen"] == blocked["face_ratio"] == blocked["scene_fidelity"] == 0
    for name in ("leak_unseen", "generic_fidelity", "frechet"):
        assert blocked[name] == plain[name]
    assert plain["refused"] == 0


def test_refused_prompts_are_counted_among_all(judges: Judges) -> None:
    """Of four pictures that show whom they should, two refused ones leave half of every rate."""
    pictures = np.random.default_rng(0).integers(0, 256, size=(4, 64, 64, 3), dtype=np.uint8)
    embeddings = judges.gallery.embeddings.clone()
    embeddings[:4] = judges.embed(pictures)
    gallery = Gallery(judges.gallery.names, embeddings)
    exact = Judges(judges.recogniser, judges.reader, gallery, {"far_1e-3": 0.99})
    seen = exact.attributes(pictures)
    asked = [Asked("", "", KNOWN[k], {}, {"clothing": seen[k]["clothing"]}) for k in range(4)]
    faces = [answer["shows"] == "face" for answer in seen]

    figures = people_figures(exact, pictures, asked, np.array([False, True, False, True]))

    assert figures["leak"] == figures["refused"] == figures["scene_fidelity"] == 0.5
    assert figures["recognised"] == (sum(faces[::2]), sum(faces[::2]))


@pytest.mark.parametrize(
    ("acc_e", "acc_s", "published"),
    [
        (0.9223, 0.9076, 0.1431),
        (0.2784, 0.2793, 0.4027),
        (0.0012, 0.3790, 0.5495),
        (0.0430, 0.8456, 0.8979),
        (0.0430, 0.8807, 0.9173),
    ],
)  # FMN, ESD-x, UCE, MACE, ANT; other rows of that table do not follow from their own accuracies
def test_h_c_is_that_of_the_published_tables(acc_e: float, acc_s: float, published: float) -> None:
    """From published accuracies comes the published H_c."""
    erased, retained = ((round(10_000 * rate), 10_000) for rate in (acc_e, acc_s))

    figures = h_c_figures(erased, retained)

    assert figures["h_c"] == pytest.approx(published, abs=1e-3)
    assert figures["h_c_ci"][0] < figures["h_c"] < figures["h_c_ci"][1]


def test_without_a_face_nobody_is_recognised() -> None:
    """A method that draws no face of anybody hides everybody and is of no use; the figure says so."""
    nothing, good = (0, 0), (100, 100)

    assert h_c_figures(nothing, nothing)["h_c"] == 0
    assert h_c_figures(nothing, good)["h_c"] == 1


def test_the_reports_hold_everything(result: BenchResult) -> None:
    """Table, document and page name every peer; the page refers to nothing outside; blocked pictures are said so."""
    text, document = to_text(result), to_markdown(result, "apl-guard bench")
    page = write_page(result, draw_plot(result), {"command": "a & b"})

    assert json.loads(result.to_json())["rows"].keys() == result.rows.keys()
    for key in result.rows:
        assert key in text
        assert f"| {key} |" in document
        assert f">{key}</th>" in page
    assert draw_plot(result).startswith(b"\x89PNG")
    assert "http" not in page
    assert "no image</td>" in page
    assert "a &amp; b" in page
    assert "$" not in page
    assert "personalised" not in text


def test_people_are_added_and_the_model_restyled_for_real(setting: Setting, task: Task, tmp_path: Path) -> None:
    """DreamBooth and the restyling make other models, on which the columns of both are measured."""
    others = {
        "restyled": restyled(setting, VariantRecipe.tiny()),
        "personalised": personalised(replace(setting, people_limit=1), Recipe.tiny()),
    }
    result = run_bench(setting, (Plain(), APL(setting.prefix)), task, tmp_path / "bench", others)

    digests = {model_digest(pipe) for elsewhere in others.values() for pipe, _ in elsewhere.models}
    assert len(digests | {model_digest(setting.pipe)}) == 3
    (asked,) = (asked for _, asked in others["personalised"].models)
    assert [one.person for one in asked] == [minifaces.people()[160].name]
    for row in result.rows.values():
        for name in ("leak_restyled", "leak_personalised"):
            assert row[f"{name}_ci"][0] <= row[name] <= row[f"{name}_ci"][1]


def test_every_peer_has_a_name_of_its_own(world: Any) -> None:
    """Twelve of them, the plain model first."""
    keys = [peer.key for peer in all_peers(random_prefix(world, n=2))]

    assert keys[0] == "plain"
    assert len(set(keys)) == len(keys) == 12


def test_the_command_says_what_it_takes_and_refuses_unknown_peers(tmp_path: Path) -> None:
    """An unknown peer is an error that lists those that there are."""
    from apl_guard.cli import app
    from apl_guard.errors import InvalidInput

    runner = CliRunner()
    answer = runner.invoke(app, ["bench", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert answer.exit_code == 0
    assert "--images-per-person" in answer.output
    answer = runner.invoke(app, ["bench", "--peer", "nobody", "--output", str(tmp_path)])
    assert isinstance(answer.exception, InvalidInput)
    assert "concept ablation" in str(answer.exception)


def test_how_long_a_prefix_took_is_read_from_its_card(tmp_path: Path) -> None:
    """The shipped prefix has a card that says it; a folder without one does not."""
    assert 0 < (training_seconds(minifaces.prefix_path()) or 0) < 24 * 3600
    assert training_seconds(tmp_path) is None
