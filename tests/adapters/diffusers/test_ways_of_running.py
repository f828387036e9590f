"""The sequence is exact whatever a platform does to its pipe: precision, offloading, compiling, LoRA, weighted and
long prompts."""

import sys

import accelerate
import pytest
import torch
from by_hand import clip_by_hand
from diffusers import StableDiffusionPipeline
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from embeds import EMBEDS
from guarded import Guarded, permissive
from peft import LoraConfig

from apl_guard import Guard, PolicyBlocked, PrefixNotApplied
from apl_guard.adapters.inject import embed, injected, tokenize_with_prefix
from apl_guard.testing import random_prefix, tiny_pipe

N = 6
PROMPT = "a photo of Mara Voss"


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("stable_diffusion", torch.float16),
        ("stable_diffusion", torch.bfloat16),
        ("stable_diffusion_xl", torch.bfloat16),
        ("flux", torch.bfloat16),
    ],
)
def test_in_half_precision(family, dtype):
    """Vectors are rounded once, as the weights are; the picture equals that of embeds made in it, bit for bit."""
    m = Guarded(family, dtype)

    expected = m.draw(m.pipe, None, **EMBEDS[family](m, [PROMPT]))

    assert expected.dtype == dtype
    assert torch.equal(expected, m.draw(m.guard, PROMPT))


def _layer_by_layer(pipe):
    """What `enable_sequential_cpu_offload` does; it would ask for `cpu:0`, where accelerate cannot put weights."""
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)


@pytest.mark.parametrize(
    ("family", "layers"),
    [("stable_diffusion", False), ("stable_diffusion", True), ("flux", True)],
    ids=["models", "layers", "layers, one table under two names"],
)
def test_with_the_pipe_offloaded(family, layers):
    """Accelerate's hooks move each model, or each layer, to the processor in place of an accelerator; the second
    picture is as right as the first."""
    m = Guarded(family)
    expected, plain = m.draw(m.guard, PROMPT), m.draw(m.pipe, PROMPT)

    if layers:
        _layer_by_layer(m.pipe)
        assert next(m.pipe.text_encoder.parameters()).is_meta
    else:
        m.guard.enable_model_cpu_offload(device="cpu")

    assert hasattr(m.pipe.text_encoder, "_hf_hook")
    assert torch.equal(expected, m.draw(m.guard, PROMPT))
    assert torch.equal(expected, m.draw(m.guard, PROMPT))
    assert torch.equal(plain, m.draw(m.pipe, PROMPT))


@pytest.mark.skipif(not hasattr(StableDiffusionPipeline, "enable_group_offload"), reason="this diffusers has none")
def test_with_all_models_offloaded_in_groups():
    """Through the guard; the second picture is as right as the first."""
    m = Guarded("stable_diffusion_xl")
    expected = m.draw(m.guard, PROMPT)

    m.guard.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")

    assert torch.equal(expected, m.draw(m.guard, PROMPT))
    assert torch.equal(expected, m.draw(m.guard, PROMPT))


def test_with_the_text_encoder_offloaded_layer_by_layer():
    """Each layer's weights are in place for one moment, and the prefix all the same."""
    pipe = tiny_pipe()
    encoder, ids = pipe.text_encoder, tokenize_with_prefix(pipe.tokenizer, [PROMPT], N)
    vectors = random_prefix(pipe, n=N).vectors["text_encoder"]
    with torch.no_grad():
        expected = embed(encoder, ids, vectors)
        accelerate.cpu_offload(encoder, execution_device=torch.device("cpu"))

        with injected(encoder, vectors) as received:
            found = encoder(ids)[0]

    assert next(encoder.parameters()).is_meta
    assert torch.equal(expected, found)
    assert received.rows == (N,)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch.compile needs an older Python")
def test_with_a_compiled_text_encoder():
    """Compiled before the guard came, warm and cold. One that may not break its graph runs uncompiled under a guard."""
    m = Guarded("stable_diffusion")
    expected = m.draw(m.guard, PROMPT)
    plain = m.draw(m.pipe, PROMPT)
    m.pipe.text_encoder = torch.compile(m.pipe.text_encoder, backend="eager")

    assert torch.equal(plain, m.draw(m.pipe, PROMPT))
    assert torch.equal(expected, m.draw(m.guard, PROMPT))
    assert torch.equal(plain, m.draw(m.pipe, PROMPT))

    torch._dynamo.reset()  # or what was compiled above would serve
    m.pipe.text_encoder = torch.compile(m.pipe.text_encoder._orig_mod, backend="eager", fullgraph=True)
    assert torch.equal(expected, m.draw(m.guard, PROMPT))
    assert torch.equal(plain, m.draw(m.pipe, PROMPT))

    torch._dynamo.reset()
    m.pipe.text_encoder = m.pipe.text_encoder._orig_mod
    m.pipe.text_encoder.compile(backend="eager", fullgraph=True)  # in place
    assert torch.equal(expected, m.draw(m.guard, PROMPT))
    assert torch.equal(plain, m.draw(m.pipe, PROMPT))


def _into_the_same_memory(graph, _):
    """A backend whose answers lie in the same memory each time, as those of CUDA graphs do."""
    kept = {}

    def run(*inputs):
        answers = graph(*inputs)
        for i, answer in enumerate(answers):
            if isinstance(answer, torch.Tensor) and answer.is_floating_point():
                kept.setdefault((i, answer.shape), answer.detach().clone()).copy_(answer)
        return [kept.get((i, getattr(answer, "shape", None)), answer) for i, answer in enumerate(answers)]

    return run


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch.compile needs an older Python")
@pytest.mark.parametrize("in_place", [False, True])
def test_with_a_text_encoder_whose_answers_are_written_over(in_place):
    """The comparison with the bare prompt, which the record holds, runs after the answer and leaves it as it is."""
    m = Guarded("stable_diffusion")
    options = m.options | {"guidance_scale": 1.0}
    expected = m.guard.generate(PROMPT, **options, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    if in_place:
        m.pipe.text_encoder.compile(backend=_into_the_same_memory)
    else:
        m.pipe.text_encoder = torch.compile(m.pipe.text_encoder, backend=_into_the_same_memory)

    found = m.guard.generate(PROMPT, **options, generator=torch.Generator().manual_seed(0))

    assert torch.equal(expected.output.images, found.output.images)
    assert found.outcome.change == expected.outcome.change


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_with_a_lora_in_the_text_encoder(scale):
    """The scale of the call reaches the layers that read the prefix."""
    m = Guarded("stable_diffusion")
    m.pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    m.pipe.text_encoder.eval()
    m.prefix = random_prefix(m.pipe, n=N)
    guard = Guard(m.pipe, permissive(""), prefix=m.prefix)
    options = {"cross_attention_kwargs": {"scale": scale}}

    scale_lora_layers(m.pipe.text_encoder, scale)
    embeds = EMBEDS["stable_diffusion"](m, [PROMPT])
    unscale_lora_layers(m.pipe.text_encoder, scale)

    assert torch.equal(m.draw(m.pipe, None, **embeds, **options), m.draw(guard, PROMPT, **options))


def test_a_textual_inversion_loaded_after_wrapping_is_refused():
    """By diffusers' own loader. The new token may stand for a person whom the prefix has never seen."""
    pipe = tiny_pipe()
    guard = Guard(pipe, prefix=random_prefix(pipe, n=N))
    pipe.load_textual_inversion({"<mara>": torch.randn(2, 32)})

    with pytest.raises(PolicyBlocked, match="textual_inversion"):
        guard("a photo of <mara>", num_inference_steps=1)


class _Helped(StableDiffusionPipeline):
    """A pipeline whose `encode_prompt` hands the prompts to a helper: so the guard covers what the helper does."""

    def encode_prompt(self, prompt, device, num_images_per_prompt=1, do_cfg=True, negative_prompt=None, *_, **__):
        if isinstance(prompt, list):
            prompt = prompt[0]
        return self.encode(prompt), self.encode(negative_prompt or "")


def _guarded(cls):
    base = tiny_pipe()
    pipe = cls(**base.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    prefix = random_prefix(pipe, n=N)
    return base, prefix.vectors["text_encoder"], Guard(pipe, prefix=prefix)


def _draw(target, *args, **options):
    options = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 1.0} | options
    return target(*args, generator=torch.Generator().manual_seed(0), **options).images


class _Compel(_Helped):
    """Prompt weighting by compel."""

    def encode(self, text):
        from compel import Compel

        return Compel(self.tokenizer, self.text_encoder)(text)


def test_prompts_weighted_by_compel():
    """The weight falls on the user's word behind the prefix, and on no vector of the prefix."""
    pytest.importorskip("compel", reason="compel is not installed")
    pipe, vectors, guard = _guarded(_Compel)

    def by_hand(prompt, rows):
        return clip_by_hand(pipe.text_encoder, pipe.tokenizer, [prompt], rows)["last"]

    first, word = (len(pipe.tokenizer(t, add_special_tokens=False).input_ids) for t in ("a photo of", "Mara"))
    weight = torch.ones(77, 1)
    weight[1 + N + first : 1 + N + first + word] = 1.5
    plain, empty = by_hand("a photo of Mara in red", vectors), by_hand("", vectors[:0])
    embeds = torch.where(weight == 1, plain, empty + (plain - empty) * weight)

    expected = _draw(pipe, prompt_embeds=embeds)

    assert torch.equal(expected, _draw(guard, "a photo of (Mara)1.5 in red"))


class _Chunked(_Helped):
    """Long prompts in chunks of the window, without the special tokens in between."""

    size = 75

    def ids_of(self, text):
        return self.tokenizer(text).input_ids[1:-1]

    def encode(self, text):
        ids, start, end = self.ids_of(text), self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows = [ids[i : i + self.size] for i in range(0, len(ids), self.size)] or [[]]
        rows = torch.tensor([[start, *row, *[end] * (76 - len(row))] for row in rows])
        return self.text_encoder(rows)[0].reshape(1, -1, 32)


class _OddlyChunked(_Chunked):
    """In chunks of another size, so that the prefix is not at the start of each."""

    size = 50


class _InPieces(_Chunked):
    """Tokenizes the parts of a prompt one by one, so that only the first can have the prefix."""

    def ids_of(self, text):
        return [i for piece in text.split(",") for i in super(_InPieces, self).ids_of(piece)]


class _RowForEach(_Helped):
    """Encodes two parts of a prompt, each in a row of its own."""

    def encode(self, text):
        return self.text_encoder(self.rows_of((text + ",").split(",")[:2]))[0].reshape(1, -1, 32)

    def rows_of(self, parts):
        return torch.cat([self.tokenizer(p, padding="max_length", return_tensors="pt").input_ids for p in parts])


class _RowsAtOnce(_RowForEach):
    """The same, tokenized together."""

    def rows_of(self, parts):
        return self.tokenizer(parts, padding="max_length", return_tensors="pt").input_ids


class _Overflowing(_RowForEach):
    """Has the tokenizer cut what is too long for one row into further rows."""

    def rows_of(self, parts):
        options = {"padding": "max_length", "truncation": True, "max_length": 77, "return_overflowing_tokens": True}
        first = self.tokenizer(parts[:1], padding="max_length", return_tensors="pt").input_ids
        return torch.cat([first, torch.tensor(self.tokenizer(parts[1:], **options).input_ids)])


LONG = ", ".join(f"a red shirt number {i}" for i in range(20))


@pytest.mark.parametrize("prompt", [PROMPT, LONG], ids=["short", "long"])
def test_every_chunk_of_a_long_prompt_has_the_prefix(prompt):
    """Each chunk is the start token, the prefix, and as many of the user's tokens as there is room for."""
    pipe, vectors, guard = _guarded(_Chunked)
    ids = pipe.tokenizer(prompt, add_special_tokens=False).input_ids
    chunks = [ids[i : i + 75 - N] for i in range(0, len(ids), 75 - N)]
    embeds = clip_by_hand(pipe.text_encoder, pipe.tokenizer, chunks, vectors)["last"].reshape(1, -1, 32)

    made = guard.generate(
        prompt,
        num_inference_steps=2,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        guidance_scale=1.0,
    )

    assert torch.equal(_draw(pipe, prompt_embeds=embeds), made.output.images)
    assert made.outcome.prefix_rows == {"text_encoder": (N,) * len(chunks)}


def test_a_long_negative_prompt_in_chunks_stays_plain():
    """Its chunks have no prefix and need none."""
    _, _, guard = _guarded(_Chunked)

    # The prompt is shorter, because with the prefix it has to fill as many chunks as the negative one.
    prompt, negative = LONG[: 9 * len(LONG) // 10], LONG.replace("red", "sky")

    assert _draw(guard, prompt, negative_prompt=negative, guidance_scale=5.0).isfinite().all()


@pytest.mark.parametrize(
    ("cls", "prompt", "negative"),
    [
        (_RowForEach, "a photo, Mara Voss", "Mara Voss"),
        (_RowForEach, "a photo, Mara Voss", "blur Mara Voss blur"),
        (_RowsAtOnce, "a photo, Mara Voss", "Mara Voss"),
        (_RowsAtOnce, "a photo, Mara Voss", "Mara Voss, Mara Voss"),
        (_Overflowing, f"a photo, {LONG.replace(',', '')}", f"blur, {LONG.replace(',', '')}"),
        (_OddlyChunked, LONG, f"blur, {LONG}"),
    ],
)
def test_a_negative_prompt_that_says_what_a_prompt_says_excuses_no_part_of_it(cls, prompt, negative):
    """The same words may stand in a row without the prefix where they are the negative prompt, and not elsewhere."""
    _, _, guard = _guarded(cls)

    with pytest.raises(PrefixNotApplied, match="part of a prompt"):
        _draw(guard, prompt, negative_prompt=negative, guidance_scale=5.0)


@pytest.mark.parametrize("negative", ["a photo of Mara in red", " Mara ", "in red", "blur", "photo, Mara", "", " "])
def test_a_negative_prompt_may_say_what_the_prompt_says(negative):
    """It is encoded as ever, bit for bit, whatever stands in the prompt."""
    pipe, _, guard = _guarded(StableDiffusionPipeline)
    seen = []
    hook = guard._parts.backend._pipe.text_encoder.register_forward_hook(lambda _, args, output: seen.append(output[0]))

    _draw(guard, "a photo of Mara in red", negative_prompt=negative, guidance_scale=5.0)
    hook.remove()
    with torch.no_grad():
        expected = pipe.encode_prompt(negative, "cpu", 1, do_classifier_free_guidance=False)[0]

    assert torch.equal(seen[-1], expected)


@pytest.mark.parametrize("negative", ["very (ugly)1.3 blurry (bad)1.2 hands", "(ugly)1.3, a man"])
def test_a_negative_prompt_of_several_weighted_words_by_compel(negative):
    """It is tokenized in pieces, some of which may stand in the prompt as well."""
    pytest.importorskip("compel", reason="compel is not installed")
    _, _, guard = _guarded(_Compel)

    assert _draw(guard, "a man in red", negative_prompt=negative, guidance_scale=5.0).isfinite().all()


@pytest.mark.parametrize("cls", [_OddlyChunked, _InPieces])
def test_a_chunk_without_the_prefix_gives_no_picture(cls):
    """What splits a prompt in another way would run a part of it bare."""
    _, _, guard = _guarded(cls)

    with pytest.raises(PrefixNotApplied, match="prefix"):
        _draw(guard, LONG)
