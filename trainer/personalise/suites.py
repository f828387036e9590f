"""Two suites of the evaluation: people added to the model after the prefix was trained, and models made of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from apl_guard.errors import InvalidInput
from apl_guard.guard import Guard
from apl_guard.trainer.evaluate.asking import ask_for_people, people_of
from apl_guard.trainer.evaluate.result import Asked, Figures, Pictures
from apl_guard.trainer.evaluate.scores import identity_figures
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.minifaces.judge import Judges
from apl_guard.trainer.minifaces.judge_training import introduce
from apl_guard.trainer.minifaces.people import Person, Split, people
from apl_guard.trainer.minifaces.shipped import save_model
from apl_guard.trainer.minifaces.variants import STYLES, Variant, VariantRecipe, fine_tuned
from apl_guard.trainer.model.pipeline import model_digest, open_pipe
from apl_guard.trainer.personalise.added import Added
from apl_guard.trainer.personalise.drawings import Drawings, draw_people
from apl_guard.trainer.personalise.dreambooth import dreambooth
from apl_guard.trainer.personalise.lora import lora
from apl_guard.trainer.personalise.recipe import Recipe
from apl_guard.trainer.personalise.shelf import kept
from apl_guard.trainer.personalise.textual_inversion import textual_inversion


class Way(Protocol):
    """How people are added to a copy of a model."""

    def __call__(self, pipe: Any, drawings: Drawings, recipe: Recipe, *, progress: bool = True) -> Added:
        """The copy; learned now, if the user's cache has none."""
        ...


WAYS: Final[dict[str, Way]] = {
    "dreambooth": dreambooth,
    "lora": lora,
    "textual inversion": textual_inversion,
}
"""How people are added."""
_ADDED: Final[Split] = "held_back"


def personalised(
    setting: Setting, recipe: Recipe | None = None, ways: Sequence[str] = tuple(WAYS)
) -> dict[str, dict[str, Figures]]:
    """Add the 40 people whom the model has never seen, and measure whether the prefix hides them as well.

    Each way adds them by groups of `Recipe.group`, each group to a fresh copy of the model, as the people of one
    project would be. What was learned is kept in the user's cache.

    Args:
        setting: Model, prefix, judges; the prefix knows nobody of these people.
        recipe: How people are added.
        ways: Some of `WAYS`.

    Returns:
        "personalised WAY" → "plain" and "guarded" → figures, the judges knowing these people and their twins, too.

    Raises:
        InvalidInput: The judges are not those of the reference world.
        StorageFailed: The cache cannot be written.
        ExtraMissing: peft is not installed.
    """
    if not isinstance(setting.judges, Judges):
        raise InvalidInput(
            f"people are added on the reference world, whose judges know what they look like; found "
            f"{type(setting.judges).__name__}",
            where="judges",
        )
    recipe = recipe or Recipe()
    added_people = people_of(setting, _ADDED)
    judges = introduce(setting.judges, added_people)
    figures: dict[str, dict[str, Figures]] = {}
    for way in ways:
        suite = f"personalised {way}"
        asked: list[Asked] = []
        arms: dict[str, list[Pictures]] = {"plain": [], "guarded": []}
        for group in groups_of(added_people, recipe.group):
            drawings = draw_people(group, recipe.drawings)
            added = WAYS[way](setting.pipe, drawings, recipe, progress=setting.progress)
            guard = Guard(added.pipe, policy=setting.policy or added.policy, prefix=setting.prefix)
            there = setting.on(added.pipe, guard=guard)
            wanted = [in_words(one, added) for one in ask_for_people(setting, _ADDED) if one.person in added.words]
            arms["plain"].append(there.draw_asked(there.pipe, wanted, "personalised"))
            arms["guarded"].append(there.draw_asked(there.guard, wanted, "personalised"))
            asked += wanted
        pictures = {arm: np.concatenate(parts) for arm, parts in arms.items()}
        setting.show(suite, asked, pictures)
        figures[suite] = {arm: identity_figures(judges, drawn, asked) for arm, drawn in pictures.items()}
    return figures


def groups_of(crowd: Sequence[Person], size: int) -> list[Sequence[Person]]:
    """People in groups of at most ``size``, in their order.

    Example:
        >>> [len(group) for group in groups_of(people()[:25], 10)]
        [10, 10, 5]
    """
    return [crowd[start : start + size] for start in range(0, len(crowd), size)]


def in_words(asked: Asked, added: Added) -> Asked:
    """The same request in the words by which the model calls people."""
    name = asked.person or ""
    return replace(asked, text=asked.text.replace(name, added.words[name]))


def transfer(
    setting: Setting, recipe: Recipe | None = None, variants: VariantRecipe | None = None
) -> dict[str, dict[str, Figures]]:
    """Put the prefix, unchanged, in front of prompts to models that others made of the one it was trained on.

    ``continued`` was trained further, ``restyled`` draws in ink, ``merged`` has a LoRA of other people fused into it.
    Prompts and seeds are those of the suite "seen", so that models differ by their weights alone.

    Args:
        setting: Model, prefix, judges.
        recipe: How the people of the LoRA are added.
        variants: How the other two are made.

    Returns:
        "transfer MODEL" → "plain" and "guarded" → figures; "transfer base" is the model itself, and the others have
        its guarded figures as a third arm, "base".

    Raises:
        StorageFailed: The cache cannot be written.
        ExtraMissing: peft is not installed.
    """
    asked = ask_for_people(setting, "seen")
    recipe, variants = recipe or Recipe(), variants or VariantRecipe()
    models: dict[str, Callable[[], Any]] = {"base": lambda: setting.pipe}
    for variant in STYLES:
        models[variant] = functools.partial(made_into, setting.pipe, variant, variants, progress=setting.progress)
    models["merged"] = functools.partial(merged, setting.pipe, recipe, progress=setting.progress)
    figures: dict[str, dict[str, Figures]] = {}
    for model, pipe in models.items():
        there = setting.on(pipe())
        pictures = {
            "plain": there.draw_asked(there.pipe, asked, "seen"),
            "guarded": there.draw_asked(there.guard, asked, "seen"),
        }
        setting.show(f"transfer {model}", asked, pictures)
        arms = {arm: identity_figures(setting.judges, drawn, asked) for arm, drawn in pictures.items()}
        reference = {"base": figures["transfer base"]["guarded"]} if figures else {}
        figures[f"transfer {model}"] = arms | reference
    return figures


def made_into(pipe: Any, variant: Variant, recipe: VariantRecipe, *, progress: bool = True) -> Any:
    """A variant of the model; fine-tuned now, if the user's cache has none.

    Raises:
        StorageFailed: The cache cannot be written.
    """

    def make(checkpoint: Path, folder: Path) -> None:
        save_model(fine_tuned(pipe, variant, recipe, checkpoint, progress=progress), folder)

    folder = kept(variant, {"model": model_digest(pipe), "recipe": asdict(recipe)}, make)
    return open_pipe(folder, pipe.device)


def merged(pipe: Any, recipe: Recipe, *, progress: bool = True) -> Any:
    """A copy of the model with a LoRA of some held-back people fused into it, so that no adapter is left to be seen.

    At part of its strength, as those do who merge: at full strength the model forgets most people it knew.
    """
    some = [person for person in people() if person.split == _ADDED][: recipe.group]
    added = lora(pipe, draw_people(some, recipe.drawings), recipe, progress=progress).pipe
    added.fuse_lora(lora_scale=recipe.merge_scale)
    added.unload_lora_weights()
    return added
