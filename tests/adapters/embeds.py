"""What a bare pipeline of each family has to be given for the picture that the guard makes: prompt embeds, pooled
outputs and masks of the sequence made by hand."""

import torch

LONG = "a photo of a man in a red shirt, " * 40


def _stable_diffusion(m, prompts):
    return {"prompt_embeds": m.clip("text_encoder", prompts, "last")}


def _latent_upscale(m, prompts):
    found = m.clip_all("text_encoder", prompts)
    return {"prompt_embeds": found["hidden"][-1], "pooled_prompt_embeds": found["pooled"]}


def _stable_diffusion_xl(m, prompts):
    slots = ("text_encoder", "text_encoder_2")
    return {
        "prompt_embeds": torch.cat([m.clip(slot, prompts, "hidden")[-2] for slot in slots], -1),
        "pooled_prompt_embeds": m.clip("text_encoder_2", prompts, "projected"),
    }


def _stable_diffusion_3(m, prompts):
    slots = ("text_encoder", "text_encoder_2")
    both = torch.cat([m.clip(slot, prompts, "hidden")[-2] for slot in slots], -1)
    t5, _ = m.t5("text_encoder_3", prompts, 40, masked=False)
    padded = torch.nn.functional.pad(both, (0, t5.shape[-1] - both.shape[-1]))
    return {
        "prompt_embeds": torch.cat([padded, t5], 1),
        "pooled_prompt_embeds": torch.cat([m.clip(slot, prompts, "projected") for slot in slots], -1),
    }


def _flux(m, prompts):
    return {
        "prompt_embeds": m.t5("text_encoder_2", prompts, 48, masked=False)[0],
        "pooled_prompt_embeds": m.clip("text_encoder", prompts, "pooled"),
    }


def _pixart(m, prompts):
    # this pipeline puts its prompts in lower case
    embeds, mask = m.t5("text_encoder", [prompt.lower().strip() for prompt in prompts], 40, masked=True)
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask}


def _hunyuan_dit(m, prompts):
    bert, mask = m.t5("text_encoder", prompts, 77, masked=True)
    t5, mask_2 = m.t5("text_encoder_2", prompts, 256, masked=True)
    return {
        "prompt_embeds": bert,
        "prompt_attention_mask": mask,
        "prompt_embeds_2": t5,
        "prompt_attention_mask_2": mask_2,
    }


def _aura_flow(m, prompts):
    embeds, mask = m.t5("text_encoder", prompts, 40, masked=True)
    return {"prompt_embeds": embeds * mask[..., None], "prompt_attention_mask": mask}


def _chroma(m, prompts):
    embeds, mask = m.t5("text_encoder", prompts, 40, masked=True)
    # one place of the padding counts as text
    counts = torch.arange(40) <= mask.sum(1, keepdim=True)
    return {"prompt_embeds": embeds, "prompt_attention_mask": counts.to(embeds.dtype)}


def _kandinsky_3(m, prompts):
    embeds, mask = m.t5("text_encoder", prompts, 128, masked=True)
    longest = mask.sum(1).max() + 1
    return {"prompt_embeds": (embeds * mask[..., None])[:, :longest], "attention_mask": mask[:, :longest]}


def _stable_cascade_prior(m, prompts):
    found = m.clip_all("text_encoder", prompts, masked=True)
    return {"prompt_embeds": found["hidden"][-1], "prompt_embeds_pooled": found["projected"][:, None]}


def _cogview_3_plus(m, prompts):
    return {"prompt_embeds": m.t5("text_encoder", prompts, 40, masked=False)[0]}


def qwen_image(m, prompts):
    before, after = m.pipe.prompt_template_encode.split("{}")
    first = m.pipe.prompt_template_encode_start_idx
    options = {"before": before, "after": after, "padded": False, "output_hidden_states": True}
    output, mask = m.encoder("text_encoder", prompts, 1024 + first, masked=True, **options)
    embeds, mask = output.hidden_states[-1][:, first:], mask[:, first:]
    return {"prompt_embeds": (embeds * mask[..., None])[:, :512], "prompt_embeds_mask": mask[:, :512]}


def _qwen_image_21(m, prompts):
    """What the last layer gives before the final norm, of rows that are padded on the left."""
    before, after = m.pipe.prompt_template_t2i.split("{}")
    seen, tokenizer = [], m.pipe.processor.tokenizer
    hook = m.pipe.text_encoder.model.language_model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tokenizer.padding_side = "left"
    with hook:
        _, mask = m.encoder("text_encoder", prompts, None, masked=True, padded=False, before=before, after=after)
    tokenizer.padding_side = "right"
    rows = [row[keep.bool()][m.pipe._drop_idx :] for row, keep in zip(seen[0], mask, strict=True)]
    ones = [torch.ones(len(row), dtype=torch.long) for row in rows]
    return {
        "prompt_embeds": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        "prompt_embeds_mask": torch.nn.utils.rnn.pad_sequence(ones, batch_first=True),
    }


def _nucleus_image(m, prompts):
    from diffusers.pipelines.nucleusmoe_image.pipeline_nucleusmoe_image import DEFAULT_SYSTEM_PROMPT

    before = f"<|im_start|>system\n{DEFAULT_SYSTEM_PROMPT}<|im_end|>\n{TURN['before']}"
    options = {"before": before, "after": TURN["after"], "padded": False, "multiple": 8, "output_hidden_states": True}
    output, mask = m.encoder("text_encoder", prompts, 304, masked=True, **options)
    return {"prompt_embeds": output.hidden_states[-2], "prompt_embeds_mask": mask}


TURN = {"before": "<|im_start|>user\n", "after": "<|im_end|>\n<|im_start|>assistant\n"}


def _z_image(m, prompts):
    output, mask = m.encoder("text_encoder", prompts, 512, masked=True, output_hidden_states=True, **TURN)
    return {"prompt_embeds": [row[keep.bool()] for row, keep in zip(output.hidden_states[-2], mask, strict=True)]}


def _flux_2(m, prompts):
    before = f"<s>[SYSTEM_PROMPT]{m.pipe.system_message}[/SYSTEM_PROMPT][INST]"
    options = {"before": before, "after": "[/INST]", "output_hidden_states": True}
    output, _ = m.encoder("text_encoder", prompts, 260, masked=True, **options)
    return {"prompt_embeds": torch.cat([output.hidden_states[layer] for layer in (1, 2)], -1)}


def _flux_2_klein(m, prompts):
    output, _ = m.encoder("text_encoder", prompts, 80, masked=True, output_hidden_states=True, **TURN)
    return {"prompt_embeds": torch.cat([output.hidden_states[layer] for layer in (1, 2)], -1)}


def _sana(m, prompts):
    import inspect

    instruction = inspect.signature(type(m.pipe).__call__).parameters["complex_human_instruction"].default
    before = "\n".join(instruction)
    length = len(m.pipe.tokenizer.encode(before)) + 40 - 2
    m.pipe.tokenizer.padding_side = "right"  # as the pipeline does
    prompts = [prompt.lower().strip() for prompt in prompts]
    output, mask = m.encoder("text_encoder", prompts, length, masked=True, before=before)
    places = [0, *range(-39, 0)]
    return {"prompt_embeds": output[0][:, places], "prompt_attention_mask": mask[:, places]}


def _lumina_2(m, prompts):
    before = m.pipe.system_prompt + " <Prompt Start> "
    options = {"before": before, "output_hidden_states": True}
    output, mask = m.encoder("text_encoder", prompts, 256, masked=True, **options)
    return {"prompt_embeds": output.hidden_states[-2], "prompt_attention_mask": mask}


def _lumina(m, prompts):
    prompts = [prompt.lower().strip() for prompt in prompts]
    options = {"padded": False, "multiple": 8, "output_hidden_states": True}
    output, mask = m.encoder("text_encoder", prompts, 256, masked=True, **options)
    return {"prompt_embeds": output.hidden_states[-2], "prompt_attention_mask": mask}


def _kolors(m, prompts):
    states = m.chat_glm("text_encoder", prompts, 256)
    return {"prompt_embeds": states[-2].transpose(0, 1), "pooled_prompt_embeds": states[-1][-1]}


def _cogview_4(m, prompts):
    options = {"padded": False, "multiple": 16, "output_hidden_states": True}
    output, _ = m.encoder("text_encoder", prompts, 60, masked=False, **options)
    return {"prompt_embeds": output.hidden_states[-2]}


def _kandinsky_5(m, prompts):
    before, after = m.pipe.prompt_template.split("{}")
    first = m.pipe.prompt_template_encode_start_idx
    options = {"before": before, "after": after, "padded": False, "output_hidden_states": True}
    output, mask = m.encoder("text_encoder", prompts, first + 250, masked=False, **options)
    lengths = mask[:, first:].sum(1).cumsum(0)
    return {
        "prompt_embeds_qwen": output.hidden_states[-1][:, first:],
        "prompt_embeds_clip": m.clip("text_encoder_2", prompts, "pooled", masked=True),
        "prompt_cu_seqlens": torch.nn.functional.pad(lengths, (1, 0)).to(torch.int32),
    }


def _hidream(m, prompts):
    slots = ("text_encoder", "text_encoder_2")
    llama, _ = m.encoder("text_encoder_4", prompts, 40, masked=True, output_hidden_states=True)
    return {
        "prompt_embeds_t5": m.t5("text_encoder_3", prompts, 40, masked=True)[0],
        "prompt_embeds_llama3": torch.stack(llama.hidden_states[1:]),
        "pooled_prompt_embeds": torch.cat([m.clip(slot, prompts, "projected", length=40) for slot in slots], -1),
    }


def _bria(m, prompts):
    rows = [m.encoder("text_encoder", [prompt], 40, masked=False, padded=False)[0][0][0] for prompt in prompts]
    return {"prompt_embeds": torch.stack([torch.nn.functional.pad(row, (0, 0, 0, 40 - len(row))) for row in rows])}


def _ernie_image(m, prompts):
    options = {"masked": False, "padded": False, "output_hidden_states": True}
    outputs = [m.encoder("text_encoder", [prompt], 60, **options)[0] for prompt in prompts]
    return {"prompt_embeds": [output.hidden_states[-2][0] for output in outputs]}


def _cosmos_2(m, prompts):
    embeds, mask = m.t5("text_encoder", prompts, 40, masked=True)
    return {"prompt_embeds": embeds * mask[..., None]}


def _deepfloyd_if(m, prompts):
    prompts = [prompt.lower().strip() for prompt in prompts]
    return {"prompt_embeds": m.t5("text_encoder", prompts, 77, masked=True)[0]}


def _hunyuan_image(m, prompts):
    before, after = m.pipe.prompt_template_encode.split("{}")
    first = m.pipe.prompt_template_encode_start_idx
    options = {"before": before, "after": after, "output_hidden_states": True}
    output, mask = m.encoder("text_encoder", prompts, m.pipe.tokenizer_max_length + first, masked=True, **options)
    return {
        "prompt_embeds": output.hidden_states[-3][:, first:],
        "prompt_embeds_mask": mask[:, first:],
        # nothing stands in quotes
        "prompt_embeds_2": torch.zeros(len(prompts), 128, 32),
        "prompt_embeds_mask_2": torch.zeros(len(prompts), 128, dtype=torch.long),
    }


def _hunyuan_image_refiner(m, prompts):
    return {name: value for name, value in _hunyuan_image(m, prompts).items() if "_2" not in name}


def _krea_2(m, prompts):
    first = m.pipe.prompt_template_encode_start_idx
    before, after = m.pipe.prompt_template_encode_prefix, m.pipe.prompt_template_encode_suffix
    output, mask = m.with_end("text_encoder", prompts, 300 + first - 5, after, before=before, output_hidden_states=True)
    states = torch.stack([output.hidden_states[layer] for layer in (0, 1, 2)], 2)
    return {"prompt_embeds": states[:, first:], "prompt_embeds_mask": mask[:, first:].bool()}


def _ovis_image(m, prompts):
    first = m.pipe.user_prompt_begin_id
    options = {"before": TURN["before"] + m.pipe.system_prompt, "after": TURN["after"]}
    output, mask = m.encoder("text_encoder", prompts, 250 + first, masked=True, **options)
    return {"prompt_embeds": (output[0] * mask[..., None])[:, first:]}


def _prx(m, prompts):
    prompts = [m.pipe.text_preprocessor.clean_text(prompt) for prompt in prompts]
    embeds, mask = m.t5("text_encoder", prompts, 64, masked=True)
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask.bool()}


def _prx_pixel(m, prompts):
    embeds, mask = m.t5("text_encoder", [prompt.strip() for prompt in prompts], 40, masked=True)
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask.bool()}


def _z_image_omni(m, prompts):
    """A turn in four parts around one picture, each of them a row of its own; the prompt is in the second."""
    opening, closing = "<|im_start|>user\n<|vision_start|>", "<|vision_end|><|im_end|>"
    frame = {"before": "<|vision_end|>", "after": TURN["after"] + "<|vision_start|>", "output_hidden_states": True}
    output, mask = m.encoder("text_encoder", prompts, 512, masked=True, **frame)
    middle = [row[keep.bool()] for row, keep in zip(output.hidden_states[-2], mask, strict=True)]
    start, end = (m.plain("text_encoder", text, 512).hidden_states[-2] for text in (opening, closing))
    sizes = [len(m.pipe.tokenizer(text).input_ids) for text in (opening, closing)]
    return {"prompt_embeds": [[start[0, : sizes[0]], row, end[0, : sizes[1]]] for row in middle]}


EMBEDS = {
    "stable_diffusion": _stable_diffusion,
    "stable_diffusion_xl": _stable_diffusion_xl,
    "stable_diffusion_3": _stable_diffusion_3,
    "flux": _flux,
    "pixart": _pixart,
    "hunyuan_dit": _hunyuan_dit,
    "aura_flow": _aura_flow,
    "chroma": _chroma,
    "kandinsky_3": _kandinsky_3,
    "stable_cascade_prior": _stable_cascade_prior,
    "cogview_3_plus": _cogview_3_plus,
    "qwen_image": qwen_image,
    "qwen_image_21": _qwen_image_21,
    "nucleus_image": _nucleus_image,
    "z_image": _z_image,
    "flux_2": _flux_2,
    "flux_2_klein": _flux_2_klein,
    "sana": _sana,
    "lumina_2": _lumina_2,
    "hidream": _hidream,
    "lumina": _lumina,
    "kolors": _kolors,
    "cogview_4": _cogview_4,
    "kandinsky_5": _kandinsky_5,
    "bria": _bria,
    "ernie_image": _ernie_image,
    "cosmos_2": _cosmos_2,
    "deepfloyd_if": _deepfloyd_if,
    "hunyuan_image": _hunyuan_image,
    "krea_2": _krea_2,
    "ovis_image": _ovis_image,
    "prx": _prx,
    "prx_pixel": _prx_pixel,
}
"""Family → the arguments, for a guarded pipe and prompts."""

EMBEDS_OF_VARIANT = {
    "StableDiffusionLatentUpscalePipeline": _latent_upscale,
    "HunyuanImageRefinerPipeline": _hunyuan_image_refiner,
    "ZImageOmniPipeline": _z_image_omni,
}
"""Variants that take other arguments than their family."""

# Without guidance, because with it these pipelines want embeds for the negative prompt as well.
CALL = {
    "pixart": {"guidance_scale": 1.0, "negative_prompt": None},
    "kandinsky_5": {"guidance_scale": 1.0},
    "z_image": {"guidance_scale": 0.0},
    "bria_fibo": {"guidance_scale": 1.0},
    "prx": {"guidance_scale": 1.0},
    "prx_pixel": {"guidance_scale": 1.0},
    "StableDiffusionLatentUpscalePipeline": {"guidance_scale": 1.0},
    "QwenImageLayeredPipeline": {"output_type": "pt"},
}
"""Family or variant → options under which embeds can be given."""

# Attention as T5 has it gives the last bits differently for a row of vectors and a row of ids; on some processors
# that of Qwen3 does, too.
WITHIN = dict.fromkeys(
    (
        "stable_diffusion_3",
        "pixart",
        "hunyuan_dit",
        "aura_flow",
        "kandinsky_3",
        "cogview_3_plus",
        "hidream",
        "bria",
        "deepfloyd_if",
        "cosmos_2",
        "flux_2_klein",
    ),
    1e-5,
)
