"""Text encoders that read a picture beside the prompt, where a policy permits pictures."""

import copy

import pytest
import torch
from guarded import Guarded, permissive
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from apl_guard import Guard, PolicyBlocked
from apl_guard.testing import random_prefix, tiny_pipe, tiny_variant

PROMPT = "a photo of Mara Voss"
PICTURE = Image.new("RGB", (32, 32), (200, 10, 10))
EDIT = "[Edit]: A diptych with two side-by-side images of the same scene. Compared to the right side, the left one has "


def _seeing(family):
    """A tiny pipe with a guard, and the part of its processor that reads pictures."""
    m = Guarded(family)
    reader = Qwen2VLImageProcessorPil(min_pixels=32 * 32, max_pixels=64 * 64, patch_size=16, merge_size=2)
    m.pipe.processor.image_processor = reader
    return m


def _states_by_hand(m, before, after, picture=PICTURE):
    """What each layer gives for [before with the picture, P₁ … P_N, the prompt, after], and the ids of that row."""
    encoder, processor = m.pipe.text_encoder, m.pipe.processor
    start = processor(text=[before], images=[picture], return_tensors="pt")
    end = processor.tokenizer([PROMPT + after], return_tensors="pt").input_ids
    vectors = m.prefix.vectors["text_encoder"]
    room = torch.zeros(1, len(vectors), dtype=torch.long)
    ids = torch.cat([start["input_ids"], room, end], 1)
    kinds = torch.nn.functional.pad(start["mm_token_type_ids"], (0, ids.shape[1] - start["input_ids"].shape[1]))
    embeddings = encoder.get_input_embeddings()(ids)
    embeddings[:, start["input_ids"].shape[1] :][:, : len(vectors)] = vectors
    grid = start["image_grid_thw"]
    with torch.no_grad():
        output = encoder(
            inputs_embeds=embeddings,
            attention_mask=torch.ones_like(ids),
            position_ids=encoder.model.get_rope_index(ids, kinds, image_grid_thw=grid)[0],
            pixel_values=start["pixel_values"],
            image_grid_thw=grid,
            output_hidden_states=True,
        )
    return output.hidden_states, ids


def _drawn_with(draw, pipe, answer, **options):
    """The picture of a bare pipe whose `encode_prompt` gives this answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe, "encode_prompt", lambda **_: answer)
        return draw(pipe, PROMPT, **options)


def test_qwen_image_21_reads_the_prefix_between_the_picture_and_the_prompt():
    """The picture drawn is that of the row made by hand."""
    m = _seeing("qwen_image_21")
    before, after = m.pipe.prompt_template_ti2i.split("{}")
    norm, seen = m.pipe.text_encoder.model.language_model.norm, []
    with norm.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        _, ids = _states_by_hand(m, before, after)
    first = m.pipe._drop_idx
    answer = seen[0][:, first:], None, ids[:, first:] == m.pipe._img_token_id
    options = {"image": PICTURE, "output_resolution": 32}

    guarded = m.draw(m.guard, PROMPT, **options)

    assert torch.equal(guarded, _drawn_with(m.draw, m.pipe, answer, **options))
    assert not torch.equal(guarded, m.draw(m.pipe, PROMPT, **options))


def test_dreamlite_reads_the_prefix_between_its_instruction_and_the_prompt():
    """The same for what it is told to change in a picture."""
    m = _seeing("dreamlite")
    m.pipe = tiny_variant(m.pipe, "DreamLiteMobilePipeline")
    m.guard = Guard(m.pipe, permissive("dreamlite"), prefix=m.prefix)
    before, after = m.pipe.prompt_template_encode_edit.split("{}")
    shown = m.pipe.image_processor.resize(PICTURE, height=512, width=512)
    states = _states_by_hand(m, before + EDIT, after, shown)[0][-1][:, m.pipe.prompt_template_encode_edit_start_idx :]
    answer = states, torch.ones(states.shape[:2], dtype=torch.long)

    guarded = m.draw(m.guard, PROMPT, image=PICTURE)

    assert torch.equal(guarded, _drawn_with(m.draw, m.pipe, answer, image=PICTURE))
    assert not torch.equal(guarded, m.draw(m.pipe, PROMPT, image=PICTURE))


def test_dreamlite_reads_its_negative_prompt_beside_a_picture_as_ever():
    """Two rows hold it and the picture; the third, that of the prompt, has the prefix."""
    m = _seeing("dreamlite")
    options = m.options | {"image": PICTURE, "negative_prompt": "Mara Voss", "prompt": PROMPT}

    assert m.guard.generate(**options).outcome.prefix_rows == {"text_encoder": (6,)}


def test_words_that_the_tokenizer_beside_a_processor_has_learned_are_a_channel():
    """Texts alone are read by the tokenizer; textual inversion adds its words there."""
    pipe = tiny_pipe(family="dreamlite")
    pipe.processor.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.add_tokens(["<mara>"])
    guard = Guard(pipe, prefix=random_prefix(pipe, n=4))

    with pytest.raises(PolicyBlocked, match="textual_inversion"):
        guard("a photo of <mara>")
