"""Models that others made of the one that the peers learned on: restyled, and with people added.

One picture of each person. What is made is kept in the user's cache, where `apl-guard eval` finds it as well.
"""

from __future__ import annotations

from dataclasses import replace

from apl_guard.trainer.bench.run import Elsewhere
from apl_guard.trainer.evaluate.asking import ask_for_people, people_of
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.minifaces.judge_training import introduce
from apl_guard.trainer.minifaces.variants import VariantRecipe
from apl_guard.trainer.personalise.drawings import draw_people
from apl_guard.trainer.personalise.dreambooth import dreambooth
from apl_guard.trainer.personalise.recipe import Recipe
from apl_guard.trainer.personalise.suites import groups_of, made_into


def restyled(setting: Setting, recipe: VariantRecipe | None = None) -> Elsewhere:
    """The model fine-tuned until it draws in ink; drawn are the people on the list.

    Raises:
        StorageFailed: The cache cannot be written.
    """
    made = made_into(setting.pipe, "restyled", recipe or VariantRecipe(), progress=setting.progress)
    return Elsewhere([(made, ask_for_people(replace(setting, images_per_person=1), "seen"))], setting.judges)


def personalised(setting: Setting, recipe: Recipe | None = None) -> Elsewhere:
    """Models to which DreamBooth added people whom they had never seen; drawn are those people, who are on no list.

    Raises:
        StorageFailed: The cache cannot be written.
    """
    recipe = recipe or Recipe()
    newcomers = people_of(setting, "held_back")
    asked = ask_for_people(replace(setting, images_per_person=1), "held_back")
    models = []
    for group in groups_of(newcomers, recipe.group):
        added = dreambooth(setting.pipe, draw_people(group, recipe.drawings), recipe, progress=setting.progress)
        models.append((added.pipe, [one for one in asked if one.person in added.words]))
    return Elsewhere(models, introduce(setting.judges, newcomers))
