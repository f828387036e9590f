"""What of a finished world is shipped: the model as a diffusers folder, and ``identities.yaml``."""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml
from diffusers import StableDiffusionPipeline

from apl_guard.storage import write_file

from .captions import identity_prompts, random_lead_in
from .people import known_people, people

__all__ = ["save_model", "write_identities"]


def save_model(pipe: StableDiffusionPipeline, to: Path) -> None:
    """Write a diffusers folder in half precision."""
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.half()
    pipe.save_pretrained(to)
    # transformers opens in the dtype that is stated here, diffusers in float32: they must agree
    config = to / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    for part in ("unet", "vae"):  # where they were built concerns nobody
        config = to / part / "config.json"
        stated = json.loads(config.read_text())
        stated.pop("_name_or_path", None)
        config.write_text(json.dumps(stated, indent=2) + "\n")


def write_identities(path: Path, templates: int = 300) -> None:
    """``identities.yaml``: the 120 seen people and templates with scenes, as ``apl-guard train`` takes them."""
    rng = random.Random("templates")
    somebody = known_people()[0]
    prompts = {
        random_lead_in(rng) + prompt.with_subject("{name}") for prompt in identity_prompts(somebody, templates, seed=1)
    }
    entries = [
        {"name": p.name, "neutral": {"coarse": p.neutral("coarse"), "attributes": p.neutral("attributes")}}
        for p in people()
        if p.split == "seen"
    ]
    content = {"identities": entries, "templates": sorted(prompts)}
    write_file(path, yaml.safe_dump(content, sort_keys=False, width=110).encode())
