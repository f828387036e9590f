"""Leaks that are measured in service: sampled prompts are drawn again without the prefix, and faces compared."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from apl_guard import AuditUnavailable, Guard, GuardUnavailable, InvalidInput, LeakWatch, OutputCheckFailed, Prefix
from apl_guard.audit.export import calls
from apl_guard.audit.log import AuditLog
from apl_guard.detect.leaks import Seen, compare
from apl_guard.encoder.token_embedding import token_embedding
from apl_guard.testing import pictures_for, random_prefix, tiny_pipe, tiny_variant
from apl_guard.trainer import minifaces

PEOPLE = np.eye(6, dtype=np.float32)
few = st.lists(st.integers(0, 5), max_size=3)


class EveryPicture:
    """A recogniser that finds one face, the same, in each picture."""

    name = "every picture 1"

    def __call__(self, pictures):
        return [PEOPLE[:1] for _ in pictures]


class Judge:
    """The judge of the reference world, as a recogniser."""

    name = "minifaces judge"

    def __call__(self, pictures):
        images = np.stack(pictures)
        embeddings, has_face = minifaces.judges().embed(images).numpy(), minifaces.judges().has_face(images)
        return [embeddings[k : k + int(has_face[k])] if has_face[k] else embeddings[:0] for k in range(len(images))]


def records(folder):
    lines = [line for path in sorted((folder / "segments").iterdir()) for line in path.read_text().splitlines()]
    return [each for each in map(json.loads, lines) if each["event"].startswith(("guard.", "leak."))]


def counted(registry, seen):
    return registry.get_sample_value("apl_guard_leak_samples_total", {"seen": seen})


@pytest.fixture
def make(shared_pipe, prefix, metrics_registry, tmp_path):
    """A guard that samples every call."""

    def guard(recogniser=None, threshold=0.9, pipe=shared_pipe, policy="anonymize_faces", **options):
        watch = LeakWatch(recogniser or EveryPicture(), threshold, share=options.pop("share", 1), **options)
        own = prefix if pipe is shared_pipe else random_prefix(pipe, n=4)
        places = {"audit": tmp_path / "audit", "metrics_registry": metrics_registry}
        return Guard(pipe, policy, prefix=own, leak_watch=watch, **places)

    return guard


def draw(guard, prompt="a photo of a man", **more):
    return guard.generate(prompt, num_inference_steps=1, **more)


@given(few, few, few)
def test_leaked_is_who_is_in_all_three_pictures(guarded, plain, another):
    """With faces that are either equal or at right angles, the words are those of the sets of people."""
    known, shown = set(plain) & set(another), set(guarded)
    expected = (
        Seen.NOBODY if not known else Seen.FACELESS if not shown else Seen.LEAKED if known & shown else Seen.HIDDEN
    )

    seen, highest = compare(*(PEOPLE[each].reshape(-1, 6) for each in (guarded, plain, another)), threshold=0.9)

    assert seen == expected
    assert highest == {Seen.LEAKED: 1, Seen.HIDDEN: 0}.get(expected)


@pytest.mark.parametrize("hides", [True, False])
def test_a_prefix_that_hides_people_is_told_from_one_that_does_not(hides):
    """On the reference world: whom one prefix hides leaks with the other, and nameless prompts show nobody."""
    pipe = minifaces_pipe()
    people = [person for person in minifaces.people() if person.split == "seen"][:80:10]
    named = [minifaces.identity_prompts(person, 1, seed=1, held_out=True)[0].text for person in people]
    nameless = [prompt.text for prompt in minifaces.generic_prompts(8, seed=1, held_out=True)]
    watch = LeakWatch(Judge(), minifaces.judges().thresholds["far_1e-3"], share=1, seconds=120)
    guard = Guard(pipe, prefix=Prefix.load("minifaces") if hides else words_as_prefix(pipe), leak_watch=watch)

    guard(named, num_inference_steps=12, guidance_scale=3.0)
    guard(nameless, num_inference_steps=12, guidance_scale=3.0)
    of_people, of_nobody = (Counter(sample.seen) for sample in guard.measure_leaks())

    # Of a hundred, about one is mistaken either way; the draws are others each time.
    assert of_people[Seen.HIDDEN if hides else Seen.LEAKED] >= 4
    assert of_people[Seen.LEAKED if hides else Seen.HIDDEN] <= 3
    assert of_nobody[Seen.NOBODY] >= 5


def minifaces_pipe():
    from apl_guard.trainer.model import open_pipe

    pipe = open_pipe("minifaces")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def words_as_prefix(pipe):
    """Words that hide nobody."""
    ids = pipe.tokenizer("a photo of a picture of the image in an", add_special_tokens=False)["input_ids"]
    vectors = token_embedding(pipe.text_encoder).weight[ids[:10]].detach().float().clone()
    return Prefix({"text_encoder": vectors}, Prefix.load("minifaces").metadata)


def test_what_was_seen_is_on_record_and_counted_once(make, metrics_registry, tmp_path):
    guard = make()
    outcome = draw(guard, ["a photo of a man", "a red car"]).outcome

    (sample,) = guard.measure_leaks()

    assert (sample.decision_id, sample.seen) == (outcome.id, (Seen.LEAKED, Seen.LEAKED))
    record = records(tmp_path / "audit")[-1]
    assert {name: record[name] for name in ("event", "decision_id", "seen", "recogniser", "threshold")} == {
        "event": "leak.sample",
        "decision_id": outcome.id,
        "seen": ["leaked", "leaked"],
        "recogniser": "every picture 1",
        "threshold": 0.9,
    }
    assert counted(metrics_registry, "leaked") == 2
    assert guard.measure_leaks() == ()


def test_plain_pictures_are_drawn_from_other_random_numbers_each_time(make):
    """Two that were equal would show one person in each picture of a face."""
    seen = []

    class Looks(EveryPicture):
        def __call__(self, pictures):
            seen.extend(pictures)
            return super().__call__(pictures)

    guard = make(Looks())
    released = draw(guard, generator=torch.Generator().manual_seed(7), output_type="np").output.images
    guard.measure_leaks()

    guarded, plain, another = seen
    assert np.array_equal(guarded, (released[0] * 255).round().astype(np.uint8))
    assert not np.array_equal(plain, another)


def test_measuring_changes_nothing_for_callers(make, shared_pipe):
    """Neither the caller's generator, nor that of the program, nor the pipe's next picture."""
    generator = torch.Generator().manual_seed(7)
    guard = make()
    draw(guard, generator=generator)
    before, of_program = generator.get_state(), torch.get_rng_state()
    scheduler = dict(vars(shared_pipe.scheduler))

    guard.measure_leaks()

    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), of_program)
    assert vars(shared_pipe.scheduler).keys() == scheduler.keys()
    assert all(vars(shared_pipe.scheduler)[name] is value for name, value in scheduler.items())


def test_what_the_caller_does_to_released_pictures_changes_no_sample(make):
    class Mean(EveryPicture):
        def __call__(self, pictures):
            means.append(pictures[0].mean())
            return super().__call__(pictures)

    means = []
    guard = make(Mean())
    images = draw(guard, output_type="np").output.images
    mean = (images[0] * 255).round().mean()
    images[:] = 0
    guard.measure_leaks()

    assert means == [pytest.approx(mean)]


@pytest.mark.parametrize(
    ("policy", "more"),
    [
        ("shadow_anonymize_faces", {}),
        ("unsafe_allow_all", {}),
        ("anonymize_faces", {"output_type": "latent"}),
    ],
)
def test_calls_that_prove_nothing_are_not_sampled(make, policy, more):
    """Those without a prefix, and those whose pictures nobody can look at."""
    guard = make(policy=policy)
    draw(guard, **more)

    assert guard.measure_leaks() == ()


def test_a_call_with_a_picture_of_the_caller_is_not_sampled(make, shared_pipe, tmp_path):
    """Drawing it again would show whoever is in the caller's picture, which no prefix hides."""
    pipe = tiny_variant(shared_pipe, "StableDiffusionImg2ImgPipeline")
    allowing = tmp_path / "policy.yaml"
    allowing.write_text(
        "apiVersion: apl-guard/v1\nkind: Policy\nmetadata: {name: pictures, version: 1}\nspec:\n  rules:\n"
        "  - {id: prefix, when: {channels: [prompt]}, then: {action: anonymize}}\n"
        "  - {id: pictures, when: {channels: [image]}, then: {action: unsafe_allow}}\n"
    )
    guard = make(pipe=pipe, policy=allowing)
    draw(guard, **pictures_for("StableDiffusionImg2ImgPipeline"), strength=1.0)

    assert guard.measure_leaks() == ()


def test_about_the_share_that_was_asked_for_is_sampled(make):
    guard = make(share=0.5, keep=100)
    for _ in range(40):
        draw(guard)

    assert 5 <= len(guard.measure_leaks()) <= 35  # beyond that once in ten million runs


def test_the_newest_samples_are_kept_and_measured_as_many_as_asked_for(make):
    guard = make(keep=2)
    ids = [draw(guard).outcome.id for _ in range(4)]

    assert [sample.decision_id for sample in guard.measure_leaks(most=1)] == ids[2:3]
    assert [sample.decision_id for sample in guard.measure_leaks()] == ids[3:]


def test_a_recogniser_that_fails_is_an_error_and_counts_as_nothing(make, metrics_registry, tmp_path):
    class Broken(EveryPicture):
        def __call__(self, pictures):
            raise RuntimeError("a photo of a man")

    guard = make(Broken())
    draw(guard)

    with pytest.raises(OutputCheckFailed, match=r"^the recogniser failed \(RuntimeError\)$"):
        guard.measure_leaks()
    assert sum(counted(metrics_registry, seen) for seen in Seen) == 0
    last = records(tmp_path / "audit")[-1]
    assert (last["event"], last["pictures"]) == ("leak.drawing", 2), "what was drawn without protection is on record"


def test_a_sample_that_cannot_be_recorded_is_no_call_that_failed(make, tmp_path):
    """The log names what is missing, and the call that was sampled has passed all the same."""
    guard = make()
    outcome = draw(guard).outcome
    guard._parts.audit._durable.refuse("leak.sample", outcome.id)  # as on a full disk
    draw(guard)

    assert [row["result"] for row in calls(tmp_path / "audit")] == ["passed", "passed"]


def test_a_sample_that_cannot_be_kept_is_no_call_that_failed(make, monkeypatch, caplog):
    """Such as for want of memory: the call is answered, and the log says that nothing was kept."""
    guard = make()

    def full(_):
        raise MemoryError

    monkeypatch.setattr("apl_guard.guard.leak_samples.read_pictures", full)
    outcome = draw(guard).outcome

    assert outcome.result == "passed"
    assert f"a sample of leaks was not kept (MemoryError, decision {outcome.id})" in caplog.text
    assert guard.measure_leaks() == ()


def test_what_cannot_be_recorded_is_not_counted(make, metrics_registry, monkeypatch):
    guard = make()
    draw(guard)

    def full(*_):
        raise AuditUnavailable("the disk is full")

    monkeypatch.setattr(AuditLog, "leak_sample", full)
    with pytest.raises(AuditUnavailable):
        guard.measure_leaks()
    assert counted(metrics_registry, "leaked") == 0


def test_nothing_is_drawn_without_protection_unless_that_is_on_record(make, monkeypatch):
    guard = make()
    draw(guard)

    def full(*_):
        raise AuditUnavailable("the disk is full")

    drawn = []
    monkeypatch.setattr(AuditLog, "leak_drawing", full)
    monkeypatch.setattr(type(guard._parts.backend), "draw_plain", lambda _, request: drawn.append(request))
    with pytest.raises(AuditUnavailable):
        guard.measure_leaks()
    assert drawn == []


@pytest.mark.parametrize("what", ["a LoRA", "another text encoder"])
def test_what_another_model_draws_is_no_measurement(make, pipe, metrics_registry, tmp_path, what):
    """Such as with weights that somebody loaded for another customer after the call."""
    guard = make(pipe=pipe)
    draw(guard)
    if what == "a LoRA":
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    else:
        pipe.text_encoder = tiny_pipe(seed=1).text_encoder

    with pytest.raises(GuardUnavailable):
        guard.measure_leaks()
    assert counted(metrics_registry, "leaked") == 0
    assert [each for each in records(tmp_path / "audit") if each["event"] == "leak.sample"] == []


def test_another_number_of_images_than_before_is_no_measurement(make, metrics_registry, monkeypatch):
    """Which of them goes with which picture of the sample, nobody could say."""
    guard = make()
    draw(guard)
    backend = type(guard._parts.backend)
    drawn = backend.draw_plain

    def twice(self, request):
        made = drawn(self, request)
        return replace(made, output=[*made.output.images] * 2)

    monkeypatch.setattr(backend, "draw_plain", twice)
    with pytest.raises(GuardUnavailable, match="drew 2 and 2 images again; expected 1"):
        guard.measure_leaks()
    assert counted(metrics_registry, "leaked") == 0


def test_what_cannot_draw_again_is_refused_when_the_guard_is_made(tmp_path):
    with pytest.raises(InvalidInput, match="drawing again without the prefix"):
        Guard(lambda prompt: [], "unsafe_allow_all", leak_watch=LeakWatch(EveryPicture(), 0.9))


@pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 1.5}, {"keep": 0}, {"threshold": 2}, {"seconds": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidInput, match="found"):
        LeakWatch(EveryPicture(), **({"threshold": 0.9} | wrong))


def test_a_guard_without_a_leak_watch_says_what_is_missing(shared_pipe, prefix):
    with pytest.raises(InvalidInput, match="leak_watch"):
        Guard(shared_pipe, prefix=prefix).measure_leaks()
