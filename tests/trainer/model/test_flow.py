"""Models that learned a flow: noise, noise levels, and what their transformer is told, against diffusers itself."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxTransformer2DModel,
    StableDiffusion3Img2ImgPipeline,
)

from apl_guard import Guard
from apl_guard.errors import ConfigInvalid, ModelInvalid
from apl_guard.testing import random_prefix, tiny_pipe
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.diffusion import FlowMatching, NoisePrediction, Process, VelocityPrediction
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.pipeline import model_digest, open_pipe

N = 4
CONFIG = TrainConfig(precision="float32", picture_size=32, max_sequence_length=24)
PROMPTS = ["a photo of a man", "two dogs in the rain, and a lamp", "", "a man in the rain " * 40]
CALL = {"num_inference_steps": 3, "guidance_scale": 1.0, "height": 32, "width": 32}
PARTS = ("encoder_hidden_states", "pooled_projections")


def static(pipe: Any) -> Any:
    """With the noise levels of SD3."""
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return pipe


def dynamic(pipe: Any) -> Any:
    """With noise levels that depend on the size of the picture, as in Flux.1 [dev]."""
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    return pipe


def without_t5() -> Any:
    """SD3 as it is opened where memory is short."""
    pipe = tiny_pipe(family="stable_diffusion_3")
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    return pipe


def dev() -> Any:
    """Flux.1 [dev]: it is told how strongly it guides itself."""
    pipe = dynamic(tiny_pipe(family="flux"))
    torch.manual_seed(0)
    pipe.register_modules(
        transformer=FluxTransformer2DModel.from_config(pipe.transformer.config, guidance_embeds=True).eval()
    )
    return pipe


MAKE = {
    "sd3": lambda: static(tiny_pipe(family="stable_diffusion_3")),
    "sd3 dynamic": lambda: dynamic(tiny_pipe(family="stable_diffusion_3")),
    "sd3 without t5": lambda: static(without_t5()),
    "flux dev": dev,
    "flux schnell": lambda: tiny_pipe(family="flux"),
}


@pytest.fixture(name="pipe", scope="module", params=MAKE)
def _pipe(request: pytest.FixtureRequest) -> Any:
    pipe = MAKE[request.param]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def told(pipe: Any, draw: Any, **options: Any) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """What the transformer of a pipe is told in each step, and what it answers."""
    seen: list[tuple[dict[str, Any], torch.Tensor]] = []

    def look(_: Any, positional: Any, keywords: dict[str, Any], output: Any) -> None:
        seen.append((keywords, output[0].detach()))

    hook = pipe.transformer.register_forward_hook(look, with_kwargs=True)
    try:
        draw(PROMPTS, **CALL, **options)
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("is_guarded", [False, True])
@pytest.mark.parametrize("length", [None, 24])
def test_the_transformer_is_told_in_training_what_the_pipeline_tells_it(
    pipe: Any, is_guarded: bool, length: int | None
) -> None:
    """The same bits: states, pooled vector, time and whatever else, of short, empty and over-long prompts, with the
    prefix and without; so it answers the same bits, in each step."""
    takes_guidance = pipe.transformer.config.get("guidance_embeds", True)
    config = CONFIG.model_copy(
        update={"max_sequence_length": length, "guidance_scale": 1.0 if takes_guidance else None}
    )
    prefix = random_prefix(pipe, n=N)
    family = family_of(pipe, config)
    P = torch.cat([prefix.vectors[slot] for slot in family.slots], dim=1) if is_guarded else None
    options = {} if length is None else {"max_sequence_length": length}
    steps = told(pipe, Guard(pipe, prefix=prefix) if is_guarded else pipe, **options)
    times = family.process.times(torch.arange(1000))

    with torch.no_grad():
        c = family.embed(family.tokenize(PROMPTS, N if is_guarded else 0), P)

    assert len(steps) == 3
    for keywords, _ in steps:
        assert torch.equal(c.hidden, keywords["encoder_hidden_states"])
        assert torch.equal(c.pooled, keywords["pooled_projections"])
    keywords, answer = steps[0]
    t = torch.full((len(PROMPTS),), 999)
    mine: dict[str, Any] = {}
    hook = pipe.transformer.register_forward_pre_hook(lambda *a: mine.update(a[2]), with_kwargs=True)
    with torch.no_grad():
        said = family.predict(family.drawn(keywords["hidden_states"]), t, c)
    hook.remove()
    assert torch.equal(said, family.drawn(answer))
    for name, value in keywords.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(mine[name], value), name
    assert mine.keys() >= {name for name, value in keywords.items() if isinstance(value, torch.Tensor)}
    assert times[-1] == 1000


def test_the_noise_levels_are_those_that_the_pipeline_visits(pipe: Any) -> None:
    """Each step of a drawing is at a level of training, within the distance between two of them."""
    family = family_of(pipe, CONFIG)
    times = family.process.times(torch.arange(family.process.levels))
    told(pipe, pipe)  # sets the times of three steps

    assert times[-1] == 1000
    assert (times.diff() > 0).all()
    for time in pipe.scheduler.timesteps:
        nearest = (times - time).abs().argmin()
        assert (times[nearest] - time).abs() <= times.diff().max(), "beside the levels"


@pytest.mark.parametrize(
    ("model", "squares", "shift"),
    [("sd3", 256, 3.0), ("sd3", 1024, 3.0), ("flux dev", 256, math.exp(0.5)), ("flux dev", 4096, math.exp(1.15))],
)
def test_levels_are_moved_towards_the_noise_as_published(model: str, squares: int, shift: float) -> None:
    """SD3 by 3 for every size, Flux.1 [dev] by e^0.5 for 256 squares and by e^1.15 for 4,096, in numbers."""
    pipe = MAKE[model]()
    side = math.isqrt(squares) * 2 * pipe.vae_scale_factor

    process = family_of(pipe, CONFIG.model_copy(update={"picture_size": side})).process

    t = torch.tensor([0, 499, 999])
    u = (t + 1) / 1000
    _, sigma = process.shares(t, torch.empty(0))
    torch.testing.assert_close(sigma, shift * u / (1 + (shift - 1) * u), rtol=1e-5, atol=0)


def test_levels_do_not_depend_on_what_was_drawn_before(pipe: Any) -> None:
    """A scheduler keeps the few levels of the last drawing, of which training must not know."""
    before = family_of(pipe, CONFIG).process.times(torch.arange(1000))
    told(pipe, pipe)

    assert torch.equal(family_of(pipe, CONFIG).process.times(torch.arange(1000)), before)


def test_noise_is_added_and_taken_away_as_diffusers_does_it() -> None:
    """Noised latents are those of its scheduler, bit for bit, and a step of it along the truth ends in the picture."""
    pipe = MAKE["sd3"]()
    process = family_of(pipe, CONFIG).process
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    rng = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(5, 4, 2, 2, generator=rng) for _ in range(2))
    t = torch.tensor([0, 1, 300, 998, 999])
    times = scheduler.timesteps.flip(0)[t]

    assert torch.equal(process.times(t), times)
    z_t = process.noised(z, eps, t)
    assert torch.equal(z_t, scheduler.scale_noise(z, times, eps))
    for k in range(len(t)):
        scheduler.set_timesteps(sigmas=[float(_unshifted(times[k] / 1000, 3.0))])
        end = scheduler.step(process.truth(z, eps, t)[k : k + 1], scheduler.timesteps[0], z_t[k : k + 1]).prev_sample
        torch.testing.assert_close(end, z[k : k + 1], rtol=1e-4, atol=1e-5)


def _unshifted(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    return sigma / (shift - (shift - 1) * sigma)


ALPHAS = torch.linspace(0.999, 0.01, 100)
PROCESSES = [NoisePrediction(ALPHAS), VelocityPrediction(ALPHAS), FlowMatching(torch.linspace(0.01, 0.99, 100))]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_two_pictures_behind_one_noised_one_are_as_far_apart_as_the_weight_takes_them_to_be(process: Process) -> None:
    """‖Δ of the truths‖² / ‖Δz‖² at a fixed z_t, and min-SNR is min(SNR, 5) of ‖Δz‖² whatever a model says."""
    rng = torch.Generator().manual_seed(0)
    z, other, eps = (torch.randn(100, 1, 2, 2, generator=rng, dtype=torch.float64) for _ in range(3))
    t = torch.arange(100)
    a, b = (share.double().view(-1, 1, 1, 1) for share in process.shares(t, z))
    other_eps = (process.noised(z, eps, t) - a * other) / b

    distance = (process.truth(z, eps, t) - process.truth(other, other_eps, t)).pow(2).mean(dim=(1, 2, 3))
    of_pictures = (z - other).pow(2).mean(dim=(1, 2, 3))

    torch.testing.assert_close((distance / of_pictures).float(), process.stretch(t).float(), rtol=1e-3, atol=0)
    snr = ((a / b) ** 2).flatten()
    wanted = snr.clamp(max=5) * of_pictures
    torch.testing.assert_close(process.weight(t, "min_snr") * distance, wanted, rtol=1e-3, atol=0, check_dtype=False)


def test_gradients_reach_the_vectors_of_every_text_encoder_and_no_weight(pipe: Any) -> None:
    """Each column of the prefix changes what the transformer answers."""
    family = family_of(pipe, CONFIG)
    P = torch.randn(N, sum(family.widths.values()), requires_grad=True)
    z_t, t = torch.randn(2, *family.shape), torch.tensor([500, 500])

    said = family.predict(z_t, t, family.embed(family.tokenize(PROMPTS[:2], N), P))
    torch.autograd.backward(said.pow(2).sum(), inputs=[P])

    assert P.grad is not None
    assert {slot: bool(part.abs().sum() > 0) for slot, part in family.split(P.grad).items()} == dict.fromkeys(
        family.slots, True
    )


def test_pictures_become_the_latents_that_the_pipeline_makes_pictures_of(pipe: Any) -> None:
    """Shift and scale of the autoencoder are undone by what the pipeline does before it decodes."""
    family = family_of(pipe, CONFIG)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    config = pipe.vae.config
    assert config.shift_factor != 0

    z = family.latents_of(pixels)

    assert z.shape == (2, *family.shape)
    with torch.no_grad():
        mean = pipe.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(z / config.scaling_factor + config.shift_factor, mean)


def test_what_it_draws_to_learn_on_is_what_the_pipeline_makes_pictures_of(pipe: Any) -> None:
    """Latents that are kept for training, decoded by hand, are the pictures that the pipe draws from the same seeds."""
    family = family_of(pipe, CONFIG)
    draw = {**family.call, "num_inference_steps": 2}

    def seeds() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(k) for k in range(2)]

    latents = family.drawn(pipe(PROMPTS[:2], generator=seeds(), output_type="latent", **draw).images)
    pictures = pipe(PROMPTS[:2], generator=seeds(), output_type="pt", **draw).images

    assert latents.shape == (2, *family.shape)
    config = pipe.vae.config
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), pictures)


@pytest.mark.parametrize(
    "scheduler", [FlowMatchHeunDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(invert_sigmas=True)]
)
def test_other_noise_levels_are_refused(pipe: Any, scheduler: Any) -> None:
    """A scheduler of which training cannot tell the levels, and one that counts them the other way round."""
    other = copy.copy(pipe)
    other.scheduler = scheduler

    with pytest.raises(ModelInvalid, match=f"{type(scheduler).__name__} with other noise levels"):
        open_pipe(other)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer_2", "transformer"])
def test_a_pipeline_that_lacks_a_part_is_refused_by_name(pipe: Any, part: str) -> None:
    """Only T5 may be missing, and only from SD3."""
    other = copy.copy(pipe)
    setattr(other, part, None)

    with pytest.raises(ModelInvalid, match=f"has no {part}; expected a text-to-image pipeline"):
        open_pipe(other)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("stable_diffusion_3", {"picture_size": 33}, "found 33; expected a multiple of 2 pixels"),
        ("stable_diffusion_3", {"picture_size": 8192}, "draws at most"),
        ("flux", {"picture_size": 34}, "found 34; expected a multiple of 4 pixels"),
    ],
)
def test_sizes_that_the_model_cannot_draw_are_refused(family: str, options: dict[str, Any], message: str) -> None:
    """Before anything is drawn."""
    with pytest.raises(ConfigInvalid, match=f"picture_size: .*{message}"):
        family_of(tiny_pipe(family=family), TrainConfig(**options))


@pytest.mark.parametrize("other", [FluxImg2ImgPipeline, StableDiffusion3Img2ImgPipeline])
def test_relatives_that_draw_from_a_picture_are_refused(other: Any) -> None:
    """By name of their class, and with what is expected."""
    parts = tiny_pipe(family="flux" if "Flux" in other.__name__ else "stable_diffusion_3").components

    with pytest.raises(ModelInvalid, match=f"{other.__name__} draws from an image; expected a text-to-image pipeline"):
        open_pipe(other(**{name: part for name, part in parts.items() if part is not None}))


def test_a_transformer_of_other_channels_is_refused() -> None:
    """Of inpainting, say, which sees a picture beside its latents."""
    pipe = tiny_pipe(family="flux")
    pipe.register_modules(transformer=FluxTransformer2DModel.from_config(pipe.transformer.config, in_channels=32))

    with pytest.raises(ModelInvalid, match="takes 32 channels, squares of its images have 16"):
        open_pipe(pipe)


def test_a_model_that_is_not_told_how_strongly_to_guide_takes_no_guidance() -> None:
    """An option that nothing would read is refused; by itself [dev] is told what its pipeline takes."""
    with pytest.raises(ConfigInvalid, match=r"guidance_scale: .*takes no guidance"):
        family_of(tiny_pipe(family="flux"), TrainConfig(guidance_scale=3.5))
    assert (family_of(dev()).guidance, family_of(dev(), TrainConfig(guidance_scale=2)).guidance) == (3.5, 2.0)


def test_a_model_without_t5_takes_no_length_for_it() -> None:
    """An option that nothing would read is refused."""
    with pytest.raises(ConfigInvalid, match=r"max_sequence_length: .*has none"):
        family_of(tiny_pipe(), TrainConfig(max_sequence_length=24))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_transformer_alone_is_opened_in_what_it_computes_in(precision: Any, tmp_path: Path) -> None:
    """Text encoders stay what their fingerprints are of, whatever the format of the folder."""
    tiny_pipe(family="stable_diffusion_3").to(torch.bfloat16).save_pretrained(tmp_path)

    pipe = open_pipe(tmp_path, torch.device("cpu"), precision)

    assert pipe.transformer.dtype == getattr(torch, precision)
    others = (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3, pipe.vae)
    assert {weight.dtype for part in others for weight in part.parameters()} == {torch.float32}


def test_every_part_decides_which_model_it_is(pipe: Any) -> None:
    """Pictures of a model with T5 are not taken for those of the model without it, nor of another transformer's."""
    found = [model_digest(pipe)]
    for slot in family_of(pipe).slots:
        other = copy.copy(pipe)
        setattr(other, slot, copy.deepcopy(getattr(pipe, slot)))
        with torch.no_grad():
            next(getattr(other, slot).parameters()).add_(1e-3)
        found.append(model_digest(other))
    found.append(model_digest(without_t5()) if "text_encoder_3" in family_of(pipe).slots else "")

    assert len(set(found)) == len(found)
