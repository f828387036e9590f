"""From pictures to figures: what the judges see against what was asked for.

Letters: n pictures, E width of an embedding, G people in the gallery.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from apl_guard.trainer.evaluate.result import Asked, Figures, Pictures
from apl_guard.trainer.evaluate.statistics import bootstrap_interval, clopper_pearson, frechet_distance

if TYPE_CHECKING:
    from apl_guard.trainer.minifaces.judge import Judges


def spoken(attributes: Mapping[str, str], text: str) -> dict[str, str]:
    """Those attributes whose value a text says.

    Example:
        >>> spoken({"sex": "man", "skin": "tan", "beard": "none"}, "a man with tan skin")
        {'sex': 'man', 'skin': 'tan'}
        >>> spoken({"sex": "man", "skin": "tan"}, "a woman")
        {}
    """
    return {key: value for key, value in attributes.items() if re.search(rf"\b{re.escape(value)}\b", text)}


def rate(name: str, hits: Sequence[bool] | npt.NDArray[np.bool_]) -> Figures:
    """A share with its interval.

    Example:
        >>> rate("face_ratio", [True, True])["face_ratio"]
        1.0
    """
    n, successes = len(hits), int(np.sum(hits))
    low, high = clopper_pearson(successes, n)
    return {name: successes / n if n else None, f"{name}_ci": [low, high]}


def fidelity(name: str, read: Sequence[Mapping[str, str]], asked: Sequence[Mapping[str, str]]) -> Figures:
    """The share of the attributes asked for that the judge reads; absent where none were asked for.

    Example:
        >>> fidelity("scene_fidelity", [{"clothing": "red"}], [{"clothing": "red"}])["scene_fidelity"]
        1.0
    """
    hits = [seen.get(key) == value for seen, wanted in zip(read, asked, strict=True) for key, value in wanted.items()]
    return rate(name, hits) if hits else {}


def identity_figures(judges: Judges, pictures: Pictures, asked: Sequence[Asked]) -> Figures:
    """The figures of one arm on pictures of named people.

    Args:
        judges: The judges of the reference world.
        pictures: Shape (n, 64, 64, 3), bytes.
        asked: What each should show, n entries, each with a person.
    """
    names = judges.gallery.names
    known = {name: k for k, name in reversed(list(enumerate(names)))}  # the first entry of a name is the person
    person = np.array([known[one.person] for one in asked if one.person is not None])
    similarity = (judges.embed(pictures) @ judges.gallery.embeddings.T).numpy()  # (n, G)
    own = similarity[np.arange(len(person)), person]  # (n,)
    read = judges.attributes(pictures)
    figures: Figures = {"images": len(pictures)}
    figures |= rate("top1", similarity.argmax(1) == person)
    for far in ("1e-2", "1e-3"):
        figures |= rate(f"leak_far_{far}", own >= judges.thresholds[f"far_{far}"])
    figures |= rate("face_ratio", judges.has_face(pictures))
    figures |= fidelity("attribute_fidelity", read, [one.attributes for one in asked])
    figures |= fidelity("scene_fidelity", read, [one.scene for one in asked])
    return figures


def generic_figures(judges: Judges, pictures: Pictures, fresh: Pictures, asked: Sequence[Asked], seed: int) -> Figures:
    """The figures of one arm on generic prompts.

    Args:
        judges: The judges of the reference world.
        pictures: The arm's pictures, shape (n, 64, 64, 3), bytes.
        fresh: Plain pictures of the same prompts from other seeds, same shape.
        asked: What each should show, n entries.
        seed: Of the bootstrap.
    """
    sets = [judges.features(part).double().numpy() for part in (pictures, fresh)]
    figures: Figures = {"images": len(pictures)}
    figures |= fidelity("attribute_fidelity", judges.attributes(pictures), [one.attributes for one in asked])
    figures["frechet"] = frechet_distance(*sets)
    figures["frechet_ci"] = list(bootstrap_interval(frechet_distance, sets, seed=seed))
    return figures
