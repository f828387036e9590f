"""Training on pipelines that are asked through their own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from names_and_prompts import GENERIC, NAMES
from short_runs import StopError, stopping_at, train_folder
from small_pipelines import OTHERS, small_class, small_config

from apl_guard import Guard
from apl_guard.adapters.diffusers.adapter import DiffusersAdapter
from apl_guard.encoder.fingerprint import fingerprint
from apl_guard.errors import ConfigInvalid
from apl_guard.prefix import Prefix
from apl_guard.testing import tiny_pipe
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.model import families
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.pipeline_code import PipelineCode
from apl_guard.trainer.train import train
from apl_guard.trainer.train.plan import make_plan
from apl_guard.trainer.train.start import start_vectors

# A flow with a language model behind a template, latents in a row; and an older schedule, guided by the pipeline.
FAMILIES = ("qwen_image", "cogview_3_plus")


@pytest.fixture(name="pipe", scope="module", params=FAMILIES)
def _pipe(request: pytest.FixtureRequest) -> Any:
    return tiny_pipe(family=request.param)


@pytest.fixture(name="config", scope="module")
def _config(config: TrainConfig, pipe: Any) -> TrainConfig:
    longer = {"steps": 20, "lr": 8e-2, "eval_every": 20, "identity_batch": 3, "generic_batch": 1, "generic_weight": 0.0}
    longer |= {"generic_weight_end": 0.0, "picture_size": 32, "keep": "last", "held_aside_identities": 0}
    if type(pipe).__name__ == "CogView3PlusPipeline":
        longer["max_sequence_length"] = 40
    return config.model_copy(update=longer)


def test_a_prefix_is_learned_that_acts_in_the_guarded_pipeline(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """The gap to the neutral prompt closes on noise that no step saw, no weight changes; the guard draws with it."""
    assert type(family_of(pipe, config)) is PipelineCode
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    before = [weight.clone() for network in networks for weight in network.state_dict().values()]

    result = train(config, pipe, people, GENERIC, tmp_path / "mine", progress=False)

    after = [weight for network in networks for weight in network.state_dict().values()]
    assert all(torch.equal(*pair) for pair in zip(after, before, strict=True))
    assert all(weight.grad is None and weight.requires_grad for network in networks for weight in network.parameters())
    lines = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    gaps = [line["gap_closed"] for line in lines if "gap_closed" in line]
    assert gaps[-1] > gaps[0] + 0.1
    prefix = Prefix.load(tmp_path / "mine")
    assert prefix.metadata.fingerprints == {"text_encoder": fingerprint(pipe.text_encoder, pipe.tokenizer)}
    assert (tmp_path / "mine" / "before_and_after.png").stat().st_size > 1000
    call = {"prompt": f"a photo of {NAMES[0]}", "num_inference_steps": 1, "height": 32, "width": 32}
    assert Guard(pipe, prefix=prefix).generate(**call).outcome.prefix_rows == {"text_encoder": (3,)}


@pytest.mark.parametrize("name", OTHERS)
def test_every_pipeline_that_can_be_trained_on_gives_a_prefix_that_fits_it(
    name: str, people: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It draws, learns, is evaluated, and draws what it has learned."""
    monkeypatch.setattr(families, "PipelineCode", small_class(name))
    pipe = tiny_pipe(family=name)
    short = {"steps": 2, "warmup_steps": 0, "generic_count": 2, "images_per_identity": 1, "sampling_batch": 1}
    short |= {"identity_batch": 1, "generic_batch": 1, "held_aside_identities": 0, "n_vectors": 2, "sampling_steps": 1}
    short["keep"] = "last"
    two = Identities.model_validate({"identities": people.model_dump()["identities"][:2]})

    result = train(small_config(name, **short), pipe, two, GENERIC[:2], tmp_path / "mine", progress=False)

    assert not torch.equal(result.vectors, start_vectors(pipe, small_config(name, **short)))
    prefix = Prefix.load(tmp_path / "mine")
    assert prefix.metadata.fingerprints.items() <= DiffusersAdapter(pipe).fingerprints().items()
    assert {slot: part.shape[0] for slot, part in prefix.vectors.items()} == dict.fromkeys(prefix.vectors, 2)


def test_a_stopped_run_goes_on_to_the_same_bits(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was never stopped."""
    from apl_guard.trainer.train import run as module

    short = config.model_copy(update={"steps": 4, "checkpoint_every": 1, "reuse_batches": 2})
    whole = train(short, pipe, people, GENERIC, tmp_path / "whole", progress=False).vectors

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_state", stopping_at(2, module.save_state))
        with pytest.raises(StopError):
            train(short, pipe, people, GENERIC, tmp_path / "stopped", progress=False)

    stopped = train(short, pipe, people, GENERIC, tmp_path / "stopped", progress=False).vectors
    assert torch.equal(whole, stopped)


def test_a_model_of_sixteen_bits_is_learned_from_and_computed_again(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """A folder is opened with its transformer in bfloat16 beside text encoders in float32; activations are computed
    again in the backward pass; and the prefix is the same as without."""
    pipe.save_pretrained(tmp_path / "model")
    short = config.model_copy(update={"steps": 2, "precision": "bfloat16", "device": "cpu"})

    whole, again = (
        train(
            short.model_copy(update={"gradient_checkpointing": is_again}),
            tmp_path / "model", people, GENERIC, tmp_path / f"mine {is_again}", progress=False,
        ).vectors
        for is_again in (False, True)
    )  # fmt: skip

    assert whole.isfinite().all()
    assert not torch.equal(whole, start_vectors(pipe, config))
    torch.testing.assert_close(again, whole, rtol=1e-3, atol=1e-3)


def test_own_pictures_are_refused_before_anything_is_drawn(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """How its latents lie, only the pipeline knows."""
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "one.png")
    (tmp_path / "photos" / "one.txt").write_text("a thing")

    with pytest.raises(ConfigInvalid, match=f"own images cannot be learned from with {type(pipe).__name__}"):
        train(config, pipe, people, tmp_path / "photos", tmp_path / "mine", progress=False)


def test_a_plan_is_made_by_the_passes_of_the_pipeline(pipe: Any, people: Identities, config: TrainConfig) -> None:
    """What `--dry-run` prints."""
    plan = make_plan(config, pipe, people, GENERIC)

    assert plan.seconds_steps > 0
    assert plan.images == len(GENERIC) + 2 * len(NAMES)


def test_the_command_trains_a_folder(pipe: Any, tmp_path: Path) -> None:
    """From a folder, as ML engineers do, and the guard takes the prefix for it."""
    pipe.save_pretrained(tmp_path / "model")

    prefix = train_folder(tmp_path / "model", tmp_path, "generic_batch=1", "picture_size=32", "precision=float32")

    outcome = (
        Guard(pipe, prefix=prefix).generate(prompt="a photo of Ada", num_inference_steps=1, height=32, width=32).outcome
    )
    assert (outcome.protection, outcome.prefix_rows) == ("applied", {"text_encoder": (10,)})
