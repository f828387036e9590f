"""Pipelines that are asked through their own code: against families that were written out, and against the guard."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    FluxControlPipeline,
    UniPCMultistepScheduler,
)
from small_pipelines import NO_DENOISER, NO_FLOW, NO_GRADIENT, OTHERS, WRITTEN_OUT, permissive, small
from torch import Tensor
from torch.utils._pytree import tree_leaves

from apl_guard import Guard
from apl_guard.adapters.diffusers.adapter import DiffusersAdapter
from apl_guard.encoder.token_embedding import token_embedding
from apl_guard.errors import ConfigInvalid, ModelInvalid
from apl_guard.testing import FAMILIES, random_prefix, tiny_pipe, tiny_variant
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.flux import pack
from apl_guard.trainer.model.one_answer import first_answer
from apl_guard.trainer.model.pipeline import model_digest, open_pipe
from apl_guard.trainer.model.pipeline_code import PipelineCode

N = 4


def random_vectors(family: PipelineCode) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        slot: (0.05 * torch.randn(N, token_embedding(text_encoder).embedding_dim)).requires_grad_()
        for slot, (text_encoder, _) in family.parts.items()
    }


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_it_answers_as_the_families_that_are_written_out(name: str) -> None:
    """Answers and gradients are those of code that encodes prompts and calls the denoiser itself."""
    pipe = tiny_pipe(family=name)
    guidance = {} if name == "flux" else {"guidance_scale": 1.0}
    through = small(pipe, name, **guidance)
    written = family_of(pipe, through.config)
    assert type(written) is not PipelineCode
    vectors = random_vectors(through)
    prompts = ["a photo of Mara Voss", "a red car"]
    z, noise = torch.randn(2, 2, *written.shape)
    t = torch.tensor([100, 700])
    z_t = written.process.noised(z, noise, t)
    as_sampled = pack if name == "flux" else lambda latents: latents

    expected = as_sampled(written.predict(z_t, t, written.told(written.tokenize(prompts, N), vectors)))
    found = through.predict(as_sampled(z_t), t, through.told(through.tokenize(prompts, N), vectors))

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for learned in vectors.values():
        one, other = (
            torch.autograd.grad(answer.pow(2).mean(), learned, retain_graph=True)[0] for answer in (expected, found)
        )
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
    assert through.slots == written.slots
    levels = torch.arange(0, 1000, 7)
    torch.testing.assert_close(through.process.times(levels).float(), written.process.times(levels).float())
    torch.testing.assert_close(through.process.snr(levels), written.process.snr(levels))


@pytest.mark.parametrize("name", OTHERS)
def test_the_denoiser_is_told_what_the_guarded_pipeline_tells_it(name: str) -> None:
    """At the first step of a guarded call, bit for bit: latents, time, states, masks, whatever it takes. And gradients
    lead back to every text encoder's vectors."""
    pipe = tiny_pipe(family=name)
    family = small(pipe, name)
    vectors = random_vectors(family)
    prefix = random_prefix(pipe, n=N, slots=family.slots)
    for slot, own in prefix.vectors.items():
        vectors[slot] = own.clone().requires_grad_()
    told: list[list[Any]] = []
    hook = family.network.register_forward_pre_hook(
        lambda _, args, kwargs: told.append([*tree_leaves(args), *tree_leaves(kwargs)]), with_kwargs=True
    )

    # Told where a step ends, a flow map is asked for the whole way.
    steps = 1 if name == "flux_3_distilled" else 2

    def call() -> dict[str, Any]:
        return {"prompt": "a photo of Mara Voss", **family.call, "num_inference_steps": steps, "output_type": "latent"}

    seen = first_answer(
        pipe, DiffusersAdapter(pipe).read((), call() | {"generator": torch.Generator().manual_seed(3)}), {}
    )
    told.clear()
    Guard(pipe, prefix=prefix, policy=permissive(family.slots))(**call(), generator=torch.Generator().manual_seed(3))
    guarded = told[0]
    told.clear()
    time = seen.times[0]
    level = int((family.process.times(torch.arange(family.process.levels)) - time).abs().argmin())
    as_told = (part[:1] for part in guarded if isinstance(part, Tensor) and part.shape[1:] == family.shape)
    z_t = next(as_told, seen.sample).float()
    prompts = family.told(family.tokenize([call()["prompt"]], N), vectors)
    answer = family.predict(z_t, torch.tensor([level]), prompts)
    hook.remove()

    assert len(told[0]) == len(guarded)
    for ours, theirs in zip(told[0], guarded, strict=True):
        if isinstance(theirs, Tensor):
            torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=0)
        elif isinstance(theirs, int | float | str | None):
            assert ours == theirs
    answer.pow(2).mean().backward()
    assert all(bool((learned.grad != 0).any()) for learned in vectors.values())


@pytest.mark.parametrize("name", ["stable_diffusion", "sana", "qwen_image", "flux_2"])
def test_what_it_draws_is_learned_from_as_the_scheduler_leaves_it(name: str) -> None:
    """Clean latents are those of the last step, several prompts at once, and of the shape of noise."""
    pipe = tiny_pipe(family=name)
    family = small(pipe, name)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    last: list[Tensor] = []
    step = pipe.scheduler.step

    def noted(*args: Any, **options: Any) -> Any:
        output = step(*args, **options)
        last.append(output[0])
        return output

    pipe.scheduler.step = noted
    found = family.draw_latents(["a cat", "a dog"], 2, generators)
    del pipe.scheduler.step
    # The view's scheduler is a copy, whose step is that of its class.
    assert not last
    assert found.shape == (2, *family.shape)
    if name in ("stable_diffusion", "sana"):  # others unpack what they hand out
        again = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        options = {"num_inference_steps": 2, "output_type": "latent", "generator": again}
        assert torch.equal(found, pipe(["a cat", "a dog"], **family.call, **options).images)


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_solvers_that_count_as_a_flow_does_are_known(scheduler: Any) -> None:
    """Sana and others are published with them: the levels are those of a flow that is shifted as they say."""
    pipe = tiny_pipe(family="sana")
    pipe.scheduler = scheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    process = small(pipe, "sana").process

    u = torch.arange(1, 1001) / 1000
    _, sigma = process.shares(torch.arange(1000), u)
    torch.testing.assert_close(sigma, 3 * u / (1 + 2 * u), rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_a_pipeline_that_lets_no_gradient_through_is_refused(name: str) -> None:
    """Before anything is drawn, rather than that nothing is learned."""
    with pytest.raises(ModelInvalid, match=r"no gradient through from its text encoder"):
        assert small(tiny_pipe(family=name), name).slots


@pytest.mark.parametrize("name", NO_FLOW)
def test_a_pipeline_whose_noise_is_added_otherwise_is_refused(name: str) -> None:
    """Cosmos has the scheduler of a flow, and lets noise grow without taking the picture away."""
    with pytest.raises(ModelInvalid, match=r"σ of its noise levels goes up to [\d.]+, and that of a flow to 1"):
        assert small(tiny_pipe(family=name), name).slots


@pytest.mark.parametrize("name", NO_DENOISER)
def test_a_pipeline_of_several_models_is_refused_by_name(name: str) -> None:
    """With what is expected."""
    pipe = tiny_pipe(family=name)
    with pytest.raises(ModelInvalid, match=f"{type(pipe).__name__} .*; expected a text-to-image pipeline"):
        open_pipe(pipe)


def test_a_pipeline_that_draws_from_a_picture_is_refused_at_the_first_call() -> None:
    """Its class is named, and what it raised."""
    parts = {name: part for name, part in tiny_pipe(family="flux").components.items() if part is not None}
    pipe = FluxControlPipeline(**parts)
    with pytest.raises(ModelInvalid, match=r"FluxControlPipeline: its pipeline draws nothing from a prompt alone \("):
        assert small(pipe, "flux").slots


def test_the_digest_of_a_model_is_of_all_that_draws_and_takes_no_pass() -> None:
    """So it is the same for all options of a run, and costs none of its time."""
    pipe = tiny_pipe(family="z_image")
    before = model_digest(pipe)
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("it was asked"))

    assert model_digest(pipe) == before
    with torch.no_grad():
        next(pipe.text_encoder.parameters()).add_(1.0)
    assert model_digest(pipe) != before


def test_perturbed_attention_leaves_the_denoiser_as_it_was() -> None:
    """Its pipeline puts other attention into the denoiser, and is ended before it puts its own back."""
    pipe = tiny_variant(tiny_pipe(family="kolors"), "KolorsPAGPipeline")
    family = small(pipe, "kolors")
    before = dict(pipe.unet.attn_processors)

    vectors = random_vectors(family)
    z_t, t = torch.randn(1, *family.shape), torch.tensor([500])
    answers = [family.predict(z_t, t, family.told(family.tokenize(["a cat"], N), vectors)) for _ in range(2)]

    assert pipe.unet.attn_processors == before
    assert torch.equal(*answers)


def test_a_cache_of_the_denoiser_is_empty_for_each_answer() -> None:
    """A model that leaves out work where a step before allows it is asked about noise levels in no order."""
    pipe = tiny_pipe(family="flux")
    family = small(pipe, "flux")
    vectors = random_vectors(family)
    z, t = torch.randn(2, *family.shape), torch.tensor([500, 500])
    prompts = family.told(family.tokenize(["a cat", "a dog in the rain"], N), vectors)
    expected = family.predict(z, t, prompts)

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))

    torch.testing.assert_close(family.predict(z, t, prompts), expected)


def test_a_model_that_does_not_fit_into_memory_is_no_model_of_another_kind() -> None:
    """What the GPU says arrives, and nothing about prompts."""
    pipe = tiny_pipe(family="qwen_image")

    def grow(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    pipe.transformer.register_forward_pre_hook(grow, prepend=True)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"^CUDA out of memory$"):
        assert small(pipe, "qwen_image").slots


@pytest.mark.parametrize(("name", "scale"), [("flux_3", 7.0), ("flux_3_distilled", 0.0)])
def test_the_guidance_of_a_pipeline_of_blocks_is_that_of_its_guider(name: str, scale: float) -> None:
    """It is no argument of a call; what was drawn with another scale is not taken for what this one draws."""
    if not hasattr(diffusers, FAMILIES[name].pipeline):
        pytest.skip("this diffusers has no Flux.3")
    pipe = tiny_pipe(family=name)
    if name == "flux_3":
        pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=scale))

    assert small(pipe, name).guidance == scale
    with pytest.raises(ConfigInvalid, match=r"guidance_scale: Flux3.*Pipeline takes none"):
        small(pipe, name, guidance_scale=2.0)


@pytest.mark.filterwarnings("error:Accessing config attribute")
@pytest.mark.parametrize(("name", "side"), [("prx", 512), ("prx_pixel", 1024)])
def test_the_side_of_the_pictures_of_prx_is_that_of_its_pipeline(name: str, side: int) -> None:
    """It is in the configuration, in pixels."""
    if not hasattr(diffusers, FAMILIES[name].pipeline):
        pytest.skip(f"this diffusers has no {name}")

    assert PipelineCode(tiny_pipe(family=name), TrainConfig()).side == side


def test_a_guidance_for_each_step_is_that_of_the_first_in_any_number_of_steps() -> None:
    """Ideogram 4 is called with as many as it takes by default, unless one scale is given for all."""
    if not hasattr(diffusers, "Ideogram4Pipeline"):
        pytest.skip("this diffusers has no Ideogram 4")
    family = PipelineCode(tiny_pipe(family="ideogram_4"), TrainConfig())

    assert family.guidance == family.guidance_of_protocol(5.0) == 7.0
    assert family.guided(7.0) == {"guidance_scale": 7.0, "guidance_schedule": None, "prompt_upsampling": False}
    asked = PipelineCode(tiny_pipe(family="ideogram_4"), TrainConfig(guidance_scale=2.0))
    assert asked.call["guidance_scale"] == asked.guidance == 2.0


def test_a_scheduler_that_counts_otherwise_is_refused() -> None:
    """Its name, and what is expected."""
    pipe = tiny_pipe(family="kolors")
    pipe.scheduler = EulerDiscreteScheduler(prediction_type="sample")
    with pytest.raises(ModelInvalid, match="EulerDiscreteScheduler does not say where the noise levels"):
        open_pipe(pipe)


def test_a_denoiser_that_cannot_compute_activations_again_is_refused() -> None:
    """By name, where that is asked for."""
    family = PipelineCode(tiny_pipe(family="lumina"), TrainConfig())
    with (
        pytest.raises(ConfigInvalid, match="gradient_checkpointing: LuminaNextDiT2DModel cannot"),
        family.checkpointing(),
    ):
        pass


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("qwen_image", {"adversarial": 2}, "adversarial: there are no attacks in the loop for QwenImagePipeline"),
        ("chroma", {"picture_size": 33}, "picture_size: found 33"),
        ("kolors", {"guidance_scale": 2.0, "max_sequence_length": 8192 // 16}, None),
        ("lumina", {"max_sequence_length": 8}, None),
        ("stable_diffusion", {"max_sequence_length": 8}, "max_sequence_length: StableDiffusionPipeline takes none"),
    ],
)
def test_options_that_a_pipeline_does_not_take_are_refused(
    family: str, options: dict[str, Any], message: str | None
) -> None:
    """Before anything is drawn."""
    pipe = tiny_pipe(family=family)
    if message is None:
        assert PipelineCode(pipe, TrainConfig(**options)).call.items() >= options.items()
        return
    with pytest.raises(ConfigInvalid, match=message):
        PipelineCode(pipe, TrainConfig(**options))
