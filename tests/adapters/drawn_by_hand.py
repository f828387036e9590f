"""The picture of a bare pipe with the embeds made by hand, whether the pipe takes embeds or not."""

import re

import pytest
import torch
from by_hand import encoder_by_hand, row_by_hand, rows_by_hand
from embeds import EMBEDS, EMBEDS_OF_VARIANT, TURN, qwen_image


def _last_replaced(made):
    """The same answers, but for their last rows: those before them belong to negative prompts."""
    return lambda found: tuple(torch.cat([f[: -len(m)], m.to(f.dtype)]) for f, m in zip(found, made, strict=True))


def _kandinsky_2_1(m, prompts):
    decoder, prior = getattr(m.pipe, "decoder_pipe", m.pipe), getattr(m.pipe, "prior_pipe", None)
    yield decoder, "_encode_prompt", _last_replaced(m.m_clip("text_encoder", prompts))
    if prior is not None:
        found = m.clip_all("prior_text_encoder", prompts)
        yield prior, "_encode_prompt", _last_replaced([found[key] for key in ("projected", "last", "mask")])


def _bria_fibo(m, prompts):
    options = {"padded": False, "output_hidden_states": True}
    output, mask = m.encoder("text_encoder", prompts, 60, masked=True, **options)
    states = output.hidden_states
    yield m.pipe, "get_prompt_embeds", lambda _: (torch.cat([states[-1], states[-2]], -1), states, mask)


def _layered(m, prompts):
    made = qwen_image(m, prompts)
    yield m.pipe, "encode_prompt", lambda _: (made["prompt_embeds"], None)


def _longcat_image(m, prompts):
    """What stands in quotes is spelt letter by letter; padding stands between the prompt and the end of its turn."""
    before, after = m.pipe.prompt_template_encode_prefix, m.pipe.prompt_template_encode_suffix
    tokenizer, length = m.pipe.tokenizer, m.pipe.tokenizer_max_length
    parts = [[part for part in re.split('("[^"]*")', prompt) if part] for prompt in prompts]
    pieces = [[piece for p in each for piece in (p if p.startswith('"') else [p])] for each in parts]
    rows = [[i for piece in each for i in tokenizer(piece).input_ids] for each in pieces]
    first, last = (len(tokenizer(text).input_ids) for text in (before, after))
    options = {"before": before, "counts_padding": True, "output_hidden_states": True}
    output, _ = m.with_end("text_encoder", rows, first + length, after, **options)
    yield m.pipe, "_encode_prompt", _first_replaced(output.hidden_states[-1][:, first:-last])


def _ideogram_4(m, prompts):
    """Thirteen layers, the last of them before the norm, of rows that are padded on the left; then the picture."""
    encoder, tokenizer, length = m.pipe.text_encoder, m.pipe.tokenizer, m.options["max_sequence_length"]
    rows = m._rows(tokenizer, prompts, length, TURN["before"], TURN["after"])
    tokenizer.padding_side = "left"
    embeddings, mask = rows_by_hand(encoder, tokenizer, rows, m.prefix.vectors["text_encoder"], length)
    tokenizer.padding_side = "right"
    places, seen = (mask.cumsum(1) - 1).clamp(min=0), []
    with encoder.language_model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0])), torch.no_grad():
        options = {"position_ids": places, "output_hidden_states": True}
        states = encoder(inputs_embeds=embeddings, attention_mask=mask, **options).hidden_states
    read = torch.stack([*(states[layer + 1] for layer in range(0, 34, 3)), seen[0]], -1).flatten(2) * mask[..., None]
    picture = [m.options[side] // (2 * m.pipe.vae_scale_factor) for side in ("height", "width")]
    made = torch.nn.functional.pad(read, (0, 0, 0, picture[0] * picture[1]))
    places = m.pipe._prepare_ids(mask.sum(1).tolist(), *picture, length, "cpu")
    yield m.pipe, "encode_prompt", lambda _: (made, *places)


def _dreamlite(m, prompts):
    """Behind a row for an empty negative prompt, if there is one, that of the prompt, without the start of the turn."""
    (encoder, tokenizer), (prompt,) = m._pair("text_encoder"), prompts
    before, after = m.pipe.prompt_template_encode_generate.split("{}")
    first = m.pipe.prompt_template_encode_generate_start_idx
    plain = row_by_hand(tokenizer, "", 0, None, before, after)[0], None
    row = m._rows(tokenizer, [prompt], m.options["max_sequence_length"] + first, before + "[Generate]: ", after)
    vectors = m.prefix.vectors["text_encoder"]

    def change(found):
        rows = [plain] * (len(found[0]) - 1) + row
        output, mask = encoder_by_hand(encoder, tokenizer, rows, vectors, True, None, output_hidden_states=True)
        return output.hidden_states[-1][:, first:] * mask[:, first:, None], mask[:, first:]

    yield m.pipe, "encode_prompt", change


def _flux_3(m, prompts):
    """Eight layers, side by side, of rows that are padded to eighty tokens or as many again."""
    (encoder, tokenizer), length = m._pair("text_encoder"), m.options["max_sequence_length"]

    def embeds(rows):
        vectors = m.prefix.vectors["text_encoder"]
        embeddings, mask = rows_by_hand(encoder, tokenizer, rows, vectors, None, multiple=80)
        places = torch.arange(mask.shape[1])[None].masked_fill(mask == 0, 1)
        options = {"attention_mask": mask, "position_ids": places, "output_hidden_states": True}
        with torch.no_grad():
            states = encoder(inputs_embeds=embeddings, **options).hidden_states
        return torch.cat(states[4:33:4], -1)

    blocks = m.pipe.blocks
    blocks.sub_blocks.pop("text_encoder")
    bare = blocks.init_pipeline()
    bare.update_components(**{name: m.pipe.components[name] for name in bare.component_names})
    made = {"prompt_embeds": embeds(m._rows(tokenizer, prompts, length, **TURN))}
    if "guider" in bare.component_names:
        plain = row_by_hand(tokenizer, "", 0, length, **TURN)[0], None
        made["negative_prompt_embeds"] = embeds([plain])
    return lambda prompt, max_sequence_length, **options: bare(**made, **options)


def _first_replaced(made):
    """The same answers, but for the first one, the others being for negative prompts."""
    answers = [made]
    return lambda found: answers.pop() if answers else found


METHODS = {
    "kandinsky_2_1": _kandinsky_2_1,
    "bria_fibo": _bria_fibo,
    "dreamlite": _dreamlite,
    "ideogram_4": _ideogram_4,
    "longcat_image": _longcat_image,
    "QwenImageLayeredPipeline": _layered,
}
"""Family or variant that takes no embeds → pipes, their methods that encode, what these should have answered."""

MODULAR = {"flux_3": _flux_3, "flux_3_distilled": _flux_3}
"""Family → a pipe that draws from embeds made by hand, of the same blocks but for the text encoder's."""


def draw_by_hand(draw, m, prompts, family, name="", **options):
    """The picture of the bare pipe with the embeds made by hand.

    Args:
        draw: Draws, given a pipe, prompts and options.
        m: A `Hand`.
        prompts: A list.
        family: Of the pipe.
        name: Of its class, where that takes other embeds than its family.
        options: Of the call.
    """
    if family in MODULAR:
        return draw(MODULAR[family](m, prompts), None, **options)
    answers = METHODS.get(name, METHODS.get(family))
    if answers is None:
        embeds = EMBEDS_OF_VARIANT.get(name, EMBEDS[family])(m, prompts)
        return draw(m.pipe, None, **(options | embeds))
    with pytest.MonkeyPatch.context() as patch:
        for pipe, method, change in answers(m, prompts):
            patch.setattr(pipe, method, _changed(getattr(pipe, method), change))
        # some take one prompt and no list
        return draw(m.pipe, prompts if len(prompts) > 1 else prompts[0], **options)


def _changed(method, change):
    return lambda *args, **kwargs: change(method(*args, **kwargs))
