"""The evaluation from top to bottom: prompts, pictures of all arms, figures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from apl_guard.errors import InvalidInput
from apl_guard.guard import Guard
from apl_guard.prefix import Prefix
from apl_guard.trainer.config import NeutralKind
from apl_guard.trainer.evaluate.result import Asked, EvalResult, Figures, Pictures
from apl_guard.trainer.evaluate.scores import generic_figures, identity_figures, spoken
from apl_guard.trainer.folders import read_prompts
from apl_guard.trainer.pipeline import unet_precision

if TYPE_CHECKING:
    from apl_guard.trainer.minifaces.judge import Judges

Suite = Literal["seen", "unseen", "generic"]
SUITES: tuple[Suite, ...] = ("seen", "unseen", "generic")
GENERIC_PER_IMAGE = 80
"""Generic prompts for each image per person."""
BATCH = 32


def evaluate(
    pipe: Any,
    prefix: Prefix | str | Path,
    suites: Sequence[Suite] = SUITES,
    images_per_person: int = 4,
    people_limit: int | None = None,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 3.0,
    *,
    neutral: NeutralKind = "coarse",
    templates: Sequence[str] | None = None,
    judges: Judges | None = None,
    keep_images: bool = False,
    fast: bool = False,
    progress: bool = True,
) -> EvalResult:
    """Measure leak, fidelity and drift of a prefix on the reference world.

    Args:
        pipe: A model of the reference world.
        prefix: The prefix, its folder, or its name.
        suites: "seen" and "unseen" people, "generic" prompts.
        images_per_person: Pictures of each person in each arm; generic prompts are 80 times as many.
        people_limit: At most so many people in a suite, evenly picked, and generic prompts in proportion
            (40 people stand for all of them).
        seed: Of prompts and pictures; both are disjoint from those of training.
        steps: Denoising steps.
        guidance: Classifier-free guidance.
        neutral: What the neutral prompt keeps.
        templates: Texts with `{name}` in place of the held-out prompts; they ask for no scene.
        judges: Who looks at the pictures; default the judges that are shipped.
        keep_images: Whether the result holds the pictures.
        fast: Whether the UNet may compute in bfloat16. For research; leave it off for figures to report.
        progress: Whether to draw a progress bar.

    Raises:
        PrefixInvalid, PrefixNotFound: The prefix is damaged or belongs to another text encoder.
        InvalidInput: A template has no `{name}` in it, or a suite is unknown.
        ExtraMissing: scipy is not installed.
    """
    from apl_guard.trainer import minifaces

    unknown = [suite for suite in suites if suite not in SUITES]
    if unknown or not suites:
        raise InvalidInput(f"found {unknown or 'none'}; expected some of {list(SUITES)}", where="suites")
    for number, template in enumerate(templates or (), 1):
        if "{name}" not in template:
            raise InvalidInput(f"template {number} has no {{name}} in it", where="templates")
    loaded = Prefix.load(prefix) if isinstance(prefix, (str, Path)) else prefix
    guard = Guard(pipe, policy="anonymize_faces", prefix=loaded)
    judges = judges or minifaces.judges()

    asked = {suite: what_to_ask(suite, images_per_person, people_limit, seed, neutral, templates) for suite in suites}
    total = sum(3 * len(prompts) for prompts in asked.values())
    figures: dict[str, dict[str, Figures]] = {}
    images: dict[str, dict[str, Pictures]] = {}
    dtype = unet_precision(pipe.unet.device, "auto") if fast else torch.float32
    with tqdm(total=total, desc="pictures", unit="img", disable=not progress) as bar:

        def draw(call: Callable[..., Any], texts: Sequence[str], stream: str) -> Pictures:
            return draw_pictures(call, texts, f"{seed}:{stream}", steps, guidance, pipe, dtype, bar)

        for suite, prompts in asked.items():
            texts = [one.text for one in prompts]
            if suite == "generic":
                plain, guarded = draw(pipe, texts, suite), draw(guard, texts, suite)
                fresh = draw(pipe, texts, f"fresh {suite}")
                arms = {"plain": plain, "guarded": guarded}
                figures[suite] = {
                    arm: generic_figures(judges, pictures, fresh, prompts, seed) for arm, pictures in arms.items()
                }
                reference = figures[suite]["plain"]
                for part in ("", "_ci"):
                    figures[suite]["guarded"][f"frechet_plain_vs_plain{part}"] = reference[f"frechet{part}"]
            else:
                arms = {
                    "plain": draw(pipe, texts, suite),
                    "neutral": draw(pipe, [one.neutral_text for one in prompts], suite),
                    "guarded": draw(guard, texts, suite),
                }
                figures[suite] = {arm: identity_figures(judges, pictures, prompts) for arm, pictures in arms.items()}
            if keep_images:
                images[suite] = arms
    return EvalResult(
        suites=figures,
        settings={
            "prefix": loaded.digest,
            "images_per_person": images_per_person,
            "people_limit": people_limit,
            "seed": seed,
            "steps": steps,
            "guidance": guidance,
            "neutral": neutral,
            "own_templates": templates is not None,
        },
        images=images,
        asked={suite: asked[suite] for suite in suites if suite in images},
    )


def read_templates(path: Path) -> list[str]:
    """Read a templates file: one a line, each with `{name}` in it.

    Raises:
        InvalidInput: The file cannot be read, is empty, or a line has no `{name}`.
    """
    templates = read_prompts(path)
    for number, template in enumerate(templates, 1):
        if "{name}" not in template:
            raise InvalidInput(f"template {number} has no {{name}} in it", where=path)
    return templates


def what_to_ask(
    suite: Suite,
    per_person: int,
    limit: int | None,
    seed: int,
    neutral: NeutralKind,
    templates: Sequence[str] | None,
) -> list[Asked]:
    """What to draw, in an order that depends on nothing but the arguments."""
    from apl_guard.trainer import minifaces

    if suite == "generic":
        count = GENERIC_PER_IMAGE * per_person
        if limit is not None:
            count = max(8, count * min(limit, 40) // 40)
        prompts = minifaces.generic_prompts(count, seed=seed, held_out=True)
        return [Asked(p.text, p.text, None, p.scene, {}) for p in prompts]
    people = [person for person in minifaces.people() if person.split == suite]
    if limit is not None and limit < len(people):
        people = [people[k * len(people) // limit] for k in range(limit)]
    asked: list[Asked] = []
    for person in people:
        stand_in = person.neutral(neutral)
        kept = spoken(person.attributes, stand_in)
        if templates is not None:
            for _ in range(per_person):
                # Another person starts at another template, so that few pictures each still use them all.
                template = templates[len(asked) % len(templates)]
                text, neutral_text = (template.replace("{name}", who) for who in (person.name, stand_in))
                asked.append(Asked(text, neutral_text, person.name, kept, {}))
            continue
        for prompt in minifaces.identity_prompts(person, per_person, seed=seed, held_out=True):
            asked.append(Asked(prompt.text, prompt.with_subject(stand_in), person.name, kept, prompt.scene))
    return asked


def draw_pictures(
    call: Callable[..., Any],
    texts: Sequence[str],
    stream: str,
    steps: int,
    guidance: float,
    pipe: Any,
    dtype: torch.dtype,
    bar: Any,
) -> Pictures:
    """Draw each text from a seed of its own, so that the arms differ by the prompt or the guard alone.

    Returns:
        Shape (n, H, W, 3), bytes.
    """
    quiet = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
    pipe.set_progress_bar_config(**quiet)
    pictures: list[Pictures] = []
    for start in range(0, len(texts), BATCH):
        part = list(texts[start : start + BATCH])
        generators = [torch.Generator("cpu").manual_seed(_seed(stream, start + k)) for k in range(len(part))]
        cast = dtype == torch.bfloat16
        with torch.autocast(pipe.unet.device.type, dtype=torch.bfloat16, enabled=cast):
            output = call(
                part,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generators,
                output_type="np",
            )
        pictures.append((output.images * 255).round().clip(0, 255).astype(np.uint8))
        bar.update(len(part))
    return np.concatenate(pictures)


def _seed(stream: str, index: int) -> int:
    """A seed that training cannot have used: its seeds come from other texts."""
    return int.from_bytes(hashlib.sha256(f"evaluate:{stream}:{index}".encode()).digest()[:7], "big")
