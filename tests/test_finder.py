"""Which prefix a guard takes, what it refuses, and when the answer changes."""

import copy
import json
from datetime import timedelta

import pytest
import torch

from apl_guard import Guard, Policy, Prefix, PrefixInvalid, PrefixNotFound, PrefixRegistry
from apl_guard.testing import random_prefix, tiny_pipe


def policy(**prefix):
    """The default policy with other demands on prefixes."""
    fields = Policy.load("anonymize_faces").model_dump(mode="json", exclude_unset=True)
    fields["spec"]["prefix"] = prefix
    return Policy.model_validate(fields)


@pytest.fixture
def rounded(pipe):
    """A pipe whose text encoder computes in bfloat16."""
    pipe.text_encoder.to(torch.bfloat16)
    return pipe


def test_a_compatible_encoder_is_refused_and_the_field_named(rounded, prefix, tmp_path):
    """Given by hand, or found in the registry."""
    PrefixRegistry().register(prefix.save(tmp_path / "trained"))

    for given in (prefix, None):
        with pytest.raises(PrefixNotFound, match=r"match: compatible") as caught:
            Guard(rounded, prefix=given)
        assert "bfloat16" in str(caught.value)


def test_a_compatible_encoder_is_accepted_by_the_policy_and_recorded(rounded, prefix, tmp_path):
    """The record says that the match was not exact."""
    rounded.to(torch.bfloat16)
    guard = Guard(rounded, policy(match="compatible"), prefix=prefix, audit=tmp_path / "audit")

    made = guard.generate("a man", num_inference_steps=1)

    assert made.outcome.prefix_match == "compatible"
    assert '"prefix_match":"compatible"' in json.dumps(made.outcome.model_dump(mode="json"), separators=(",", ":"))


def test_an_exact_match_is_recorded_too(guard):
    """And is preferred to a compatible one in the registry."""
    assert guard.generate("a man", num_inference_steps=1).outcome.prefix_match == "exact"


def test_exact_before_compatible_before_none(shared_pipe, rounded, prefix, tmp_path):
    """Even if the compatible one was made later."""
    later = prefix.metadata.created + timedelta(days=1)
    other = random_prefix(rounded, name="rounded", seed=5)
    other = Prefix(other.vectors, other.metadata.model_copy(update={"created": later}))
    for made in (prefix, other):
        PrefixRegistry().register(made.save(tmp_path / made.metadata.name))
    accepting = policy(match="compatible")

    def used(pipe):
        return Guard(pipe, accepting).generate("a man", num_inference_steps=1).outcome.prefix

    assert used(shared_pipe) == "random"
    assert used(rounded.to(torch.bfloat16)) == "rounded"
    with pytest.raises(PrefixNotFound):
        Guard(tiny_pipe(seed=4), accepting)


@pytest.mark.parametrize("change", ["weight", "tokens", "adapter", "encoder", "dtype"])
def test_what_changes_after_wrapping_changes_the_answer_before_the_next_image(pipe, prefix, change):
    """The guard looks again on each call."""
    guard = Guard(pipe, prefix=prefix)
    guard("a man", num_inference_steps=1)
    drawn = []
    pipe.unet.register_forward_pre_hook(lambda *_: drawn.append(1))
    if change == "weight":
        with torch.no_grad():
            pipe.text_encoder.get_input_embeddings().weight[7, 7] += 0.5
    elif change == "tokens":
        pipe.tokenizer.add_tokens(["<somebody>"])
        pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    elif change == "adapter":
        peft = pytest.importorskip("peft", reason="peft is not installed")
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), pipe.text_encoder)
    elif change == "encoder":
        pipe.text_encoder = tiny_pipe(seed=9).text_encoder
    else:
        pipe.text_encoder.to(torch.bfloat16)

    with pytest.raises(Exception, match=r"prefix|adapter"):
        guard("a man", num_inference_steps=1)
    assert drawn == []


def test_a_damaged_prefix_is_passed_over(shared_pipe, prefix, tmp_path):
    """It does not take the place of one that is whole, whichever is looked at first."""
    registry = PrefixRegistry()
    whole, *damaged = (registry.register(prefix.save(tmp_path / name), name) for name in "maz")
    for entry in damaged:
        (entry.path / "prefix.safetensors").write_bytes(b"")

    assert Guard(shared_pipe).generate("a man", num_inference_steps=1).outcome.prefix_digest == whole.prefix.digest


def test_vectors_far_larger_than_token_embeddings_are_refused(shared_pipe, prefix):
    """A damaged prefix, or one for an encoder of another scale; here at the start, not at the first call."""
    large = Prefix({slot: v * 100 for slot, v in prefix.vectors.items()}, prefix.metadata)

    with pytest.raises(PrefixInvalid, match="norm"):
        Guard(shared_pipe, prefix=large)


def test_such_vectors_are_refused_when_they_come_later(shared_pipe, prefix, tmp_path):
    """As a newer prefix in the registry, before the next image."""
    PrefixRegistry().register(prefix.save(tmp_path / "good"))
    guard = Guard(shared_pipe)
    guard("a man", num_inference_steps=1)
    later = prefix.metadata.model_copy(update={"created": prefix.metadata.created + timedelta(days=1)})
    large = Prefix({slot: v * 100 for slot, v in prefix.vectors.items()}, later)
    PrefixRegistry().register(large.save(tmp_path / "large"), name="large")

    with pytest.raises(PrefixInvalid, match="norm"):
        guard("a man", num_inference_steps=1)


def test_slots_that_one_has_and_the_other_lacks(shared_pipe, prefix):
    """Refused, unless the policy says which slots suffice; more slots than the pipe has are never fine."""
    one = prefix.metadata
    both = ("text_encoder", "text_encoder_2")
    two = one.model_copy(
        update={
            "widths": dict.fromkeys(both, one.widths["text_encoder"]),
            "fingerprints": dict.fromkeys(both, one.fingerprints["text_encoder"]),
            "traits": dict.fromkeys(both, one.traits["text_encoder"]),
        }
    )
    wide = Prefix(dict.fromkeys(both, prefix.vectors["text_encoder"]), two)

    with pytest.raises(PrefixNotFound, match="text_encoder_2"):
        Guard(shared_pipe, prefix=wide)
    with pytest.raises(PrefixNotFound, match="text_encoder_2"):
        Guard(shared_pipe, policy(slots=["text_encoder", "text_encoder_2"]), prefix=prefix)
    Guard(shared_pipe, policy(slots=["text_encoder"]), prefix=prefix)


def test_a_second_encoder_without_vectors(prefix):
    """As for a prefix of one slot on a pipe of two."""
    from apl_guard.policy.acceptance import Acceptance
    from apl_guard.registry.fit import fit

    of = prefix.metadata.fingerprints["text_encoder"]
    found = {"text_encoder": of, "text_encoder_2": of}

    with pytest.raises(PrefixNotFound, match=r"slots: \[text_encoder\]"):
        fit(prefix, found, None, Acceptance())
    assert fit(prefix, found, None, Acceptance(slots=("text_encoder",))).tier == "exact"


def test_a_file_from_before_there_were_traits_still_fits(shared_pipe, prefix):
    """It can be matched exactly, and only so."""
    old = Prefix(prefix.vectors, prefix.metadata.model_copy(update={"traits": {}}))
    rounded = copy.copy(shared_pipe)
    rounded.text_encoder = copy.deepcopy(shared_pipe.text_encoder).to(torch.bfloat16)

    Guard(shared_pipe, prefix=old)
    with pytest.raises(PrefixNotFound, match="nothing else to compare by"):
        Guard(rounded, policy(match="compatible"), prefix=old)
