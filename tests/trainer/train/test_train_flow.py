"""Training on models that learned a flow: one prefix, with vectors for CLIP and for T5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from names_and_prompts import GENERIC, NAMES
from packaging.version import Version
from PIL import Image
from short_runs import StopError, stopping_at, train_folder

from apl_guard import Guard
from apl_guard.encoder.fingerprint import fingerprint
from apl_guard.encoder.token_embedding import token_embedding
from apl_guard.errors import ModelInvalid, PrefixNotFound
from apl_guard.prefix import Prefix
from apl_guard.registry import PrefixRegistry
from apl_guard.testing import tiny_pipe
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.examples import prepare
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.train import TrainResult, train
from apl_guard.trainer.train.plan import make_plan
from apl_guard.trainer.train.start import start_vectors

DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.41") else "torch_dtype"
WIDTHS = {
    "sd3": {"text_encoder": 32, "text_encoder_2": 32, "text_encoder_3": 64},
    "flux dev": {"text_encoder": 32, "text_encoder_2": 32},
}


def make(family: str) -> Any:
    """A small pipe of it."""
    pipe = tiny_pipe(family="flux" if "flux" in family else "stable_diffusion_3")
    if family == "flux dev":
        torch.manual_seed(0)
        config = pipe.transformer.config
        guided = FluxTransformer2DModel.from_config(config, guidance_embeds=True).eval()
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
        pipe.register_modules(transformer=guided, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(name="family", scope="module", params=WIDTHS)
def _family(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(name="pipe", scope="module")
def _pipe(family: str) -> Any:
    return make(family)


@pytest.fixture(name="config", scope="module")
def _config(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"keep": "last", "picture_size": 32, "max_sequence_length": 24})


def run(pipe: Any, people: Identities, config: TrainConfig, output: Path) -> TrainResult:
    return train(config, pipe, people, GENERIC, output, progress=False)


def networks_of(pipe: Any) -> list[Any]:
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def test_every_text_encoder_gets_vectors_that_learn_and_the_guard_finds_them(
    family: str,
    pipe: Any,
    people: Identities,
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The folder holds vectors of the right width for each slot; the guard finds it by the fingerprints and draws with
    all of them in place. No weight has changed, and none was given a gradient."""
    before = [weight.clone() for network in networks_of(pipe) for weight in network.state_dict().values()]
    given: list[str] = []
    hooks = [
        weight.register_hook(lambda *_, name=name: given.append(name))
        for network in networks_of(pipe)
        for name, weight in network.named_parameters()
    ]

    result = run(pipe, people, config, tmp_path / "mine")

    for hook in hooks:
        hook.remove()
    after = [weight for network in networks_of(pipe) for weight in network.state_dict().values()]
    assert all(torch.equal(*pair) for pair in zip(after, before, strict=True))
    weights = [weight for network in networks_of(pipe) for weight in network.parameters()]
    assert not given
    assert all(weight.grad is None and weight.requires_grad for weight in weights)
    prefix = Prefix.load(tmp_path / "mine")
    assert prefix.metadata.widths == WIDTHS[family]
    assert {slot: tuple(v.shape) for slot, v in prefix.vectors.items()} == {
        s: (3, w) for s, w in WIDTHS[family].items()
    }
    model = family_of(pipe, config)
    assert prefix.metadata.fingerprints == {slot: fingerprint(*part) for slot, part in model.parts.items()}
    start = model.split(start_vectors(pipe, config))
    for slot, vectors in model.split(result.vectors).items():
        assert torch.equal(prefix.vectors[slot], vectors)
        assert (vectors != start[slot]).any(0).float().mean() > 0.9, f"columns of {slot} did not move"
    monkeypatch.setenv("APL_GUARD_REGISTRY", str(tmp_path / "registry"))
    PrefixRegistry().register(tmp_path / "mine")
    outcome = Guard(pipe).generate("a photo of Ada Lum", num_inference_steps=1, height=32, width=32).outcome
    assert (outcome.protection, outcome.slots_without_prefix) == ("applied", ())
    assert outcome.prefix_rows == dict.fromkeys(WIDTHS[family], (3,))
    assert (tmp_path / "mine" / "before_and_after.png").stat().st_size > 1000
    assert "has the text encoders below" in (tmp_path / "mine" / "card.md").read_text()


@pytest.fixture(name="learned", scope="module")
def _learned(pipe: Any, people: Identities, config: TrainConfig, tmp_path_factory: Any) -> TrainResult:
    """Of people alone, for long enough."""
    longer = {"steps": 40, "lr": 3e-2, "eval_every": 40, "identity_batch": 8, "held_aside_identities": 0}
    longer |= {"generic_weight": 0.0, "generic_weight_end": 0.0}
    return run(pipe, people, config.model_copy(update=longer), tmp_path_factory.mktemp("learned") / "mine")


def test_it_comes_nearer_to_the_neutral_prompt(learned: TrainResult) -> None:
    """The loss falls, and more of the gap is closed, on noise that no step saw."""
    lines = [json.loads(line) for line in (learned.folder / "history.jsonl").read_text().splitlines()]
    gaps = [line["gap_closed"] for line in lines if "gap_closed" in line]
    losses = [line["identity"] for line in lines if "identity" in line]
    assert len(gaps) == 2
    assert gaps[-1] > gaps[0] + 0.2
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_the_guarded_pipeline_answers_as_the_neutral_prompt_does(pipe: Any, learned: TrainResult) -> None:
    """What was learned is what acts: in the pipeline itself, the guarded answer to a name is nearer to the plain answer
    to what stands for it than the plain answer to the name is."""
    prefix = Prefix.load(learned.folder)
    answers: list[torch.Tensor] = []
    hook = pipe.transformer.register_forward_hook(lambda *a: answers.append(a[2][0].detach()))
    guidance = 3.5 if pipe.transformer.config.get("guidance_embeds") else 1.0
    options = {"guidance_scale": guidance, "height": 32, "width": 32, "max_sequence_length": 24}
    options["num_inference_steps"] = 4

    def answer(call: Any, name: str) -> torch.Tensor:
        answers.clear()
        texts = [f"a photo of {name}"] * 4
        call(texts, generator=[torch.Generator().manual_seed(seed) for seed in range(4)], **options)
        return answers[0]

    named, neutral = answer(pipe, NAMES[0]), answer(pipe, "a man")
    guarded = answer(Guard(pipe, prefix=prefix), NAMES[0])
    hook.remove()

    assert (guarded - neutral).pow(2).mean() < 0.5 * (named - neutral).pow(2).mean()


def test_a_stopped_run_goes_on_to_the_same_bits(
    family: str, people: Identities, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at each of its steps it ends as one that was never stopped, though T5 is learned in other units."""
    pipe = make(family)
    enlarge_t5(pipe, 7.0)
    config = config.model_copy(update={"checkpoint_every": 1, "ema_decay": 0.5, "hard_identities": 1.0})
    whole = run(pipe, people, config, tmp_path / "whole").vectors

    from apl_guard.trainer.train import run as module

    for step in range(1, config.steps):
        with monkeypatch.context() as patch:
            patch.setattr(module, "save_state", stopping_at(step, module.save_state))
            with pytest.raises(StopError):
                run(pipe, people, config, tmp_path / "stopped")
    stopped = run(pipe, people, config, tmp_path / "stopped").vectors

    assert torch.equal(whole, stopped)


def enlarge_t5(pipe: Any, factor: float) -> None:
    """Make token embeddings of T5 larger than those of CLIP; its first layer divides by their size."""
    t5 = next(part for part in networks_of(pipe) if type(part).__name__ == "T5EncoderModel")
    with torch.no_grad():
        token_embedding(t5).weight.mul_(factor)


def test_steps_are_as_large_as_the_token_embeddings_of_each_text_encoder(
    family: str, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """Where T5 has eight times as large embeddings as CLIP, its vectors move eight times as far in a step of Adam."""
    pipe = make(family)
    enlarge_t5(pipe, 8.0)
    once = config.model_copy(update={"steps": 1, "warmup_steps": 0, "lr": 1e-3})

    vectors = run(pipe, people, once, tmp_path / "mine").vectors

    moved = family_of(pipe, once).split((vectors - start_vectors(pipe, once)).abs())
    *clips, t5 = (float(part.median()) for part in moved.values())
    assert clips == pytest.approx([1e-3] * len(clips), rel=0.01)
    assert t5 == pytest.approx(8e-3, rel=0.01)


def test_attacks_in_the_loop_reach_every_text_encoder(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """`adversarial` steps give another prefix for each of them."""
    plain, hardened = (
        run(pipe, people, config.model_copy(update={"adversarial": steps}), tmp_path / str(steps)).vectors
        for steps in (0, 2)
    )
    split = family_of(pipe, config).split
    for slot, vectors in split(plain).items():
        assert not torch.equal(vectors, split(hardened)[slot])


def test_gradient_checkpointing_computes_the_transformer_and_t5_again(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """Their blocks start once more in each step, the prefix is the same, and all is as it was afterwards."""
    t5 = next(part for part in networks_of(pipe) if type(part).__name__ == "T5EncoderModel")
    counts: dict[str, int] = {}

    def count(name: str) -> Any:
        return lambda *_: counts.__setitem__(name, counts.get(name, 0) + 1)

    watched = {"t5": t5.encoder.block[1].layer[0], "transformer": pipe.transformer.transformer_blocks[0].attn}
    run(pipe, people, config, tmp_path / "before")  # draws the images, which are kept
    hooks = [module.register_forward_pre_hook(count(name)) for name, module in watched.items()]
    results = []
    for k, on in enumerate((False, True)):
        counts.clear()
        changed = config.model_copy(update={"gradient_checkpointing": on})
        vectors = run(pipe, people, changed, tmp_path / f"prefix{k}").vectors
        results.append((dict(counts), vectors))
    for hook in hooks:
        hook.remove()

    for name in watched:
        assert results[1][0][name] == results[0][0][name] + config.steps, name
    torch.testing.assert_close(results[1][1], results[0][1])
    assert all("forward" not in block.__dict__ for block in t5.encoder.block)
    assert not pipe.transformer.is_gradient_checkpointing


def test_length_and_guidance_decide_the_prefix(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """Other options of the pipeline's call, another prefix."""
    found = [
        run(pipe, people, config.model_copy(update=change), tmp_path / str(k)).vectors
        for k, change in enumerate(({}, {"max_sequence_length": 32}, {"guidance_scale": 1.5}))
    ]

    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_own_pictures_are_learned_on_too(pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path) -> None:
    """Latents of a folder's pictures stand beside those that the model drew, in one shape."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(4):
        Image.effect_noise((50, 40), 80 + k).convert("RGB").save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"a photo of a thing {k}")

    data = prepare(pipe, config, people, folder, progress=False)

    assert data.generic.latents.shape[1:] == data.identity.latents.shape[1:] == (4, 16, 16)
    assert data.generic.latents.std() > 0


def test_a_pass_in_bfloat16_learns_too(family: str, people: Identities, config: TrainConfig, tmp_path: Path) -> None:
    """A folder is opened with its transformer in bfloat16, drawn from and learned on; the prefix is for the published
    text encoders, and fits the pipe of who opens the folder in its own format."""
    make(family).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    config = config.model_copy(update={"precision": "bfloat16", "device": "cpu"})

    result = train(config, tmp_path / "model", people, GENERIC, tmp_path / "mine", progress=False)

    assert result.vectors.isfinite().all()
    assert not torch.equal(result.vectors, start_vectors(make(family), config))
    opened = DiffusionPipeline.from_pretrained(tmp_path / "model", **{DTYPE: torch.bfloat16})
    guard = Guard(opened, prefix=Prefix.load(tmp_path / "mine"))
    outcome = guard.generate("a photo of Ada Lum", num_inference_steps=1, height=32, width=32).outcome
    assert outcome.protection == "applied"


def test_the_command_trains_a_folder_of_half_precision(family: str, tmp_path: Path) -> None:
    """`apl-guard train` takes a folder that holds its weights as fp16 alone; the guard takes the prefix for it."""
    make(family).to(torch.float16).save_pretrained(tmp_path / "model", variant="fp16")
    options = ("generic_batch=1", "picture_size=32", "max_sequence_length=24", "precision=float32")

    prefix = train_folder(tmp_path / "model", tmp_path, *options)

    opened = DiffusionPipeline.from_pretrained(tmp_path / "model", variant="fp16", **{DTYPE: torch.float16})
    assert prefix.metadata.widths == WIDTHS[family]
    assert prefix.metadata.fingerprints == {s: fingerprint(*part) for s, part in family_of(opened).parts.items()}


def test_a_pipe_in_float16_is_refused(family: str, people: Identities, config: TrainConfig, tmp_path: Path) -> None:
    """Its gradients would be zeros, and the prefix what it was at the start."""
    pipe = make(family).to(torch.float16)

    with pytest.raises(ModelInvalid, match=r"transformer is in float16.*expected bfloat16 or float32"):
        run(pipe, people, config, tmp_path / "mine")


def test_the_plan_of_a_run_is_made(pipe: Any, people: Identities, config: TrainConfig) -> None:
    """`--dry-run` times passes of the transformer and draws nothing; guidance costs a pass."""
    drawn: list[int] = []
    hook = pipe.vae.register_forward_hook(lambda *_: drawn.append(1))

    plan = make_plan(config, pipe, people, GENERIC)

    hook.remove()
    assert not drawn
    assert (plan.people, plan.steps, plan.precision) == (len(people.identities), config.steps, "float32")
    assert plan.seconds_steps > 0
    assert plan.images == 2 * len(people.identities) + len(GENERIC)


def test_flux_schnell_is_learned_on_without_guidance(people: Identities, config: TrainConfig, tmp_path: Path) -> None:
    """It has no input for it; a denoising step is one pass."""
    pipe = make("flux schnell")

    prefix = Prefix.load(run(pipe, people, config, tmp_path / "mine").folder)

    assert prefix.metadata.widths == WIDTHS["flux dev"]
    options = {"num_inference_steps": 1, "height": 32, "width": 32}
    assert Guard(pipe, prefix=prefix).generate("a photo of Ada Lum", **options).outcome.protection == "applied"


def without_t5() -> Any:
    pipe = make("sd3")
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    return pipe


def test_sd3_without_t5_gets_vectors_for_both_clips(people: Identities, config: TrainConfig, tmp_path: Path) -> None:
    """As it is opened where memory is short. The guard in front of the same model with T5 refuses the prefix."""
    pipe = without_t5()
    prefix = Prefix.load(run(pipe, people, config, tmp_path / "mine").folder)

    assert prefix.metadata.widths == {"text_encoder": 32, "text_encoder_2": 32}
    options = {"num_inference_steps": 1, "height": 32, "width": 32}
    outcome = Guard(pipe, prefix=prefix).generate("a photo of Ada Lum", **options).outcome
    assert (outcome.protection, outcome.slots_without_prefix) == ("applied", ())
    with pytest.raises(PrefixNotFound):
        Guard(make("sd3"), prefix=prefix)("a photo of Ada Lum", **options)
    whole = Prefix.load(run(make("sd3"), people, config, tmp_path / "whole").folder)
    with pytest.raises(PrefixNotFound):
        Guard(pipe, prefix=whole)("a photo of Ada Lum", **options)
