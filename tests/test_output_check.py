"""The output check: no picture of anybody in the gallery is released, and none that nobody could look at."""

import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from apl_guard import (
    Gallery,
    Guard,
    InvalidInput,
    OutputCheck,
    OutputCheckFailed,
    OutputWithheld,
    Policy,
    PolicyBlocked,
    PolicyInvalid,
)
from apl_guard.detect.pictures import read_pictures

ENTRY = "case 17"
PROMPT = "a photo of Mara Voss"


class Pixels:
    """Tells pictures apart by their pixels, each picture being one face: equal pictures have similarity 1."""

    name = "pixels 1"

    def __call__(self, pictures):
        return [(p.astype(np.float32) - p.mean()).reshape(1, -1) for p in pictures]


class Breaking(Pixels):
    """Fails in one of many ways."""

    def __init__(self, how):
        self.how = how

    def __call__(self, pictures):
        answer = super().__call__(pictures)
        if self.how == "raises":
            raise RuntimeError(PROMPT)
        if self.how == "hangs":
            time.sleep(1)
        return {
            "too few": answer[1:],
            "too many": answer + answer,
            "other width": [each[:, 1:] for each in answer],
            "no numbers": [each * np.nan for each in answer],
            "no length": [each * 0 for each in answer],
            "no rows": [each[0] for each in answer],
            "none": [None for _ in answer],
        }.get(self.how, answer)


FAULTS = ("raises", "hangs", "too few", "too many", "other width", "no numbers", "no length", "no rows", "none")


def document(**spec):
    rules = [{"id": "all", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}}]
    about = {"apiVersion": "apl-guard/v1", "kind": "Policy", "metadata": {"name": "demo", "version": 1}}
    return about | {"spec": {"rules": rules, **spec}}


def policy(**spec):
    return Policy.model_validate(document(**spec))


def records(folder):
    lines = [line for path in sorted((folder / "segments").iterdir()) for line in path.read_text().splitlines()]
    return [each for each in map(json.loads, lines) if each["event"].startswith("guard.")]


def counted(registry, name, **labels):
    return registry.get_sample_value(f"apl_guard_{name}_total", labels) or 0


def call(guard, seed, **more):
    generator = torch.Generator().manual_seed(seed)
    return guard(PROMPT, num_inference_steps=1, generator=generator, **more)


@pytest.fixture
def gallery(shared_pipe, prefix):
    """Holds whoever is in the guarded picture of seed 1."""
    drawn = call(Guard(shared_pipe, prefix=prefix), 1)
    return Gallery.enroll(
        Pixels(), {"case 16": [np.eye(32, dtype=np.uint8)[..., None].repeat(3, 2)], ENTRY: drawn.images}
    )


@pytest.fixture
def make(shared_pipe, prefix, gallery, metrics_registry, tmp_path):
    """A guard with an output check."""

    def guard(recogniser=None, threshold=0.9999, seconds=10.0, **spec):
        check = OutputCheck(recogniser or Pixels(), gallery, threshold, seconds=seconds)
        return Guard(
            shared_pipe,
            policy(**spec),
            prefix=prefix,
            audit=tmp_path / "audit",
            metrics_registry=metrics_registry,
            output_check=check,
        )

    return guard


def test_a_picture_of_somebody_in_the_gallery_is_not_released(make, gallery, metrics_registry, tmp_path, caplog):
    """The call ends as withheld, on record and in the metrics, and nothing but the error says who it was."""
    with pytest.raises(OutputWithheld) as caught:
        call(make(), 1)

    assert isinstance(caught.value, PolicyBlocked)
    assert [(s.picture, s.entry) for s in caught.value.sightings] == [(0, ENTRY)]
    outcome = records(tmp_path / "audit")[-1]
    assert (outcome["result"], outcome["images"], outcome["error"]) == ("withheld", 0, None)
    assert outcome["output_check"] == {
        "recogniser": "pixels 1",
        "gallery_digest": gallery.digest,
        "threshold": 0.9999,
        "faces": [1],
        "matches": 1,
        "highest": pytest.approx(1, abs=1e-5),
    }
    assert counted(metrics_registry, "outcomes", result="withheld") == 1
    assert counted(metrics_registry, "checked_pictures", seen="match") == 1
    assert outcome["protection"] is None
    assert not [m for m in metrics_registry.collect() if m.name == "apl_guard_images" and m.samples]
    everything = "".join(path.read_text() for path in (tmp_path / "audit" / "segments").iterdir())
    assert ENTRY not in everything + caplog.text + str(caught.value)


def test_one_match_withholds_the_whole_call(make, shared_pipe):
    """For the pipe's answer is one object, from which no picture can be taken out."""
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    with pytest.raises(OutputWithheld, match="1 of 2 pictures"):
        make()([PROMPT] * 2, num_inference_steps=1, generator=generators)


def test_everybody_else_is_released(make, metrics_registry, tmp_path, shared_pipe, prefix):
    """Bit for bit the picture without an output check; the record says how close it came."""
    bare = call(Guard(shared_pipe, prefix=prefix), 2, output_type="np").images
    assert np.array_equal(call(make(), 2, output_type="np").images, bare)
    outcome = records(tmp_path / "audit")[-1]
    assert outcome["result"] == "passed"
    assert outcome["output_check"]["matches"] == 0
    assert -1 < outcome["output_check"]["highest"] < 0.9999
    assert counted(metrics_registry, "checked_pictures", seen="stranger") == 1


@pytest.mark.parametrize("how", FAULTS)
def test_what_nobody_could_look_at_is_not_released(make, metrics_registry, tmp_path, how):
    """Whatever is wrong with the recogniser: a typed error, a record of it, and no image."""
    with pytest.raises(OutputCheckFailed) as caught:
        call(make(Breaking(how), seconds=0.2), 2)
    assert "Mara" not in str(caught.value)
    outcome = records(tmp_path / "audit")[-1]
    assert (outcome["result"], outcome["images"], outcome["error"]) == ("failed", 0, "OutputCheckFailed")
    assert outcome["output_check"]["failed"] == "OutputCheckFailed"
    assert counted(metrics_registry, "outcomes", result="failed") == 1
    fault = {"stage": "check_output", "error_type": "OutputCheckFailed", "disposition": "blocked"}
    assert counted(metrics_registry, "errors", **fault) == 1


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_a_call_that_is_broken_off_while_it_looks_has_an_outcome(make, tmp_path, ending):
    """What ends the program goes on as it is, behind a record that there was no image."""

    class Ends(Pixels):
        def __call__(self, pictures):
            raise ending

    with pytest.raises(ending):
        call(make(Ends()), 2)
    outcome = records(tmp_path / "audit")[-1]
    assert (outcome["event"], outcome["result"], outcome["images"]) == ("guard.outcome", "failed", 0)
    assert outcome["error"] == ending.__name__


def test_latents_are_no_pictures(make, tmp_path):
    """Asking for them does not get around the check."""
    with pytest.raises(OutputCheckFailed, match="output_type"):
        call(make(), 1, output_type="latent")
    assert records(tmp_path / "audit")[-1]["result"] == "failed"


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_every_type_of_output_is_looked_at(make, output_type):
    """The same person is seen in it, whether as an object or as a tuple."""
    for more in ({}, {"return_dict": False}):
        with pytest.raises(OutputWithheld):
            call(make(), 1, output_type=output_type, **more)


@pytest.mark.parametrize("spec", [{"mode": "shadow"}, {"rollout": {"percent": 0}}])
def test_where_nothing_is_carried_out_a_match_is_recorded_and_released(make, tmp_path, metrics_registry, spec):
    """In shadow and outside of the rollout, a failing check stops nothing either."""
    guard = make(threshold=-0.9999, **spec)
    assert call(guard, 1).images
    outcome = records(tmp_path / "audit")[-1]
    assert (outcome["result"], outcome["output_check"]["matches"]) == ("passed", 1)
    assert outcome["protection"] == "missing"
    assert call(make(Breaking("raises"), **spec), 1).images
    assert records(tmp_path / "audit")[-1]["output_check"]["failed"] == "OutputCheckFailed"
    passed = {"stage": "check_output", "error_type": "OutputCheckFailed", "disposition": "passed_through"}
    assert counted(metrics_registry, "errors", **passed) == 1


def test_unsafe_passthrough_lets_unchecked_pictures_pass_visibly(make, tmp_path, metrics_registry, caplog):
    """Logged, recorded with the error, and counted as images whose protection is missing."""
    assert call(make(Breaking("raises"), on_error="unsafe_passthrough"), 1).images
    outcome = records(tmp_path / "audit")[-1]
    assert (outcome["result"], outcome["error"]) == ("passed", "OutputCheckFailed")
    assert "unchecked" in caplog.text
    assert any(
        sample.value == 1 and sample.labels["protection"] == "missing"
        for metric in metrics_registry.collect()
        for sample in metric.samples
        if sample.name == "apl_guard_images_total"
    )


def test_mode_off_looks_at_nothing(make, tmp_path):
    """As it decides nothing."""
    assert call(make(Breaking("raises"), mode="unsafe_off"), 1).images
    assert records(tmp_path / "audit")[-1]["output_check"] is None


def test_a_policy_can_require_it(make, shared_pipe, prefix, tmp_path):
    """A guard without one is not made, and does not take such a policy over while it runs."""
    with pytest.raises(PolicyInvalid, match="output check"):
        Guard(shared_pipe, policy(output_check="required"), prefix=prefix)
    assert call(make(output_check="required"), 2).images

    path = tmp_path / "policy.yaml"
    path.write_text(json.dumps(document()))
    guard = Guard(shared_pipe, path, prefix=prefix)
    path.write_text(json.dumps(document(output_check="required")))
    with pytest.raises(PolicyInvalid, match="output check"):
        guard.reload_policy()
    assert guard.policy.spec.output_check == "optional"


def test_a_gallery_survives_its_file(gallery, tmp_path):
    """Entry for entry and bit for bit, readable for its owner alone."""
    gallery.save(tmp_path / "gallery.safetensors")
    again = Gallery.load(tmp_path / "gallery.safetensors")
    assert (again.entries, again.digest) == (gallery.entries, gallery.digest)
    assert np.array_equal(again.embeddings, gallery.embeddings)
    assert (tmp_path / "gallery.safetensors").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [None, b"", b"no tensors", "cut off"])
def test_a_file_that_is_no_gallery_is_a_typed_error(gallery, tmp_path, content):
    """Missing, empty, something else, cut off."""
    path = tmp_path / "gallery.safetensors"
    if content == "cut off":
        gallery.save(path)
        content = path.read_bytes()[:-100]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match="gallery"):
        Gallery.load(path)


def face(*values):
    return np.array(values, dtype=np.float32)


class Listed:
    """Sees in a picture the faces that a test put there: picture k is filled with k."""

    name = "listed 1"

    def __init__(self, faces):
        self.faces = faces

    def __call__(self, pictures):
        return [np.array(self.faces[int(picture[0, 0, 0])], dtype=np.float32).reshape(-1, 2) for picture in pictures]


def filled(value):
    return np.full((2, 2, 3), value, np.uint8)


@pytest.mark.parametrize(
    ("faces", "pictures", "says"),
    [
        ([[]], [filled(0)], "picture 1 has 0 faces"),
        ([[(1, 0)], [(1, 0), (0, 1)]], [filled(0), filled(1)], "picture 2 has 2 faces"),
        ([[(1, 0)]], [], "no pictures"),
        ([[(1, 0.1)], [(1, 0)], [(-1, 0.2)]], [filled(0), filled(1), filled(2)], "two people under one name"),
        ([[(0, 0)]], [filled(0)], "length 0"),
    ],
)
def test_a_gallery_is_made_of_good_pictures_only(faces, pictures, says):
    """One face in each, and one person in an entry; the message names the entry and the picture."""
    with pytest.raises(InvalidInput, match=says) as caught:
        Gallery.enroll(Listed(faces), {ENTRY: pictures})
    assert ENTRY in str(caught.value)


def test_a_gallery_of_another_recogniser_is_refused(gallery):
    """For its embeddings mean nothing to this one."""
    with pytest.raises(InvalidInput, match=r"pixels 1.*listed 1"):
        OutputCheck(Listed([]), gallery, 0.5)


def test_an_entry_twice_is_refused():
    """Two people under one id could not be told apart."""
    with pytest.raises(InvalidInput, match="twice"):
        Gallery(["a", "a"], np.eye(2), "x 1")


@given(st.lists(st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), max_size=3), min_size=1, max_size=4))
def test_a_picture_matches_when_any_of_its_faces_does(faces):
    """As often as cosines computed one by one say; a picture without faces never does."""
    gallery = Gallery(["a", "b"], np.array([[1.0, 0.0], [0.6, 0.8]]), Listed.name)
    looked = OutputCheck(Listed(faces), gallery, 0.7).look([filled(k) for k in range(len(faces))])
    assert looked.faces == tuple(map(len, faces))
    for number, found in enumerate(faces):
        best = max((float(np.dot(f, g) / np.linalg.norm(f)) for f in found for g in gallery.embeddings), default=-2)
        if abs(best - 0.7) > 1e-5:
            assert (number in {s.picture for s in looked.sightings}) == (best >= 0.7)


@given(st.integers(1, 3), st.integers(0, 10**6))
def test_pictures_are_read_alike_from_every_type(n, seed):
    """Bytes, floats, tensors with the colours first, PIL, lists and tuples of them."""
    expected = np.random.default_rng(seed).integers(0, 256, (n, 4, 6, 3), dtype=np.uint8)
    floats = expected.astype(np.float32) / 255
    outputs = [
        expected,
        floats,
        torch.from_numpy(floats).permute(0, 3, 1, 2),
        [Image.fromarray(picture) for picture in expected],
        (list(expected), None),
        [torch.from_numpy(picture).permute(2, 0, 1) for picture in floats],
    ]
    for output in outputs:
        assert np.array_equal(np.stack(read_pictures(output)), expected)


@pytest.mark.parametrize(
    "output", [None, "a picture", np.zeros((1, 4, 8, 8)), np.full((1, 4, 4, 3), np.nan), torch.randn(1, 3, 8, 8) * 3]
)
def test_what_holds_no_pictures_is_not_taken_for_some(output):
    """Nothing, text, four channels, no numbers, latents that have three channels like a picture."""
    with pytest.raises(OutputCheckFailed):
        read_pictures(output)
