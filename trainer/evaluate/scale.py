"""Scale: how a prefix fares with fewer people to learn from, with other numbers of vectors, and with another loss.

One setting at a time is changed from a recipe; for each value a prefix is trained and measured. All of it is kept in
one folder, so a run that was stopped goes on: finished prefixes are taken as they are, an unfinished training and an
unfinished evaluation where they stood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apl_guard.errors import ExtraMissing, InvalidInput, PrefixInvalid
from apl_guard.prefix import Prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.evaluate.asking import ask_for_anything, ask_for_people, evenly
from apl_guard.trainer.evaluate.curves import Curve
from apl_guard.trainer.evaluate.result import Figures
from apl_guard.trainer.evaluate.scores import fidelity, identity_figures
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.train import train

AXES: dict[str, tuple[float, ...]] = {
    "identities": (20, 60, 120),
    "vectors": (1, 2, 5, 10, 20),
    "eta": (0, 0.5, 1, 2),
    "share": (0.25, 0.5, 0.75),
}
"""Setting → the values that are tried."""
_LABELS = {
    "identities": ("People trained on", "people"),
    "vectors": ("Vectors", "N"),
    "eta": ("Strength of the negative guidance", "η"),
    "share": ("Share of identity examples in a batch", "share"),
}


def measure_scale(
    pipe: Any,
    recipe: TrainConfig,
    people: Identities,
    output: Path,
    axes: Mapping[str, Sequence[float]] = AXES,
    *,
    measured: Callable[[list[Curve]], None] = lambda curves: None,
    progress: bool = True,
    **options: Any,
) -> list[Curve]:
    """Train and measure a prefix for each value of each axis.

    Args:
        pipe: A model of the reference world.
        recipe: What is the same in all of them.
        people: Whom to train on; fewer are evenly picked.
        output: Folder for the prefixes.
        axes: Setting → values; see `AXES`.
        measured: Called with the curves after each point, so that they can be written.
        progress: Whether to draw progress bars.
        options: Of the `Setting` in which they are measured: `judges`, `images_per_person`, `people_limit`, `seed`, …

    Returns:
        A curve for each axis: leak among the people trained on, leak among unseen people, attributes that other
        prompts keep.

    Raises:
        InvalidInput: An axis is unknown, there are not so many people, or a prefix in the folder was made otherwise.
        StorageFailed: Something cannot be written.
    """
    ExtraMissing.check("eval", "scipy")
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown or not axes:
        raise InvalidInput(f"found {unknown or 'none'}; expected some of {list(AXES)}", where="axes")
    curves = [Curve(*_LABELS[axis]) for axis in axes]
    # All of them here: a value that cannot be is not to be found after hours of training with those before it.
    varied = [[(value, *vary(recipe, len(people.identities), axis, value)) for value in axes[axis]] for axis in axes]
    for curve, points in zip(curves, varied, strict=True):
        for value, config, count in points:
            prefix = _trained(pipe, config, _some(people, count), output, progress)
            point = _measure(Setting.of(pipe, prefix, progress=progress, **options), _some(people, count))
            curve.points.append({"x": value, "label": f"{curve.x} = {value:g}", **point})
            measured(curves)
    return curves


def vary(recipe: TrainConfig, people: int, axis: str, value: float) -> tuple[TrainConfig, int]:
    """The recipe with one setting changed, and how many people to train on.

    Raises:
        InvalidInput: There are not so many people, no examples would be left of one kind, or a number is not whole.

    Example:
        >>> config, people = vary(TrainConfig(), 120, "share", 0.25)
        >>> config.identity_batch, config.generic_batch, people
        (8, 24, 120)
    """
    if axis in ("identities", "vectors") and not float(value).is_integer():
        raise InvalidInput(f"found {value:g}; expected a whole number", where=axis)
    if axis == "identities":
        if not 1 <= value <= people:
            raise InvalidInput(f"found {value:g}; expected 1 to {people}, which is how many there are", where=axis)
        return recipe, int(value)
    if axis == "share":
        batch = recipe.identity_batch + recipe.generic_batch
        identity = round(value * batch) if 0 < value < 1 else 0
        if not 0 < identity < batch:
            raise InvalidInput(f"a share of {value:g} leaves no examples of one kind in a batch of {batch}", where=axis)
        changes: dict[str, float] = {"identity_batch": identity, "generic_batch": batch - identity}
    else:
        changes = {"eta": value} if axis == "eta" else {"n_vectors": int(value)}
    return recipe.with_overrides([f"{name}={changed}" for name, changed in changes.items()]), people


def _some(people: Identities, count: int) -> Identities:
    """So many of them, evenly picked."""
    return people.model_copy(update={"identities": tuple(evenly(people.identities, count))})


def _trained(pipe: Any, config: TrainConfig, people: Identities, output: Path, progress: bool) -> Prefix:
    """The prefix of these options: trained before, or now."""
    share = f"{config.identity_batch}of{config.identity_batch + config.generic_batch}"
    folder = output / f"people{len(people.identities)}-N{config.n_vectors}-eta{config.eta:g}-share{share}"
    try:
        prefix = Prefix.load(folder)
    except PrefixInvalid:
        train(config, pipe, people, minifaces.captions(config.generic_count, config.seed), folder, progress=progress)
        return Prefix.load(folder)
    if prefix.metadata.config_digest != config.digest:
        raise InvalidInput("holds a prefix that was trained with other options; choose another folder", where=folder)
    return prefix


def _measure(setting: Setting, people: Identities) -> Figures:
    asked = ask_for_people(setting, "seen", among={person.name for person in people.identities})
    point: Figures = {}
    for label, group in (("leak, trained people", asked), ("leak, unseen people", ask_for_people(setting, "unseen"))):
        figures = identity_figures(setting.judges, setting.draw_asked(setting.guard, group, "scale"), group)
        point |= {label: figures["leak_far_1e-3"], f"{label}_ci": figures["leak_far_1e-3_ci"]}
    others = ask_for_anything(setting)
    read = setting.judges.attributes(setting.draw_asked(setting.guard, others, "generic"))
    return point | fidelity("attributes kept, other prompts", read, [one.attributes for one in others])
