"""Leak against likeness: what a prefix keeps of a person, and what of the person can be found in it.

The more of a person the neutral prompt of the training kept, the more of the person's looks stay. Where to stand on
this curve is a setting of training, `neutral`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from apl_guard.guard import Guard
from apl_guard.prefix import Prefix
from apl_guard.trainer.evaluate.result import Asked
from apl_guard.trainer.evaluate.run import draw_pictures, what_to_ask
from apl_guard.trainer.evaluate.scores import identity_figures

if TYPE_CHECKING:
    from apl_guard.trainer.minifaces.judge import Judges


def measure_tradeoff(
    pipe: Any,
    prefixes: Mapping[str, Prefix],
    images_per_person: int = 2,
    people_limit: int | None = None,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 3.0,
    *,
    judges: Judges | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Draw the same prompts, which name people of the reference world, without a prefix and with each of some.

    Args:
        pipe: A model of the reference world.
        prefixes: What to call it → a prefix.
        images_per_person: Pictures of each seen and each unseen person.
        people_limit: At most so many people of either kind.
        seed: Of prompts and pictures.
        steps: Denoising steps.
        guidance: Classifier-free guidance.
        judges: Who looks at the pictures; default the judges that are shipped.
        progress: Whether to draw a progress bar.

    Returns:
        A point for "no prefix" and one for each prefix: `setting`, `leak` (verified at FAR 1e-3), `top1`,
        `attributes_kept` (of all that words can say about the person), each rate with its interval, and `images`.

    Raises:
        PrefixNotFound: A prefix belongs to another text encoder.
    """
    from apl_guard.trainer import minifaces

    judges = judges or minifaces.judges()
    looks = {person.name: person.attributes for person in minifaces.people()}
    asked = [
        Asked(one.text, one.neutral_text, one.person, looks[one.person or ""], one.scene)
        for suite in ("seen", "unseen")
        for one in what_to_ask(suite, images_per_person, people_limit, seed, "coarse", None)
    ]
    texts: Sequence[str] = [one.text for one in asked]
    guards = {name: Guard(pipe, policy="anonymize_faces", prefix=prefix) for name, prefix in prefixes.items()}
    points = []
    with tqdm(total=len(texts) * (1 + len(guards)), desc="tradeoff", unit="img", disable=not progress) as bar:
        for name, call in {"no prefix": pipe, **guards}.items():
            pictures = draw_pictures(call, texts, f"{seed}:tradeoff", steps, guidance, pipe, torch.float32, bar)
            figures = identity_figures(judges, pictures, asked)
            point: dict[str, Any] = {"setting": name, "images": figures["images"]}
            for key, figure in (("leak", "leak_far_1e-3"), ("top1", "top1"), ("attributes_kept", "attribute_fidelity")):
                point |= {key: figures[figure], f"{key}_ci": figures[f"{figure}_ci"]}
            points.append(point)
    return points
