"""Leak against likeness: what a prefix keeps of a person, and what of the person can be found in it.

The more of a person the neutral prompt of the training kept, the more of the person's looks stay. Where to stand on
this curve is a setting of training, `neutral`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apl_guard.errors import InvalidInput
from apl_guard.prefix import Prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.evaluate.asking import ask_for_people
from apl_guard.trainer.evaluate.scores import identity_figures
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.minifaces.judge import Judges


def measure_tradeoff(
    pipe: Any,
    prefixes: Mapping[str, Prefix],
    *,
    images_per_person: int = 2,
    people_limit: int | None = None,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 3.0,
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
        InvalidInput: There is no prefix.
    """
    if not prefixes:
        raise InvalidInput("found no prefix; expected at least one", where="prefixes")
    settings = {
        name: Setting.of(
            pipe, prefix, judges or minifaces.judges(), seed=seed, steps=steps, guidance=guidance,
            images_per_person=images_per_person, people_limit=people_limit, progress=progress,
        )
        for name, prefix in prefixes.items()
    }  # fmt: skip
    first = next(iter(settings.values()))
    looks = {person.name: person.attributes for person in minifaces.people()}
    asked = [
        replace(one, attributes=looks[one.person or ""])
        for split in ("seen", "unseen")
        for one in ask_for_people(first, split)
    ]
    points = []
    for name, setting in {"no prefix": first, **settings}.items():
        call = setting.pipe if name == "no prefix" else setting.guard
        figures = identity_figures(setting.judges, setting.draw_asked(call, asked, "tradeoff"), asked)
        point: dict[str, Any] = {"setting": name, "images": figures["images"]}
        for key, figure in (("leak", "leak_far_1e-3"), ("top1", "top1"), ("attributes_kept", "attribute_fidelity")):
            point |= {key: figures[figure], f"{key}_ci": figures[f"{figure}_ci"]}
        points.append(point)
    return points
