"""Pictures of an evaluation, of every pipeline that can be trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_pipelines import OTHERS, permissive, small_class

from apl_guard import Guard
from apl_guard.adapters.diffusers.calling import run
from apl_guard.testing import FAMILIES, random_prefix, tiny_pipe
from apl_guard.trainer.evaluate.setting import Setting, _seed
from apl_guard.trainer.model import families
from apl_guard.trainer.model.families import family_of

TEXTS = ["a photo of Mara Voss", "a red car"]


@pytest.mark.parametrize("name", OTHERS)
def test_a_picture_is_what_the_pipeline_draws_of_its_text_and_its_seed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pipeline takes, and calls what it gives back; guarded as well, and both are kept."""
    small = small_class(name)
    own = {side: FAMILIES[name].options[side] for side in ("height", "width") if side in FAMILIES[name].options}
    monkeypatch.setattr(small, "call", property(lambda self, whole=small.call: {**whole.fget(self), **own}))
    monkeypatch.setattr(families, "PipelineCode", small)
    pipe = tiny_pipe(family=name)
    family = family_of(pipe)
    prefix = random_prefix(pipe, n=3, slots=family.slots)
    guidance = family.guidance_of_protocol(7.0)
    setting = Setting.of(
        pipe, prefix, judges=None, steps=2, guidance=guidance, folder=tmp_path, progress=False, batch=2
    )
    if "text_encoder_out_layers" in family.call:  # a small text encoder has not those that are read by default
        setting = setting.on(pipe, guard=Guard(pipe, permissive(family.slots), prefix=prefix))

    plain, guarded = (setting.draw(call, TEXTS, "x", labels=["0", "0"]) for call in (pipe, setting.guard))

    assert plain.shape == guarded.shape
    assert (len(plain), plain.shape[-1]) == (2, 3)
    asked = {"num_inference_steps": 2, "output_type": "np", **family.guided(guidance)}
    generator = torch.Generator().manual_seed(_seed(0, "x", "0"))
    _, images = run(pipe, {"prompt": TEXTS[1], "generator": generator, **asked})
    assert np.array_equal((images[0][..., :3] * 255).round().clip(0, 255).astype(np.uint8), plain[1])
    assert np.array_equal(setting.draw(pipe, TEXTS, "x", labels=["0", "0"]), plain), "it is on disk"
