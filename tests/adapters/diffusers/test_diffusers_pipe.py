"""The guard in front of pipelines of diffusers: same call, the picture of the prefix, nothing left open."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

from apl_guard import Guard, InvalidInput, ModelInvalid, PolicyBlocked, PrefixNotApplied, PrefixNotFound
from apl_guard.adapters.diffusers.load import load_pipe
from apl_guard.testing import random_prefix, tiny_pipe

LONG = "a photo of a man in a red shirt, " * 12


@pytest.fixture
def by_hand(shared_pipe, prefix, prompt_embeds_by_hand):
    """The picture of the bare pipe from prompt embeds that were computed by hand."""

    def call(prompts, **options):
        vectors = prefix.vectors["text_encoder"]
        embeds = prompt_embeds_by_hand(shared_pipe.text_encoder, shared_pipe.tokenizer, prompts, vectors)
        options = {"num_inference_steps": 2, "output_type": "pt"} | options
        return shared_pipe(prompt_embeds=embeds, generator=torch.Generator().manual_seed(0), **options).images

    return call


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("a photo of a man", {}),
        ("", {}),
        (LONG, {}),
        (["a cat", "a photo of Mara Voss", LONG], {}),
        (["a cat", "a dog"], {"num_images_per_prompt": 2}),
        ("a cat", {"negative_prompt": "a dog"}),
        (["a cat", LONG], {"negative_prompt": [LONG, "a dog"], "num_images_per_prompt": 2}),
        ("a cat", {"guidance_scale": 1.0}),
        ("a cat", {"output_type": "latent"}),
    ],
)
def test_the_picture_is_that_of_the_sequence_by_hand(guard, by_hand, draw, prompt, options):
    """Bit for bit, for single and batched prompts, several images, negative prompts, without guidance."""
    prompts = [prompt] if isinstance(prompt, str) else prompt

    expected = by_hand(prompts, **options)

    assert torch.equal(expected, draw(guard, prompt, **options))


def test_the_prefix_changes_the_picture(guard, shared_pipe, draw):
    """So the tests above do not compare two unguarded pictures."""
    assert not torch.equal(draw(guard, "a man"), draw(shared_pipe, "a man"))


@pytest.mark.parametrize("return_dict", [True, False])
def test_the_return_type_is_that_of_the_pipe(guard, shared_pipe, return_dict):
    """Pipeline output or tuple, as asked."""
    options = {"num_inference_steps": 1, "return_dict": return_dict}

    theirs, ours = shared_pipe("a man", **options), guard("a man", **options)

    assert type(theirs) is type(ours)
    assert type(theirs[0][0]) is type(ours[0][0])


def test_the_generator_is_consumed_as_without_a_guard(guard, shared_pipe):
    """After the call it is in the same state, so a sequence of pictures stays reproducible."""
    states = []
    for target in (shared_pipe, guard):
        generator = torch.Generator().manual_seed(5)
        target("a man", num_inference_steps=2, eta=0.5, generator=generator)
        states.append(generator.get_state())

    assert torch.equal(*states)


def test_the_pipe_is_the_same_after_the_call(guard, shared_pipe, draw):
    """Attributes, configuration, schedule and pictures of the bare pipe do not change."""
    before = draw(shared_pipe, "a man")
    attributes = dict(vars(shared_pipe))
    timesteps = shared_pipe.scheduler.timesteps.clone()
    config = dict(shared_pipe.config)

    draw(guard, ["a man", "a cat"], num_inference_steps=3, guidance_scale=2.0)

    assert attributes == dict(vars(shared_pipe))
    assert torch.equal(timesteps, shared_pipe.scheduler.timesteps)
    assert config == dict(shared_pipe.config)
    assert torch.equal(before, draw(shared_pipe, "a man"))


def test_positional_arguments_work_as_with_the_pipe(guard):
    """Prompt, height and width by position."""
    assert guard("a man", 16, 24, num_inference_steps=1).images[0].size == (24, 16)


@pytest.mark.parametrize(
    "argument",
    [
        {"prompt_embeds": torch.zeros(1, 77, 32)},
        {"negative_prompt_embeds": torch.zeros(1, 77, 32)},
        {"latents": torch.zeros(1, 4, 16, 16)},
        {"ip_adapter_image": torch.zeros(1, 3, 8, 8)},
        {"ip_adapter_image_embeds": [torch.zeros(1, 1, 8)]},
        {"callback_on_step_end": lambda *_: {}},
        {"callback": lambda *_: None, "callback_steps": 1},
        {"cross_attention_kwargs": {"scale": 0.5}},
        {"surprise": 1},
        {"prompt_3": "a man"},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_what_a_prefix_cannot_protect_is_blocked(guard, argument):
    """Every such argument, and every unknown one, with its name in the message."""
    prompt = None if "prompt_embeds" in argument else "a man"

    with pytest.raises(PolicyBlocked, match=r"prompt_embeds|latents|ip_adapter|callback|attention|unknown"):
        guard(prompt, num_inference_steps=1, **argument)


@pytest.mark.parametrize("prompt", [[], ["a", 1], [["a"]], 7, b"a", {"a": 1}, ("a", "b")])
def test_a_prompt_that_is_no_text_is_an_error(guard, prompt):
    """The error names the field."""
    with pytest.raises(InvalidInput, match="prompt"):
        guard(prompt)


def test_a_string_that_lies_is_read_once(guard, by_hand, draw):
    """A subclass of `str` counts as its plain content, whatever its methods say."""

    class Liar(str):
        def __str__(self):
            return "a harmless tree"

        def __format__(self, spec):
            return "a harmless tree"

    assert torch.equal(by_hand(["a man"]), draw(guard, Liar("a man")))


@pytest.mark.parametrize("name", ["encode_prompt", "unet", "text_encoder", "components", "vae", "_pipe", "__call"])
def test_what_could_generate_or_encode_is_out_of_reach(guard, name):
    """Reading such an attribute is an error, and so is setting it."""
    with pytest.raises(AttributeError, match=name):
        getattr(guard, name)
    with pytest.raises(AttributeError, match=name):
        setattr(guard, name, None)


def test_settings_are_within_reach(pipe, prefix):
    """Device, dtype, configuration and scheduler can be read, the scheduler set; `to` gives the guard."""
    guard = Guard(pipe, prefix=prefix)
    other = EulerDiscreteScheduler()

    guard.scheduler = other

    assert pipe.scheduler is other
    assert guard.scheduler is other
    assert guard.device == pipe.device
    assert guard.dtype == torch.float32
    assert guard.config == pipe.config
    assert guard.to("cpu") is guard


def test_threads_with_different_guards_on_one_pipe(shared_pipe, draw):
    """Guards with other prefixes and an unguarded caller at once get what each gets alone."""
    guards = [Guard(shared_pipe, prefix=random_prefix(shared_pipe, n=3 + i, seed=i)) for i in range(3)]
    alone = [draw(guard, "a man") for guard in guards]
    embeds_alone = shared_pipe.encode_prompt("a man", "cpu", 1, False)[0]

    def works(i):
        return all(torch.equal(alone[i], draw(guards[i], "a man")) for _ in range(3))

    with ThreadPoolExecutor(3) as pool, torch.no_grad():
        guarded = [pool.submit(works, i) for i in range(3)]
        while not all(each.done() for each in guarded):
            assert torch.equal(embeds_alone, shared_pipe.encode_prompt("a man", "cpu", 1, False)[0])
    assert [each.result() for each in guarded] == [True] * 3


def test_a_swapped_encoder_is_noticed(pipe, prefix):
    """The message holds both fingerprints."""
    guard = Guard(pipe, prefix=prefix)
    pipe.text_encoder = tiny_pipe(seed=1).text_encoder

    with pytest.raises(PrefixNotFound, match=prefix.metadata.fingerprints["text_encoder"].key) as caught:
        guard("a man")
    assert caught.value.fingerprint.key in str(caught.value)


def test_a_changed_weight_is_noticed(pipe, prefix):
    """Weights that are written to after wrapping have another fingerprint."""
    guard = Guard(pipe, prefix=prefix)
    guard("a man", num_inference_steps=1)
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight[3, 4] += 1

    with pytest.raises(PrefixNotFound):
        guard("a man")


def test_added_tokens_are_noticed(pipe, prefix):
    """A token added to the tokenizer may stand for a person."""
    guard = Guard(pipe, prefix=prefix)
    pipe.tokenizer.add_tokens(["<somebody>"])

    with pytest.raises(PrefixNotFound):
        guard("a man")


def test_adapter_weights_are_blocked(pipe, prefix):
    """LoRA layers in the UNet may hold a person."""
    guard = Guard(pipe, prefix=prefix)
    pipe.unet.register_parameter("lora_A_default", torch.nn.Parameter(torch.zeros(1)))

    with pytest.raises(PolicyBlocked, match="adapter_weights"):
        guard("a man")


class _Sidestepping(StableDiffusionPipeline):
    """Encodes with a copy of the tokens in which the prefix was dropped."""

    def encode_prompt(self, prompt, *args, **kwargs):
        return super().encode_prompt(prompt.split(" ", 1)[1], *args, **kwargs)


class _Shortening(StableDiffusionPipeline):
    """Calls its text encoder with a part of the row only."""

    def encode_prompt(self, prompt, *args, **kwargs):
        ids = self.tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids
        embeds = self.text_encoder(torch.cat([ids[:, :1], ids[:, 6:]], 1))[0]
        return embeds, embeds


@pytest.mark.parametrize("cls", [_Sidestepping, _Shortening])
def test_a_pipeline_that_drops_the_prefix_gives_no_picture(shared_pipe, prefix, cls):
    """The receipt shows that the encoder received no prefix, or a part of it."""
    pipe = cls(**shared_pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    guard = Guard(pipe, prefix=prefix)

    with pytest.raises(PrefixNotApplied):
        guard("a photo of a man", num_inference_steps=1)


class _Extended(StableDiffusionPipeline):
    """Takes a picture by a name that nobody knows."""

    def __call__(self, prompt, portrait=None, **kwargs):
        return super().__call__(prompt, **kwargs)


def test_a_pipeline_with_unknown_arguments_is_refused(shared_pipe, prefix):
    """The argument may be a channel, so the whole pipeline is refused by its name."""
    pipe = _Extended(**shared_pipe.components, requires_safety_checker=False)

    with pytest.raises(InvalidInput, match=r"_Extended.*portrait"):
        Guard(pipe, prefix=prefix)


def test_an_object_that_is_no_pipe_is_refused(prefix):
    """The message says what there are adapters for."""
    with pytest.raises(InvalidInput, match="diffusers"):
        Guard(object(), prefix=prefix)


class TestLoadPipe:
    """Opening models."""

    def test_a_saved_pipe_opens_with_the_same_fingerprint(self, shared_pipe, prefix, tmp_path, draw):
        """In float16 on disk it is the same text encoder."""
        tiny_pipe().to(torch.float16).save_pretrained(tmp_path / "model")

        loaded = load_pipe(tmp_path / "model")

        assert isinstance(loaded, StableDiffusionPipeline)
        Guard(loaded, prefix=prefix)

    def test_a_missing_folder(self, tmp_path):
        """The path is in the message."""
        with pytest.raises(ModelInvalid, match="nowhere"):
            load_pipe(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        "damage",
        [
            "model_index.json",
            "unet",
            "unet/config.json",
            "text_encoder/model.safetensors",
            "tokenizer",
            "cut",
        ],
    )
    def test_a_half_written_folder(self, shared_pipe, tmp_path, damage):
        """Whatever is missing or cut off, it is one typed error with the path."""
        folder = tmp_path / "model"
        shared_pipe.save_pretrained(folder)
        target = folder / ("unet/diffusion_pytorch_model.safetensors" if damage == "cut" else damage)
        if damage == "cut":
            target.write_bytes(target.read_bytes()[:-100])
        elif target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()

        with pytest.raises(ModelInvalid, match="model"):
            load_pipe(folder)

    def test_a_hub_id_while_offline(self):
        """The message says that the hub could not provide it."""
        with pytest.raises(ModelInvalid, match=r"nobody/nothing.*hub"):
            load_pipe("nobody/nothing")

    def test_a_model_of_the_hub_that_cannot_be_opened(self, shared_pipe, tmp_path):
        """The message names the file that is not there, for then neither id nor network is at fault."""
        cached = tmp_path / "models--somebody--model"
        shared_pipe.save_pretrained(cached / "snapshots" / "1", variant="fp16")
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("1")

        with pytest.raises(ModelInvalid, match=r"hub could not provide it \(.*no file named .*\.safetensors") as caught:
            load_pipe("somebody/model", cache_dir=tmp_path, local_files_only=True)

        assert "give its folder" in str(caught.value)
        load_pipe(cached / "snapshots" / "1")

    def test_a_checkpoint_of_one_file(self, tmp_path):
        """The message says how such a file becomes a folder."""
        (tmp_path / "v1-5.safetensors").write_bytes(b"weights")

        with pytest.raises(ModelInvalid, match=r"v1-5\.safetensors: a file; .*from_single_file.*save_pretrained"):
            load_pipe(tmp_path / "v1-5.safetensors")
