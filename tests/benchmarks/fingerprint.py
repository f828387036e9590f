"""What a guarded call pays for knowing that the text encoder is still the same: python -m tests.benchmarks.fingerprint

A text encoder of the size of CLIP-L and a denoiser of that of Stable Diffusion 1.x, with random weights. Ratios are to
one forward pass of the text encoder over one prompt, in the same run; the times are those of this machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from apl_guard.encoder.anatomy import has_parameter_named
from apl_guard.encoder.fingerprint import fingerprint
from apl_guard.testing import tiny_tokenizer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408
        )
    ).eval()
    unet = UNet2DConditionModel(cross_attention_dim=768, block_out_channels=(32, 64, 128, 128), attention_head_dim=8)
    tokenizer = tiny_tokenizer()
    ids = torch.randint(0, 500, (1, 77))

    began = time.perf_counter()
    fingerprint(encoder, tokenizer)
    first = time.perf_counter() - began
    with torch.no_grad():
        forward = _median(lambda: encoder(ids), rounds)
    rows = {
        "fingerprint, the first time": first,
        "one forward pass of the text encoder": forward,
        "fingerprint, at each call": _median(lambda: fingerprint(encoder, tokenizer), rounds),
        "names of all weights of the text encoder": _median(lambda: list(encoder.state_dict(keep_vars=True)), rounds),
        "whether adapters are loaded, UNet and text encoder": _median(
            lambda: [has_parameter_named("lora_", model) for model in (unet, encoder)], rounds
        ),
        "the same by the names of all parameters": _median(
            lambda: [any("lora_" in n for n, _ in model.named_parameters()) for model in (unet, encoder)], rounds
        ),
    }
    print(f"{'':<54}{'ms':>10}{'ratio':>10}")
    for name, seconds in rows.items():
        print(f"{name:<54}{1000 * seconds:>10.3f}{seconds / forward:>10.4f}")


def _median(call: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        # Processor time: on a busy machine the clock would measure the others.
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return median(times)


if __name__ == "__main__":
    main()
