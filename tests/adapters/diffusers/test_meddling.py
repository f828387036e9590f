"""Code of a platform that comes between a prompt and its prefix: no picture, and an error that says what to do."""

import functools
import types

import pytest
import torch
from compel import Compel
from diffusers import StableDiffusionPipeline
from diffusers.hooks import apply_group_offloading
from torch import nn

from apl_guard import Guard, InvalidInput, ModelInvalid, PrefixNotApplied, PrefixNotFound
from apl_guard.testing import random_prefix, tiny_pipe

CPU = torch.device("cpu")


def _pipe(cls, shared_pipe):
    pipe = cls(**shared_pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _without(ids):
    return ids.clamp(min=0)


def _turned_round(ids):
    return ids.flip(-1)


@pytest.mark.parametrize("change", [_without, _turned_round])
def test_a_text_encoder_that_hands_on_other_ids_gives_no_picture(pipe, prefix, change):
    """What its embedding layer was given counts, and not what the text encoder was given."""
    guard = Guard(pipe, prefix=prefix)
    forward = pipe.text_encoder.forward
    pipe.text_encoder.forward = lambda input_ids, *args, **kwargs: forward(change(input_ids), *args, **kwargs)

    with pytest.raises(PrefixNotApplied, match="text_encoder received"):
        guard("Mara Voss", num_inference_steps=1)


class Behind(StableDiffusionPipeline):
    """Puts the prefix behind the prompt, where a text encoder that looks backwards never sees it in time."""

    def encode_prompt(self, prompt, device, *_, **__):
        row = self.tokenizer(prompt)["input_ids"]
        prefix = [i for i in row if -100 < i < 0]
        return self.text_encoder(torch.tensor([[i for i in row if i not in prefix] + prefix]))[0], None


def test_a_prefix_behind_its_prompt_gives_no_picture(shared_pipe, prefix):
    """All vectors arrived, in order, and changed nothing of the prompt."""
    with pytest.raises(PrefixNotApplied):
        Guard(_pipe(Behind, shared_pipe), prefix=prefix)("Mara Voss", num_inference_steps=1, guidance_scale=1.0)


class Narrow(StableDiffusionPipeline):
    """Cuts a long prompt into windows that are narrower than those of the text encoder."""

    def encode_prompt(self, prompt, device, *_, **__):
        start, *ids, end = self.tokenizer(prompt)["input_ids"]
        windows = [ids[place : place + 70] for place in range(0, len(ids), 70)]
        rows = [[start, *window, *[end] * (76 - len(window))] for window in windows]
        return self.text_encoder(torch.tensor(rows))[0].reshape(1, -1, self.text_encoder.config.hidden_size), None


def test_a_part_of_a_long_prompt_before_the_prefix_of_its_window_gives_no_picture(shared_pipe, prefix):
    """Each window holds a whole prefix, and all but the first begin with words that never see it."""
    guard = Guard(_pipe(Narrow, shared_pipe), prefix=prefix)

    with pytest.raises(PrefixNotApplied, match=r"received \[10, 0\]"):
        guard("aa " * 60, num_inference_steps=1, guidance_scale=1.0)


class SameTensor(StableDiffusionPipeline):
    """Writes the row of the negative prompt over that of the prompt, when that was read."""

    def encode_prompt(self, prompt, device, *_, negative_prompt=None, **__):
        rows = self.tokenizer([prompt, ""], padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
        buffer = torch.zeros_like(rows[:1])
        return tuple(self.text_encoder(buffer.copy_(row))[0] for row in rows)


def test_rows_that_are_written_into_one_tensor_count_as_they_were(shared_pipe, prefix, draw):
    """Each when the text encoder read it."""
    made = draw(Guard(_pipe(SameTensor, shared_pipe), prefix=prefix), "a man")

    assert torch.equal(made, draw(Guard(shared_pipe, prefix=prefix), "a man"))


class MadeBefore(StableDiffusionPipeline):
    """Its helper has the tokenizer of the pipe, not the one of the call."""

    def encode_prompt(self, prompt, device, *_, **__):
        return self.compel(prompt), self.compel("")


def test_a_helper_that_was_made_before_the_call_is_named(shared_pipe, prefix):
    """The error says where to make it."""
    pipe = _pipe(MadeBefore, shared_pipe)
    pipe.compel = Compel(pipe.tokenizer, pipe.text_encoder)

    with pytest.raises(PrefixNotApplied, match="made in encode_prompt"):
        Guard(pipe, prefix=prefix)("Mara Voss", num_inference_steps=1)


def test_an_encode_prompt_that_is_bound_to_the_pipe_gives_no_picture(pipe, prefix):
    """It tokenizes past the call."""
    original = pipe.encode_prompt
    pipe.encode_prompt = types.MethodType(lambda self, *args, **kwargs: original(*args, **kwargs), pipe)

    with pytest.raises(PrefixNotApplied, match="no tokenizer of this call"):
        Guard(pipe, prefix=prefix)("Mara Voss", num_inference_steps=1)


class Bridged(StableDiffusionPipeline):
    """Has its prompts read by a second model as well, whose answers stand beside those of the text encoder."""

    def encode_prompt(self, prompt, device, *_, **__):
        rows = [
            model(torch.tensor([tokenizer(prompt, padding="max_length")["input_ids"]]))[0]
            for model, tokenizer in ((self.text_encoder, self.tokenizer), (self.llm, self.tokenizer_of_llm))
        ]
        return torch.cat(rows, 1), None


def test_a_model_beside_the_text_encoders_that_reads_the_prompt_gives_no_picture(shared_pipe, prefix):
    """It would read it without a prefix, and the record would show the text encoder alone: applied."""
    pipe, other = _pipe(Bridged, shared_pipe), tiny_pipe()
    pipe.llm, pipe.tokenizer_of_llm = other.text_encoder, other.tokenizer

    with pytest.raises(PrefixNotApplied, match=r"reads the prompt for a model .* a component text_encoder"):
        Guard(pipe, prefix=prefix)("Mara Voss", num_inference_steps=1, guidance_scale=1.0)


class Table(nn.Module):
    """A token embedding that is none of torch's."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.embedding_dim = weight.shape[1]

    def forward(self, ids):
        return nn.functional.embedding(ids, self.weight)


def test_a_token_embedding_of_another_kind_is_named(pipe, prefix):
    """It has the same weights, so the prefix is found for it."""
    encoder = pipe.text_encoder
    encoder.set_input_embeddings(Table(encoder.get_input_embeddings().weight))

    with pytest.raises(PrefixNotApplied, match=r"of class Table; expected torch\.nn\.Embedding"):
        Guard(pipe, prefix=prefix)("Mara Voss", num_inference_steps=1)


class Packed(nn.Linear):
    """Keeps more than tensors, as layers of quantised models may."""

    def get_extra_state(self):
        return {"scale": 0.5}


def test_weights_that_are_no_tensors_are_named(pipe, prefix):
    """Nobody can tell which weights these are."""
    pipe.text_encoder.extra = Packed(1, 1)

    with pytest.raises(
        ModelInvalid, match=r"'extra\._extra_state' of the text encoder is of type dict; expected a tensor"
    ):
        Guard(pipe, prefix=prefix)


@pytest.mark.parametrize(
    "how", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_with_the_text_encoder_offloaded_in_groups(shared_pipe, pipe, prefix, draw, how):
    """In memory, as diffusers' group offloading does it: the same picture."""
    apply_group_offloading(pipe.text_encoder, onload_device=CPU, offload_device=CPU, **how)

    assert torch.equal(draw(Guard(pipe, prefix=prefix), "a man"), draw(Guard(shared_pipe, prefix=prefix), "a man"))


def test_weights_on_the_disk_are_named(pipe, prefix, tmp_path):
    """In their place lies whatever was in memory, which is no other text encoder."""
    guard = Guard(pipe, prefix=prefix)
    where = {"onload_device": CPU, "offload_device": CPU, "offload_to_disk_path": str(tmp_path)}
    apply_group_offloading(pipe.text_encoder, offload_type="leaf_level", **where)

    with pytest.raises(ModelInvalid, match="without offload_to_disk_path"):
        guard("a man")


class Locked(StableDiffusionPipeline):
    """Hands on whatever it is given."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class LockedWithSignature(StableDiffusionPipeline):
    """Says what it takes."""

    @functools.wraps(StableDiffusionPipeline.__call__)
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


def test_a_pipe_that_hands_on_whatever_it_is_given_has_to_say_what(shared_pipe, prefix, draw):
    """With the signature of the pipeline below it, it works."""
    with pytest.raises(InvalidInput, match=r"functools\.wraps"):
        Guard(_pipe(Locked, shared_pipe), prefix=prefix)

    made = draw(Guard(_pipe(LockedWithSignature, shared_pipe), prefix=prefix), "a man")
    assert torch.equal(made, draw(Guard(shared_pipe, prefix=prefix), "a man"))


def test_a_pipe_without_one_of_its_text_encoders_wants_a_prefix_without_it():
    """As Stable Diffusion 3 is run where memory is short."""
    whole = tiny_pipe(family="stable_diffusion_3")
    prefix = random_prefix(whole, n=4)
    smaller = type(whole)(**whole.components | {"text_encoder_3": None, "tokenizer_3": None})

    with pytest.raises(PrefixNotFound, match=r"\[text_encoder_3\], which this pipe has not; load the pipe with them"):
        Guard(smaller, prefix=prefix)
