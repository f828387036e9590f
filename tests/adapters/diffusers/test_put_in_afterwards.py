"""What is put into a pipe after a guard was made round it: adapters, learned words, text encoders of one's own."""

import pytest
import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0
from peft import LoraConfig

from apl_guard import Guard, GuardUnavailable, PolicyBlocked, PrefixNotFound
from apl_guard.adapters.inject.mark import new_mark
from apl_guard.adapters.inject.prefix_tokenizer import prefix_tokenizer
from apl_guard.testing import random_prefix, tiny_pipe

N = 4


@pytest.fixture(scope="module")
def xl():
    """A pipe with two text encoders, and a prefix for both."""
    pipe = tiny_pipe(family="stable_diffusion_xl")
    return pipe, random_prefix(pipe, n=N)


def test_adapters_loaded_after_wrapping_are_noticed(pipe, prefix):
    """A LoRA, as `load_lora_weights` puts it into the denoiser, may hold a person."""
    guard = Guard(pipe, prefix=prefix)
    pipe.unet.add_adapter(LoraConfig(r=1, target_modules=["to_q"]))

    with pytest.raises(PolicyBlocked, match="adapter_weights"):
        guard("a man")


def test_custom_diffusion_loaded_after_wrapping_is_noticed(pipe, prefix):
    """It adds the weights of a person to the attention of the denoiser, without peft."""
    guard = Guard(pipe, prefix=prefix)
    width = pipe.unet.config.cross_attention_dim
    processors = {
        name: CustomDiffusionAttnProcessor2_0(
            train_kv="attn2" in name, train_q_out=False, hidden_size=32, cross_attention_dim=width
        )
        for name in pipe.unet.attn_processors
    }
    pipe.unet.set_attn_processor(processors)

    with pytest.raises(PolicyBlocked, match="adapter_weights"):
        guard("a man")


def test_a_learned_word_is_noticed_and_can_be_permitted(pipe, prefix):
    """The default policy refuses the changed encoder; one that accepts it blocks or permits the word, on record."""
    default = Guard(pipe, prefix=prefix)
    words = {"<mara>": torch.full((2, pipe.text_encoder.config.hidden_size), 0.02)}
    pipe.load_textual_inversion(words)
    with pytest.raises(PolicyBlocked, match="textual_inversion"):
        default("a photo of <mara>")
    with pytest.raises(PrefixNotFound, match="2 tokens added"):
        default("a man")

    guard = Guard(pipe, "anonymize_personalised", prefix=prefix)
    made = guard.generate("a photo of <MARA> in the rain", num_inference_steps=1)

    assert any("textual_inversion" in reason for reason in made.decision.unsafe)
    assert made.outcome.prefix_rows == {"text_encoder": (prefix.n,)}
    assert made.outcome.prefix_match == "compatible"
    assert not guard.check("a photo of mara").unsafe


def test_a_learned_word_that_takes_the_place_of_another(pipe, prefix):
    """A service that loads the words of each customer in turn has as many words as before, and other ones."""
    pipe.load_textual_inversion({"<mara>": torch.full((1, pipe.text_encoder.config.hidden_size), 0.02)})
    guard = Guard(pipe, "anonymize_personalised", prefix=prefix)
    assert any("textual_inversion" in each for each in guard.check("a photo of <mara>").unsafe)
    pipe.unload_textual_inversion()
    pipe.load_textual_inversion({"<lena>": torch.full((1, pipe.text_encoder.config.hidden_size), -0.02)})

    assert any("textual_inversion" in each for each in guard.check("a photo of <lena>").unsafe)
    assert not guard.check("a photo of <mara>").unsafe
    seen = prefix_tokenizer(pipe.tokenizer, new_mark(), 0)(["a photo of <lena>"])["input_ids"]
    assert seen == pipe.tokenizer(["a photo of <lena>"])["input_ids"]


class OwnTokenizer:
    """What a platform may put in place of a tokenizer of transformers."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, *args, **kwargs):
        return self._tokenizer(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


class OwnEncoder:
    """The same for a text encoder, such as one that an engine compiled."""

    def __init__(self, text_encoder):
        self.encode, self.dtype, self.config = text_encoder, text_encoder.dtype, text_encoder.config

    def __call__(self, *args, **kwargs):
        return self.encode(*args, **kwargs)


@pytest.mark.parametrize(("name", "own"), [("tokenizer_2", OwnTokenizer), ("text_encoder_2", OwnEncoder)])
def test_a_text_encoder_that_no_prefix_can_be_put_into_is_refused(xl, name, own):
    """It would read the prompt bare, and the record would show the other one alone: applied."""
    pipe = tiny_pipe(family="stable_diffusion_xl")
    guard = Guard(pipe, prefix=xl[1])
    setattr(pipe, name, own(getattr(pipe, name)))

    with pytest.raises(GuardUnavailable, match="text_encoder_2 would read prompts without a prefix"):
        guard("Mara Voss", num_inference_steps=1, height=32, width=32)
    with pytest.raises(GuardUnavailable, match="text_encoder_2"):
        Guard(pipe, prefix=random_prefix(tiny_pipe(), n=N))
