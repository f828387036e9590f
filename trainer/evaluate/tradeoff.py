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
from apl_guard.trainer.evaluate.curves import Curve
from apl_guard.trainer.evaluate.scores import identity_figures
from apl_guard.trainer.evaluate.setting import Setting


def measure_tradeoff(pipe: Any, prefixes: Mapping[str, Prefix], **options: Any) -> Curve:
    """Draw the same prompts, which name people of the reference world, without a prefix and with each of some.

    Args:
        pipe: A model of the reference world.
        prefixes: What to call it → a prefix.
        options: Of the `Setting` in which they are measured: `judges`, `images_per_person`, `people_limit`, `seed`, …

    Returns:
        Leak against attributes kept, of all that words can say about a person, in per cent: a point for "no prefix"
        and one for each prefix.

    Raises:
        PrefixNotFound: A prefix belongs to another text encoder.
        InvalidInput: There is no prefix.
    """
    if not prefixes:
        raise InvalidInput("found no prefix; expected at least one", where="prefixes")
    settings = {name: Setting.of(pipe, prefix, **options) for name, prefix in prefixes.items()}
    first = next(iter(settings.values()))
    looks = {person.name: person.attributes for person in minifaces.people()}
    asked = [
        replace(one, attributes=looks[one.person or ""])
        for split in ("seen", "unseen")
        for one in ask_for_people(first, split)
    ]
    curve = Curve("Leak against attributes kept", "attributes kept, %")
    for name, setting in {"no prefix": first, **settings}.items():
        call = setting.pipe if name == "no prefix" else setting.guard
        figures = identity_figures(setting.judges, setting.draw_asked(call, asked, "tradeoff"), asked)
        kept = 100 * figures["attribute_fidelity"]
        leak = {f"leak at FAR 1e-3{part}": figures[f"leak_far_1e-3{part}"] for part in ("", "_ci")}
        curve.points.append({"x": kept, "label": f"{kept:.1f} %: {name}", **leak})
    return curve
