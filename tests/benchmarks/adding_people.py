"""One way of adding people, tried with other settings: does the plain model show them, does the guarded one hide them?

    python -m tests.benchmarks.adding_people "textual inversion" --people 3 inversion_steps=150 inversion_rate=1e-2

Settings are those of `Recipe`. What was learned stays in the user's cache.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace

from apl_guard.prefix import Prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.evaluate.result import EvalResult
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.model.pipeline import open_pipe
from apl_guard.trainer.personalise.recipe import Recipe
from apl_guard.trainer.personalise.suites import WAYS, personalised


def main() -> None:
    """Add, draw, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=tuple(WAYS))
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="settings of the recipe")
    parser.add_argument("--people", type=int, default=5, help="of the 40, evenly picked")
    parser.add_argument("--images-per-person", type=int, default=3)
    asked = parser.parse_intermixed_args()
    recipe = Recipe()
    for setting in asked.settings:
        name, _, value = setting.partition("=")
        if name not in asdict(recipe):
            parser.error(f"no setting '{name}'; there are: {', '.join(asdict(recipe))}")
        recipe = replace(recipe, **{name: type(getattr(recipe, name))(value)})
    setting = Setting.of(
        open_pipe("minifaces"),
        Prefix.load("minifaces"),
        minifaces.judges(),
        images_per_person=asked.images_per_person,
        people_limit=asked.people,
        steps=20,
    )
    began = time.process_time()
    print(EvalResult(personalised(setting, recipe, [asked.way])).to_table())
    print(f"{time.process_time() - began:.0f} s of processor time for all of it")


if __name__ == "__main__":
    main()
