"""A tiny pipe with a guard, and what its text encoders have to give, made by hand."""

import torch
from by_hand import chat_glm_by_hand, clip_by_hand, encoder_by_hand, encoder_with_end, m_clip_by_hand, row_by_hand
from transformers import ProcessorMixin

from apl_guard import Guard
from apl_guard.policy import Policy
from apl_guard.testing import FAMILIES, random_prefix, tiny_pipe

N = 6

# The slots that get a prefix, where that is not all of them: this one reads no prompt but what stands in quotes.
SLOTS = {"hunyuan_image": ("text_encoder",)}
# These give no latents.
_OUTPUT = dict.fromkeys(("kandinsky_2_1", "deepfloyd_if", "flux_3", "flux_3_distilled"), "pt")


def permissive(family):
    """A policy that lets pass whatever a variant is called with: what is tested is the prefix before the prompts."""
    accepted = {"prefix": {"slots": SLOTS[family]}} if family in SLOTS else {}
    return Policy.model_validate(_PERMISSIVE | {"spec": _PERMISSIVE["spec"] | accepted})


_PERMISSIVE = {
    "apiVersion": "apl-guard/v1",
    "kind": "Policy",
    "metadata": {"name": "variants", "version": 1},
    "spec": {
        "rules": [
            {
                "id": "prefix",
                "when": {"channels": ["prompt", "prompt_2", "prompt_3", "prompt_4"]},
                "then": {"action": "anonymize"},
            },
            {
                "id": "negative",
                "when": {
                    "channels": ["negative_prompt", "negative_prompt_2", "negative_prompt_3", "negative_prompt_4"]
                },
                "then": {"action": "allow"},
            },
            {
                "id": "the-rest",
                "when": {"channels": ["image", "control_image", "image_embeds", "attention", "adapter_weights"]},
                "then": {"action": "unsafe_allow"},
            },
        ]
    },
}


class Hand:
    """What the text encoders of `self.pipe` give with `self.prefix` in front of prompts."""

    def clip(self, slot, prompts, key, **options):
        return self.clip_all(slot, prompts, **options)[key]

    def clip_all(self, slot, prompts, **options):
        encoder, tokenizer = self._pair(slot)
        return clip_by_hand(encoder, tokenizer, prompts, self.prefix.vectors[slot], **options)

    def encoder(self, slot, prompts, length, masked, *, padded=True, before="", after="", **options):
        """What a text encoder gives that takes token embeddings, and the mask."""
        encoder, tokenizer = self._pair(slot)
        rows = self._rows(tokenizer, prompts, length, before, after)
        vectors = self.prefix.vectors[slot]
        return encoder_by_hand(encoder, tokenizer, rows, vectors, masked, length if padded else None, **options)

    def chat_glm(self, slot, prompts, length):
        """The states of a ChatGLM, each of shape (L, B, D)."""
        encoder, tokenizer = self._pair(slot)
        rows = self._rows(tokenizer, prompts, length)
        return chat_glm_by_hand(encoder, tokenizer, rows, self.prefix.vectors[slot], length)

    def _rows(self, tokenizer, prompts, length, before="", after=""):
        return [row_by_hand(tokenizer, prompt, N, length, before, after) for prompt in prompts]

    def _pair(self, slot):
        parts = self.pipe.components
        tokenizer = parts.get(slot.replace("text_encoder", "tokenizer"), parts.get("processor"))
        is_inside = isinstance(tokenizer, ProcessorMixin)
        return parts[slot], tokenizer.tokenizer if is_inside else tokenizer

    def t5(self, slot, prompts, length, masked):
        output, mask = self.encoder(slot, prompts, length, masked)
        return output[0], mask

    def with_end(self, slot, prompts, length, after, *, before, **options):
        """What a text encoder gives for padded rows with a text behind their padding, and the mask."""
        encoder, tokenizer = self._pair(slot)
        rows = self._rows(tokenizer, prompts, length, before)
        return encoder_with_end(encoder, tokenizer, rows, self.prefix.vectors[slot], length, after, **options)

    def plain(self, slot, text, length):
        """What a text encoder gives for a text without a prefix."""
        encoder, tokenizer = self._pair(slot)
        row = tokenizer([text], padding="max_length", max_length=length, return_tensors="pt")
        with torch.no_grad():
            return encoder(**row, output_hidden_states=True)

    def m_clip(self, slot, prompts):
        """Pooled output, states and mask of a multilingual CLIP."""
        encoder, tokenizer = self._pair(slot)
        return m_clip_by_hand(encoder, tokenizer, self._rows(tokenizer, prompts, 77), self.prefix.vectors[slot], 77)


class Guarded(Hand):
    """A tiny pipe with a guard and the prefix it uses."""

    def __init__(self, family, dtype=None):
        self.pipe = tiny_pipe(family=family)
        if dtype is not None:
            self.pipe.to(dtype)
        self.prefix = random_prefix(self.pipe, n=N, slots=SLOTS.get(family))
        self.guard = Guard(self.pipe, permissive(family), prefix=self.prefix)
        self.options = FAMILIES[family].options | {"output_type": _OUTPUT.get(family, "latent")}

    def draw(self, target, prompt, seed=0, **options):
        options = self.options | options
        drawn = target(prompt=prompt, generator=torch.Generator().manual_seed(seed), **options)
        return drawn if isinstance(drawn, torch.Tensor) else drawn[0]
