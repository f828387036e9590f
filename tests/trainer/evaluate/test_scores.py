"""Figures of the evaluation against independent definitions of the same, and suites that compare arms."""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from small_model import small_pipe

from apl_guard.testing import random_prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.evaluate.asking import ask_for_people
from apl_guard.trainer.evaluate.gated import gated, h_c_figures, harmonic
from apl_guard.trainer.evaluate.inactivity import distances, inactivity
from apl_guard.trainer.evaluate.result import Asked, EvalResult
from apl_guard.trainer.evaluate.scores import generic_figures, identity_figures, likeness, mean_figure, worst_person
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.evaluate.statistics import bootstrap_interval, clopper_pearson, effective, frechet_distance
from apl_guard.trainer.minifaces.judge import Gallery, Judges, Reader, Recogniser
from apl_guard.trainer.minifaces.traits import GEOMETRY


class SeesFaces(Judges):
    """Judges of random weights that see a face in each picture."""

    def has_face(self, images: Any) -> Any:
        return np.ones(len(images), dtype=np.bool_)


@pytest.fixture(name="setting", scope="module")
def _setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Two seen and two unseen people, one picture each; the gallery holds what the plain pipe draws of them."""
    torch.manual_seed(0)
    pipe = small_pipe(shallow=True)
    names = tuple(person.name for person in minifaces.known_people())
    embeddings = torch.nn.functional.normalize(torch.randn(len(names), GEOMETRY), dim=-1)
    judges = SeesFaces(Recogniser(), Reader(), Gallery(names, embeddings), {"far_1e-2": 0.9, "far_1e-3": 0.99})
    setting = Setting.of(
        pipe, random_prefix(pipe, n=4), judges, steps=5, images_per_person=1, people_limit=2,
        folder=tmp_path_factory.mktemp("pictures"), progress=False,
    )  # fmt: skip
    for split in ("seen", "unseen"):
        asked = ask_for_people(setting, split)
        pictures = setting.draw_asked(pipe, asked, split)
        for one, embedding in zip(asked, judges.embed(pictures), strict=True):
            embeddings[names.index(one.person or "")] = embedding
    return setting


@given(st.floats(0, 0.99), st.floats(0.01, 1))
def test_h_c_is_the_harmonic_mean_of_what_is_gone_and_what_is_kept(erased: float, retained: float) -> None:
    """Against the definition of the standard library."""
    assert harmonic(erased, retained) == pytest.approx(statistics.harmonic_mean([1 - erased, retained]))


@pytest.mark.parametrize(
    ("erased", "retained", "published"),
    [(0.0430, 0.8807, 0.9173), (0.0012, 0.3790, 0.5495), (0.2784, 0.2793, 0.4027), (0.9223, 0.9076, 0.1431)],
)
def test_h_c_is_what_the_field_publishes(erased: float, retained: float, published: float) -> None:
    """Rows of published tables (ANT, UCE, ESD-x, FMN; 100 erased, 100 retained) come out as printed."""
    assert harmonic(erased, retained) == pytest.approx(published, abs=1e-4)


people = st.lists(
    st.tuples(st.sampled_from("ABCD"), st.booleans(), st.booleans(), st.floats(-1, 1)), min_size=1, max_size=30
)


@given(people)
def test_nobody_is_worse_than_the_worst_person(rows: list[tuple[str, bool, bool, float]]) -> None:
    """Counted anew for each person, of those alike the most similar; the interval holds for all people at once."""
    names = [name for name, *_ in rows]
    hits, cosine = np.array([row[1] for row in rows]), np.array([row[3] for row in rows])

    found = worst_person("leak", hits, cosine, names)

    rates = {name: np.mean([hit for who, hit in zip(names, hits, strict=True) if who == name]) for name in names}
    assert found["worst_leak"] == max(rates.values()) == rates[found["worst_leak_person"]]
    assert found["worst_leak_images"] == names.count(found["worst_leak_person"])
    alike = {
        name: np.mean([row[3] for row in rows if row[0] == name])
        for name in rates
        if rates[name] == max(rates.values())
    }
    assert alike[found["worst_leak_person"]] == max(alike.values())
    n = found["worst_leak_images"]
    interval = clopper_pearson(found["worst_leak"] * n, n, confidence=1 - 0.05 / len(rates))
    assert found["worst_leak_ci"] == pytest.approx(interval)


@given(people)
def test_likeness_leaves_pictures_without_faces_out_and_counts_them(rows: list[tuple[str, bool, bool, float]]) -> None:
    """Mean and maximum over people who are seen at all; where nobody is, there is no figure."""
    names = [name for name, *_ in rows]
    found = likeness(np.array([row[3] for row in rows]), np.array([row[2] for row in rows]), names)

    own = {name: [cosine for who, _, face, cosine in rows if who == name and face] for name in names}
    shown = [values for values in own.values() if values]
    assert found["faceless"] == sum(not row[2] for row in rows)
    assert found["people"] == len(shown)
    if shown:
        assert found["cosine_mean"] == pytest.approx(statistics.fmean(statistics.fmean(v) for v in shown))
        assert found["cosine_max"] == pytest.approx(statistics.fmean(max(v) for v in shown))
        assert (found["cosine_mean_ci"] is None) == (len(shown) == 1)
    else:
        assert "cosine_mean" not in found


@pytest.fixture(name="told")
def _told() -> Any:
    """Judges that say what a test put there, of six pictures: three of each of two people, beside a third."""
    of_ada, of_bo = [[0.9, 0.1, 0.2], [0.7, 0.1, 0.8], [0.5, 0, 0]], [[0.1, 0.7, 0], [0.1, 0.2, 0], [0, 0.1, 0.05]]
    cosines = torch.tensor([*of_ada, *of_bo])
    read = [{"hair": hair, "sky": sky} for hair, sky in zip("rrrrbb", "bbgggg", strict=True)]
    return SimpleNamespace(
        embed=lambda pictures: cosines,
        gallery=Gallery(("Ada", "Bo", "Cy"), torch.eye(3)),
        attributes=lambda pictures: (read * 7)[: len(pictures)],
        has_face=lambda pictures: np.array([True] * 5 + [False]),
        features=lambda pictures: torch.from_numpy(pictures).flatten(1),
        thresholds={"far_1e-2": 0.5, "far_1e-3": 0.7},
        name="told",
    )


def test_the_figures_of_people_are_counted_by_hand(told: Any) -> None:
    """Each of its own hits; the intervals are those of pictures of which three each show one person."""
    people = ["Ada"] * 3 + ["Bo"] * 3
    asked = [Asked("", "", one, {"hair": "r"}, {"sky": "b"}) for one in people]

    found = identity_figures(told, np.zeros((6, 64, 64, 3), np.uint8), asked)

    for name, hits in {
        "top1": [1, 0, 1, 1, 1, 1],
        "leak_far_1e-2": [1, 1, 1, 1, 0, 0],
        "leak_far_1e-3": [1, 1, 0, 1, 0, 0],
        "face_ratio": [1, 1, 1, 1, 1, 0],
        "attribute_fidelity": [1, 1, 1, 1, 0, 0],
        "scene_fidelity": [1, 1, 0, 0, 0, 0],
    }.items():
        assert found[name] == sum(hits) / 6, name
        assert found[f"{name}_ci"] == pytest.approx(clopper_pearson(*effective(hits, people))), name
    assert (found["images"], found["people"], found["faceless"]) == (6, 2, 1)
    assert (found["worst_leak_far_1e-3"], found["worst_leak_far_1e-3_person"]) == (2 / 3, "Ada")
    assert found["cosine_max"] == pytest.approx((0.9 + 0.7) / 2)


def test_the_interval_of_a_frechet_distance_pairs_prompts(told: Any) -> None:
    """Picture k of both sets is of one prompt, so what a prompt does to both makes the interval no wider."""
    rng = np.random.default_rng(0)
    pictures, fresh = rng.normal(size=(2, 40, 3)) + 9 * rng.normal(size=(40, 1))

    found = generic_figures(told, pictures, fresh, [Asked("", "", None, {"hair": "r"}, {})] * 40, 3)

    assert found["frechet"] == frechet_distance(pictures, fresh)
    assert found["frechet_ci"] == list(bootstrap_interval(frechet_distance, [pictures, fresh], 3, paired=True))
    assert (found["images"], found["frechet_space"]) == (40, "told")


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    """For many values the bootstrap agrees with mean ± 1.96 standard errors."""
    values = np.random.default_rng(0).normal(size=400)

    low, high = mean_figure("m", values)["m_ci"]

    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.25 * error)


def test_a_gate_hides_those_listed_and_nobody_else(setting: Setting) -> None:
    """Others come out as without a guard, those listed as with every prompt guarded."""
    figures = gated(setting)["gated"]

    assert figures["plain"]["acc_erased"] == figures["plain"]["acc_retained"] == 1
    assert figures["plain"]["h_c"] == 0
    assert figures["gated"]["acc_retained"] == 1
    assert figures["gated"]["acc_erased"] == figures["guarded"]["acc_erased"]
    assert figures["gated"]["h_c"] == pytest.approx(harmonic(figures["gated"]["acc_erased"], 1.0))
    assert figures["gated"]["images"] == 4
    assert "H_c" in EvalResult({"gated": figures}).to_table()


@pytest.mark.parametrize(("acc_e", "acc_s", "faces"), [(0.02, 0.97, 8), (0.5, 0.5, 20), (0.0, 0.9, 6)])
def test_the_interval_of_h_c_holds_the_true_one_as_often_as_it_says(acc_e: float, acc_s: float, faces: int) -> None:
    """At least 95 of 100 times, however few the pictures are: some that all came out alike are no proof."""
    rng = np.random.default_rng(0)
    true, held = harmonic(acc_e, acc_s), 0
    for named, kept in zip(rng.binomial(faces, acc_e, 400), rng.binomial(faces, acc_s, 400), strict=True):
        low, high = h_c_figures((int(named), faces), (int(kept), faces))["h_c_ci"]
        held += low <= true <= high
    assert held / 400 >= 0.95


def test_inactivity_is_measured_against_fewer_steps(setting: Setting) -> None:
    """Both are compared with the same plain pictures; the ratio is that of the two means."""
    figures = inactivity(setting)["inactivity"]

    assert {arm: found["steps"] for arm, found in figures.items()} == {
        "plain": 5, "fewer_steps": 4, "guarded": 5, "gated": 5, "other_sampler": 4,
    }  # fmt: skip
    assert "pixel_distance" not in figures["plain"]
    for name in ("feature_distance", "pixel_distance", "structure_distance"):
        assert figures["guarded"][name] > 0
        for beside in ("fewer_steps", "other_sampler"):
            ratio = figures["guarded"][name] / figures[beside][name]
            assert figures["guarded"][f"{name}_over_{beside}"] == pytest.approx(ratio)
        assert figures["gated"][name] == pytest.approx(0, abs=1e-6), "no prompt names anybody, so none has a prefix"
    assert figures["fewer_steps"]["pixel_distance"] != figures["other_sampler"]["pixel_distance"]
    assert isinstance(setting.pipe.scheduler, DDIMScheduler), "the pipe is left as it was"


def test_distances_are_those_of_the_pixels(setting: Setting) -> None:
    """Equal pictures are 0 apart by each measure; pictures of one grey and another differ by that much."""
    same = np.random.default_rng(0).integers(0, 256, size=(2, 64, 64, 3), dtype=np.uint8)
    dark, light = np.full((1, 64, 64, 3), 51, np.uint8), np.full((1, 64, 64, 3), 102, np.uint8)

    for values in distances(setting, same, same).values():
        assert values == pytest.approx([0, 0], abs=1e-6)
    assert distances(setting, dark, light)["pixel_distance"] == pytest.approx([0.2])
