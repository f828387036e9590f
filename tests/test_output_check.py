"""The output check: no picture of anybody in the gallery is released, and none that nobody could look at."""

import json
import time

import numpy as np
import pytest
import torch

from apl_guard import (
    Gallery,
    Guard,
    OutputCheck,
    OutputCheckFailed,
    OutputWithheld,
    Policy,
    PolicyBlocked,
    PolicyInvalid,
)

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
    with pytest.raises(OutputWithheld, match="1 of 2 images"):
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


def test_all_pictures_are_looked_at(gallery):
    """A picture that the backend counts and nobody finds in its answer would be released unseen."""
    check = OutputCheck(Pixels(), gallery, threshold=0.9999)
    found = np.random.default_rng(0).random((1, 32, 32, 3))
    assert check.look_at(found, 1).faces == (1,)
    with pytest.raises(OutputCheckFailed, match="found 1 images; the backend says 2"):
        check.look_at(found, 2)


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
    recorded = {"stage": "check_output", "error_type": "OutputCheckFailed", "disposition": "audit"}
    assert counted(metrics_registry, "errors", **recorded) == 1


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
