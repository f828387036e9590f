"""What to draw: prompts that name people of the reference world, and prompts that name nobody."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeVar

from apl_guard.errors import InvalidInput
from apl_guard.trainer import minifaces
from apl_guard.trainer.data.folders import read_prompts
from apl_guard.trainer.evaluate.result import Asked
from apl_guard.trainer.evaluate.scores import spoken
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.minifaces.people import Person, Split

GENERIC_PER_IMAGE = 80
"""Generic prompts for each image per person."""
T = TypeVar("T")


def evenly(everybody: Sequence[T], count: int | None) -> list[T]:
    """So many of them, evenly picked; all, where there are no more or no number is named.

    Example:
        >>> evenly("abcdef", 3)
        ['a', 'c', 'e']
    """
    if count is None or count >= len(everybody):
        return list(everybody)
    return [everybody[k * len(everybody) // count] for k in range(count)]


def people_of(setting: Setting, split: Split, among: Collection[str] | None = None) -> list[Person]:
    """The people of a split, or those among some names; at most as many as the setting allows, evenly picked."""
    people = [person for person in minifaces.people() if person.split == split]
    if among is not None:
        people = [person for person in people if person.name in among]
    return evenly(people, setting.people_limit)


def ask_for_people(setting: Setting, split: Split, among: Collection[str] | None = None) -> list[Asked]:
    """Prompts that name the people of a split, or those among some names, in an order of the setting alone.

    With more images per person the former prompts and seeds stay and others are added.
    """
    asked: list[Asked] = []
    for number, person in enumerate(people_of(setting, split, among)):
        stand_in = person.neutral(setting.neutral)
        kept = spoken(person.attributes, stand_in)
        labels = [f"{person.name}:{k}" for k in range(setting.images_per_person)]
        if setting.templates is not None:
            for k, label in enumerate(labels):
                # Another person starts at another template, so that few pictures each still use them all.
                template = setting.templates[(number + k) % len(setting.templates)]
                text, neutral_text = (template.replace("{name}", who) for who in (person.name, stand_in))
                asked.append(Asked(text, neutral_text, person.name, kept, {}, label))
            continue
        prompts = minifaces.identity_prompts(person, len(labels), seed=setting.seed, held_out=True)
        for prompt, label in zip(prompts, labels, strict=True):
            asked.append(Asked(prompt.text, prompt.with_subject(stand_in), person.name, kept, prompt.scene, label))
    return asked


def ask_for_anything(setting: Setting) -> list[Asked]:
    """Prompts that name nobody: 80 for each image per person."""
    count = GENERIC_PER_IMAGE * setting.images_per_person
    if setting.people_limit is not None:
        count = max(8, count * min(setting.people_limit, 40) // 40)
    prompts = minifaces.generic_prompts(count, seed=setting.seed, held_out=True)
    return [Asked(p.text, p.text, None, p.scene, {}, str(k)) for k, p in enumerate(prompts)]


def check_templates(templates: list[str], where: str | Path) -> list[str]:
    """Make sure that each template has `{name}` in it.

    Raises:
        InvalidInput: One has not.
    """
    for number, template in enumerate(templates, 1):
        if "{name}" not in template:
            raise InvalidInput(f"template {number} has no {{name}} in it", where=where)
    return templates


def read_templates(path: Path) -> list[str]:
    """Read a templates file: one a line, each with `{name}` in it.

    Raises:
        InvalidInput: The file cannot be read, is empty, or a line has no `{name}`.
    """
    return check_templates(read_prompts(path), path)
