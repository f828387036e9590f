"""What the guard and the training of a prefix cost on a model of the size of Stable Diffusion 1.5.

    python -m tests.benchmarks.real_size                  # on the GPU, where there is one: half precision, 512 × 512
    python -m tests.benchmarks.real_size --side 128 --steps 2 --batch 2        # to see that it runs, on a CPU

The weights are random and nothing is downloaded: times do not depend on what a model has learned. Pictures are drawn
plain and guarded in turns, so that a machine that is busy is as busy for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from apl_guard import Guard
from apl_guard.prefix import Prefix
from apl_guard.testing import random_prefix, tiny_tokenizer
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.train.plan import make_plan

PEOPLE = Identities.model_validate(
    {"identities": [{"name": f"Mara Voss {k}", "neutral": {"coarse": "a woman"}} for k in range(20)]}
)


def stable_diffusion(device: torch.device, side: int) -> StableDiffusionPipeline:
    """A pipe of the layout of Stable Diffusion 1.5, 1.07 thousand million random weights, float32."""
    tokenizer = tiny_tokenizer()
    with device:
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(sample_size=side // 8, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=side,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text_encoder.eval(), tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def time_pictures(pipe: Any, steps: int, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of a call, plain and guarded in turns; medians, and the median of the ratios."""
    noise = random_prefix(pipe, n=10)
    spread = float(pipe.text_encoder.get_input_embeddings().weight.float().std())
    prefix = Prefix({slot: spread * vectors for slot, vectors in noise.vectors.items()}, noise.metadata)
    guard = Guard(pipe, policy="anonymize_faces", prefix=prefix)
    prompts = ["a photo of Mara Voss in a red shirt"] * batch
    arms: dict[str, Callable[..., Any]] = {"plain": pipe, "guarded": guard}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for count in range(1 + rounds):
        for arm, call in arms.items():
            _wait()
            began = time.perf_counter()
            call(prompts, num_inference_steps=steps, output_type="latent")
            _wait()
            if count:  # the first round is to warm up
                seconds[arm].append(time.perf_counter() - began)
    ratios = [guarded / plain for guarded, plain in zip(seconds["guarded"], seconds["plain"], strict=True)]
    medians = {f"{arm} s": round(statistics.median(own), 4) for arm, own in seconds.items()}
    return {"pictures": batch, "steps": steps, **medians, "guarded / plain": round(statistics.median(ratios), 4)}


def time_training(pipe: Any, batch: int, *, checkpointing: bool) -> dict[str, Any]:
    """What `apl-guard train --dry-run` says of this model, for 120 people."""
    config = TrainConfig(
        identity_batch=batch - batch // 2, generic_batch=batch // 2, gradient_checkpointing=checkpointing
    )
    options = {"batch": batch, "gradient_checkpointing": checkpointing}
    try:
        plan = make_plan(config, pipe, PEOPLE, None)
    except torch.OutOfMemoryError:
        return options | {"does": "not fit"}
    return options | {
        "a step s": round(plan.seconds_steps / plan.steps, 3),
        "1,000 steps min": round(plan.seconds_steps / 60, 1),
        "images to generate": plan.images,
        "images min": round(plan.seconds_images / 60, 1),
        "memory GiB": round(plan.memory_bytes / 2**30, 1),
        "precision": plan.precision,
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Time and print, one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="of the pictures, in pixels")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="examples of a training step")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(json.dumps({"machine": name, "torch": torch.__version__, "side": asked.side}))
    pipe = stable_diffusion(device, asked.side)
    for checkpointing in (True, False):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        print(json.dumps({"training": time_training(pipe, asked.batch, checkpointing=checkpointing)}), flush=True)
    pipe.to(torch.float16 if device.type == "cuda" else torch.float32)
    for batch in (1, 4):
        print(json.dumps({"drawing": time_pictures(pipe, asked.steps, batch, asked.rounds)}), flush=True)


if __name__ == "__main__":
    main()
