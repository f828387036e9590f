"""The suites of an evaluation. Each draws its arms under a setting and says what the judges see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from apl_guard.trainer.evaluate.asking import ask_for_anything, ask_for_people
from apl_guard.trainer.evaluate.gated import gated
from apl_guard.trainer.evaluate.inactivity import inactivity
from apl_guard.trainer.evaluate.result import Figures
from apl_guard.trainer.evaluate.scores import generic_figures, identity_figures
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.minifaces.people import Split

Suite = Callable[[Setting], dict[str, dict[str, Figures]]]
"""Setting → (sub-)suite → arm → figures. Most measure one thing under their own name."""


def seen(setting: Setting) -> dict[str, dict[str, Figures]]:
    """People whom the prefix was trained on."""
    return _people(setting, "seen")


def unseen(setting: Setting) -> dict[str, dict[str, Figures]]:
    """People whom the model knows and the training of the prefix never saw."""
    return _people(setting, "unseen")


def generic(setting: Setting) -> dict[str, dict[str, Figures]]:
    """Prompts that name nobody: what is drawn, and how far from what the plain model draws."""
    asked = ask_for_anything(setting)
    arms = {
        "plain": setting.draw_asked(setting.pipe, asked, "generic"),
        "guarded": setting.draw_asked(setting.guard, asked, "generic"),
    }
    fresh = setting.draw_asked(setting.pipe, asked, "fresh generic")
    figures = {
        arm: generic_figures(setting.judges, pictures, fresh, asked, setting.seed) for arm, pictures in arms.items()
    }
    figures["guarded"] |= setting.prefixed(asked)
    for part in ("", "_ci"):
        figures["guarded"][f"frechet_plain_vs_plain{part}"] = figures["plain"][f"frechet{part}"]
    setting.show("generic", asked, arms)
    return {"generic": figures}


def _people(setting: Setting, split: Split) -> dict[str, dict[str, Figures]]:
    asked = ask_for_people(setting, split)
    arms = setting.draw_people(split, asked, split)
    figures = {arm: identity_figures(setting.judges, pictures, asked) for arm, pictures in arms.items()}
    figures["guarded"] |= setting.prefixed(asked)
    return {split: figures}


SUITES: Final[Mapping[str, Suite]] = {
    "seen": seen,
    "unseen": unseen,
    "generic": generic,
    "inactivity": inactivity,
    "gated": gated,
}
"""The suites of this room by name; `apl_guard.trainer.suites` has all there are."""
DEFAULT_SUITES: Final[Mapping[str, Suite]] = {name: SUITES[name] for name in ("seen", "unseen", "generic")}
"""What is measured unless something else is asked for: minutes where the others may take hours."""
