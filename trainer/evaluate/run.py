"""The evaluation from top to bottom: a setting, its suites, and what they found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from apl_guard.errors import InvalidInput
from apl_guard.policy import Policy
from apl_guard.prefix import Prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.config import NeutralKind
from apl_guard.trainer.evaluate.asking import check_templates
from apl_guard.trainer.evaluate.provenance import provenance
from apl_guard.trainer.evaluate.reference_world import require_reference_world
from apl_guard.trainer.evaluate.result import Album, EvalResult, Figures
from apl_guard.trainer.evaluate.setting import Setting, pictures_folder
from apl_guard.trainer.evaluate.suites import DEFAULT_SUITES, Suite
from apl_guard.trainer.minifaces.judge import Judges
from apl_guard.trainer.model.number_format import precision_of


def evaluate(
    pipe: Any,
    prefix: Prefix | str | Path,
    suites: Mapping[str, Suite] = DEFAULT_SUITES,
    *,
    policy: Policy | str | Path | None = None,
    images_per_person: int = 4,
    people_limit: int | None = None,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 3.0,
    neutral: NeutralKind = "coarse",
    templates: Sequence[str] | None = None,
    judges: Judges | None = None,
    folder: Path | None = None,
    keep_images: bool = False,
    fast: bool = False,
    progress: bool = True,
) -> EvalResult:
    """Measure leak, fidelity and drift of a prefix on the reference world.

    A run that was stopped goes on where it was when it is started again: pictures are kept on disk.

    Args:
        pipe: A model of the reference world.
        prefix: The prefix, its folder, or its name.
        suites: Name → suite: some of `apl_guard.trainer.suites`, or your own; default "seen" and "unseen" people,
            "generic" prompts.
        policy: Under which the guard acts, a file, or the name of a built-in policy; default the strictest built-in one
            that permits what a suite asks, "anonymize_faces" for most.
        images_per_person: Pictures of each person in each arm; generic prompts are 80 times as many.
        people_limit: At most so many people in a suite, evenly picked, and generic prompts in proportion
            (40 people stand for all of them).
        seed: Of prompts and pictures; both are disjoint from those of training.
        steps: Denoising steps.
        guidance: Classifier-free guidance.
        neutral: What the neutral prompt keeps.
        templates: Texts with `{name}` in place of the held-out prompts; they ask for no scene.
        judges: Who looks at the pictures; default the judges that are shipped.
        folder: Where pictures are kept; default a folder of the user's cache.
        keep_images: Whether the result holds the pictures.
        fast: Whether the UNet may compute in bfloat16. For research; leave it off for figures to report.
        progress: Whether to draw progress bars.

    Raises:
        PrefixInvalid, PrefixNotFound: The prefix is damaged or belongs to another text encoder.
        PolicyInvalid: The policy cannot be used, or its own tests fail.
        PolicyBlocked: It refuses what a suite asks.
        ModelInvalid: The model is not of the reference world.
        InvalidInput: A template has no `{name}` in it, or there is no suite.
        ExtraMissing: scipy is not installed.
        StorageFailed: A picture cannot be kept.
    """
    if not suites:
        raise InvalidInput("found none; expected at least one", where="suites")
    require_reference_world(pipe)
    loaded = Prefix.load(prefix) if isinstance(prefix, (str, Path)) else prefix
    album = Album()
    setting = Setting.of(
        pipe,
        loaded,
        judges or minifaces.judges(),
        policy,
        seed=seed,
        steps=steps,
        guidance=guidance,
        images_per_person=images_per_person,
        people_limit=people_limit,
        neutral=neutral,
        templates=None if templates is None else tuple(check_templates(list(templates), "templates")),
        precision=precision_of(pipe.unet.device, "auto") if fast else torch.float32,
        folder=folder or pictures_folder(),
        progress=progress,
        album=album if keep_images else None,
    )
    figures: dict[str, dict[str, Figures]] = {}
    for suite in suites.values():
        figures |= suite(setting)
    return EvalResult(
        suites=figures,
        settings={
            "suites": list(suites),
            "images_per_person": images_per_person,
            "people_limit": people_limit,
            "seed": seed,
            "steps": steps,
            "guidance": guidance,
            "neutral": neutral,
            "own_templates": templates is not None,
            **provenance(setting),
        },
        images=album.images,
        asked=album.asked,
    )
