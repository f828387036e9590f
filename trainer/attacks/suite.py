"""The black-box attacks, measured: what leaks of each class without the guard, with it, and behind the output check.

apl-guard eval --model minifaces --prefix minifaces --suite attacks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from apl_guard.detect.output import OutputCheck
from apl_guard.policy import Action
from apl_guard.trainer import minifaces
from apl_guard.trainer.attacks.attack import Attack, Target, nothing_more
from apl_guard.trainer.attacks.calls import AS_ASKED, CALL_ATTACKS
from apl_guard.trainer.attacks.names import NAME_ATTACKS
from apl_guard.trainer.attacks.prompts import PROMPT_ATTACKS, near_the_prefix, nearest_words
from apl_guard.trainer.attacks.reference import reference_check
from apl_guard.trainer.evaluate.asking import ask_for_people
from apl_guard.trainer.evaluate.result import ATTACK, Asked, Figures, Pictures
from apl_guard.trainer.evaluate.scores import identity_figures, recognised
from apl_guard.trainer.evaluate.setting import Setting

__all__ = ["attacks", "attacks_on", "measure", "withheld_by"]

PEOPLE = 20
"""Seen people, and as many unseen ones, at most."""
EACH = 2
"""Pictures of each in each arm, at most. With 80 pictures, none of which leaks, the interval ends at 4.5 %."""


def attacks(setting: Setting) -> dict[str, dict[str, Figures]]:
    """Every class of black-box attacks, on seen and unseen people alike.

    Arms: `plain` and `guarded` draw the same prompts from the same seeds; `plain_checked` and `guarded_checked` are
    what the output check releases of these. A call that the policy refuses gives no picture and is counted as
    `refused`; a picture that the output check withholds, as `withheld`. Leaks are shares of the released pictures.

    Returns:
        "attack CLASS" → arm → figures; of each variant of a class, too, pictures and leaks.
    """
    asked = _who_is_asked_for(setting)
    check = reference_check(setting.seed)
    classes = attacks_on(setting)
    return {f"{ATTACK}{attack.name}": measure(setting, attack, asked, check) for attack in classes}


def attacks_on(setting: Setting) -> tuple[Attack, ...]:
    """Every attack on the prefix of a setting."""
    words = (nearest_words(setting.pipe, setting.prefix, opposite) for opposite in (False, True))
    return (AS_ASKED, *NAME_ATTACKS, *PROMPT_ATTACKS, near_the_prefix(*words), *CALL_ATTACKS)


def _who_is_asked_for(setting: Setting) -> list[Asked]:
    few = replace(
        setting,
        people_limit=min(setting.people_limit or PEOPLE, PEOPLE),
        images_per_person=min(setting.images_per_person, EACH),
    )
    return [*ask_for_people(few, "seen"), *ask_for_people(few, "unseen")]


def targets_of(asked: Sequence[Asked]) -> list[Target]:
    """Whom the attacker wants, one for each prompt."""
    described = {person.name: person.neutral("attributes") for person in minifaces.people()}
    return [Target(one.person, one.text, described[one.person]) for one in asked if one.person is not None]


def measure(setting: Setting, attack: Attack, asked: Sequence[Asked], check: OutputCheck) -> dict[str, Figures]:
    """The arms of one class of attacks."""
    variants = [attack.variants[k % len(attack.variants)] for k in range(len(asked))]
    texts = [
        attack.write(target, variant, Random(f"{setting.seed}:{attack.name}:{one.label}"))
        for target, variant, one in zip(targets_of(asked), variants, asked, strict=True)
    ]
    labels = [one.label for one in asked]
    decisions = [setting.guard.check(**{"prompt": [text], **attack.arguments([text], setting.pipe)}) for text in texts]
    passes = np.array([decision.effective != Action.BLOCK for decision in decisions])
    policy = f"guarded {setting.guard.policy.digest}"
    figures: dict[str, Figures] = {}
    for arm, call in (("plain", setting.pipe), ("guarded", setting.guard)):
        keep = np.flatnonzero(passes) if arm == "guarded" else np.arange(len(texts))
        pictures: Pictures = np.empty((0, 1, 1, 3), np.uint8)
        if len(keep):
            pictures = setting.draw(
                _called(call, attack, setting.pipe),
                [texts[k] for k in keep],
                "attack",
                labels=[labels[k] for k in keep],
                decides=f"attack {policy if arm == 'guarded' else 'plain'} {attack.name} {_said(attack, setting.pipe)}",
            )
        refused = len(texts) - len(keep)
        figures[arm] = _figures(setting, pictures, keep, asked, variants) | {"refused": refused}
        withheld = withheld_by(check, pictures)
        figures[f"{arm}_checked"] = _figures(setting, pictures[~withheld], keep[~withheld], asked, variants) | {
            "refused": refused,
            "withheld": int(withheld.sum()),
        }
        if arm == "guarded":
            figures[arm]["prefixed"] = sum(decisions[k].prefixed for k in keep)
    return figures


def _called(call: Any, attack: Attack, pipe: Any) -> Any:
    """The pipe or the guard, called as the attack calls it."""
    if attack.arguments is nothing_more:
        return call

    def attacked(texts: list[str], **usual: Any) -> Any:
        return call(**{"prompt": texts, **usual, **attack.arguments(texts, pipe)})

    return attacked


def _said(attack: Attack, pipe: Any) -> str:
    """What the attack says beside the prompts, so that pictures drawn with other arguments are other pictures."""
    return repr({key: value for key, value in attack.arguments(["x"], pipe).items() if isinstance(value, list | float)})


def withheld_by(check: OutputCheck, pictures: Pictures) -> npt.NDArray[np.bool_]:
    """Which pictures the output check would not release, shape (n,)."""
    withheld = np.zeros(len(pictures), dtype=np.bool_)
    if len(pictures):
        withheld[[sighting.picture for sighting in check.look(list(pictures)).sightings]] = True
    return withheld


def _figures(
    setting: Setting,
    pictures: Pictures,
    which: npt.NDArray[np.intp],
    asked: Sequence[Asked],
    variants: Sequence[str],
) -> Figures:
    """The figures of released pictures; `which` says for each what was asked."""
    if not len(pictures):
        return {"images": 0}
    figures = identity_figures(setting.judges, pictures, [asked[k] for k in which])
    if len(set(variants)) > 1:
        own, _ = recognised(setting.judges, pictures, [str(asked[k].person) for k in which])
        leaks = own >= setting.judges.thresholds["far_1e-3"]
        here = np.array([variants[k] for k in which])
        figures["variants"] = {
            variant: {"images": int((here == variant).sum()), "leaks": int(leaks[here == variant].sum())}
            for variant in dict.fromkeys(variants)
        }
    return figures
