"""Every suite there is, by name: those of the evaluation itself, attackers, people added later, models made later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from apl_guard.errors import ExtraMissing, InvalidInput
from apl_guard.trainer.attacks.suite import attacks
from apl_guard.trainer.evaluate import suites
from apl_guard.trainer.evaluate.suites import Suite
from apl_guard.trainer.personalise.suites import personalised, transfer

SUITES: Final[Mapping[str, Suite]] = {
    **suites.SUITES,
    "attacks": attacks,
    "personalised": personalised,
    "transfer": transfer,
}
"""Name → suite, in the order in which they are measured."""

_NEEDS: Final[Mapping[str, str]] = {"inactivity": "torchmetrics", "personalised": "peft", "transfer": "peft"}
"""Name → the package of the extra `eval` that only this suite needs."""


def choose(names: Iterable[str]) -> dict[str, Suite]:
    """Some suites by their names, in the order of the names.

    Raises:
        InvalidInput: There is no suite of that name.
        ExtraMissing: What one of them needs is not installed.

    Example:
        >>> list(choose(["gated", "seen"]))
        ['gated', 'seen']
        >>> choose(["scene"])
        Traceback (most recent call last):
        apl_guard.errors.InvalidInput: suites: found ['scene']; expected some of ['seen', 'unseen', 'generic', ...]
    """
    names = list(names)
    if unknown := [name for name in names if name not in SUITES]:
        raise InvalidInput(f"found {unknown}; expected some of {list(SUITES)}", where="suites")
    ExtraMissing.check("eval", *(_NEEDS[name] for name in names if name in _NEEDS))
    return {name: SUITES[name] for name in names}
