"""What another thread does to a pipe while it draws, such as loading weights for a customer, costs that picture."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from apl_guard import Guard, PrefixNotApplied
from apl_guard.adapters.diffusers.adapter import DiffusersAdapter
from apl_guard.testing import tiny_pipe


def add_weights_to_the_denoiser(pipe):
    pipe.unet.add_adapter(LoraConfig(r=1, target_modules=["to_q"]))


def add_weights_to_the_text_encoder(pipe):
    pipe.text_encoder.add_adapter(LoraConfig(r=1, target_modules=["q_proj"]))


def change_a_weight(pipe):
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight[5:] += 1


def exchange_the_text_encoder(pipe):
    pipe.text_encoder = tiny_pipe(seed=1).text_encoder


def add_a_word(pipe):
    pipe.load_textual_inversion({"<mara>": torch.full((2, pipe.text_encoder.config.hidden_size), 0.02)})


CHANGES = [
    add_weights_to_the_denoiser,
    add_weights_to_the_text_encoder,
    change_a_weight,
    exchange_the_text_encoder,
    add_a_word,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_the_prompt_was_encoded(pipe, prefix, change):
    """The text encoders received every vector, and all the same nobody decided about what drew the rest."""

    class Disturbed(StableDiffusionPipeline):
        def prepare_latents(self, *args, **kwargs):
            change(real)
            return super().prepare_latents(*args, **kwargs)

    real = Disturbed(**pipe.components, requires_safety_checker=False)

    with pytest.raises(PrefixNotApplied, match="while it drew"):
        Guard(real, prefix=prefix)("a man", num_inference_steps=1)


def test_another_text_encoder_after_the_prefix_was_found(pipe, prefix):
    """The prefix would be in front of prompts for an encoder that it was not trained with."""
    adapter = DiffusersAdapter(pipe)
    request = adapter.read(("a man",), {"num_inference_steps": 1})
    exchange_the_text_encoder(pipe)

    with pytest.raises(PrefixNotApplied, match="after the prefix had been found"):
        adapter.generate(request, prefix)
