"""An exported prefix, loaded by diffusers' own loader, draws what the guard draws: for pipes with several encoders."""

import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.torch import load
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from apl_guard import Guard
from apl_guard.exchange import embedding_keys, to_embedding
from apl_guard.testing import FAMILIES, random_prefix, tiny_pipe

PROMPT = "a photo of a man"


def _build(family):
    """With the right end token: under the old one, 2, textual inversion pools at the last of its own tokens."""
    pipe = tiny_pipe(family=family)
    if not isinstance(pipe, TextualInversionLoaderMixin):
        # The loader works on it, although diffusers does not offer it here.
        cls = type(pipe)
        pipe.__class__ = type(cls.__name__, (cls, TextualInversionLoaderMixin), {"__module__": cls.__module__})
    for part in pipe.components.values():
        if isinstance(part, CLIPTextModel | CLIPTextModelWithProjection):
            getattr(part, "text_model", part).eos_token_id = part.config.eos_token_id = pipe.tokenizer.eos_token_id
    return pipe


def _draw(family, target, prompt, **options):
    options = FAMILIES[family].options | {"output_type": "latent"} | options
    return target(prompt, generator=torch.Generator().manual_seed(0), **options).images


@pytest.mark.parametrize("family", ["stable_diffusion_xl", "stable_diffusion_3", "flux"])
def test_the_picture_is_that_of_the_guard(family):
    """Each tensor is loaded into the text encoder that its key stands for; at the same seed the picture is the same."""
    pipe, other = _build(family), _build(family)
    prefix = random_prefix(pipe, n=4)
    guarded = _draw(family, Guard(pipe, prefix=prefix), PROMPT)
    plain = _draw(family, other, PROMPT)
    tensors = load(to_embedding(prefix))
    keys = embedding_keys({slot: traits.kind for slot, traits in prefix.metadata.traits.items()})

    assert keys.keys() == prefix.vectors.keys()
    for slot, key in keys.items():
        TextualInversionLoaderMixin.load_textual_inversion(
            other,
            {key: tensors[key]},
            token="<apl>",
            text_encoder=other.components[slot],
            tokenizer=other.components[slot.replace("text_encoder", "tokenizer")],
        )
    prompt = f"<apl> {PROMPT}"
    if family == "stable_diffusion_3":  # does not write out the tokens of several vectors itself
        prompt = other.maybe_convert_prompt(prompt, other.tokenizer)

    drawn = _draw(family, other, prompt)

    torch.testing.assert_close(drawn, guarded, rtol=0, atol=1e-5)
    assert (drawn - plain).abs().max() > 1e-3
