"""What of a finished world is shipped: the model as a diffusers folder, and ``identities.yaml``."""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from apl_guard.storage import write_file

from .captions import identity_prompts, random_lead_in
from .people import known_people, people

__all__ = ["save_model", "write_identities"]


def save_model(pipe: StableDiffusionPipeline, to: Path) -> None:
    """Write a diffusers folder in half precision, as versions 4 and 5 of transformers read it."""
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.half()
    pipe.save_pretrained(to)
    _open_to_transformers_4(to)
    # transformers opens in the dtype that is stated here, diffusers in float32: they must agree
    config = to / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    for part in ("unet", "vae"):  # where they were built concerns nobody
        config = to / part / "config.json"
        stated = json.loads(config.read_text())
        stated.pop("_name_or_path", None)
        config.write_text(json.dumps(stated, indent=2) + "\n")


def _open_to_transformers_4(model: Path) -> None:
    """Names of weights and files of the tokenizer as version 4 writes and wants them. Version 5 reads either.

    Version 4 opens a text encoder with the names of version 5, too: with random weights and a warning.
    """
    weights = model / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})
    tokenizer = model / "tokenizer"
    if not (tokenizer / "merges.txt").exists():
        Tokenizer.from_file(str(tokenizer / "tokenizer.json")).model.save(str(tokenizer))


def write_identities(path: Path) -> None:
    """``identities.yaml``: the 120 seen people and templates with scenes, as ``apl-guard train`` takes them."""
    rng = random.Random("templates")
    somebody = known_people()[0]
    prompts = {
        random_lead_in(rng) + prompt.with_subject("{name}") for prompt in identity_prompts(somebody, 300, seed=1)
    }
    entries = [
        {"name": p.name, "neutral": {"coarse": p.neutral("coarse"), "attributes": p.neutral("attributes")}}
        for p in people()
        if p.split == "seen"
    ]
    content = {"identities": entries, "templates": sorted(prompts)}
    write_file(path, yaml.safe_dump(content, sort_keys=False, width=110).encode())
