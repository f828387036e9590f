"""Whether guarded pictures of a running service show those whom their prompts name, judged without any name.

The model draws a prompt twice more without the prefix, from other random numbers. If both plain pictures show one
and the same person, the model knows somebody by this prompt, and the guarded picture must not show that person. No
list, no gallery and no reading of prompts is needed, so this also sees people of whom nobody has thought.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from apl_guard.detect.faces import FaceReader, check_threshold
from apl_guard.detect.gallery import Embeddings, Recogniser
from apl_guard.errors import InvalidInput

__all__ = ["LeakWatch", "Seen", "compare"]


class Seen(StrEnum):
    """What a guarded picture and two plain ones of its prompt show."""

    LEAKED = "leaked"
    """The plain ones show one person, and so does the guarded one."""
    HIDDEN = "hidden"
    """The plain ones show one person, the guarded one others."""
    FACELESS = "faceless"
    """The plain ones show one person, the guarded one nobody."""
    NOBODY = "nobody"
    """The plain ones show nobody in common: the model knows nobody by this prompt."""


class LeakWatch:
    """How a guard measures leaks in service: on which share of calls, and with which recogniser.

    Of these calls the guard keeps prompt and images in memory until `guard.measure_leaks()`, which generates each
    prompt twice more **without protection**, compares faces, and throws all images away.

    Args:
        recogniser: Finds and recognises faces. Use another one than the output check's, which would miss what that
            one missed.
        threshold: The cosine similarity from which two faces count as one person's. Set it on images of different
            people, by the share of pairs that may pass: at 1 of 1,000 and without any leak, 1 of 1,000 prompts
            about people in general counts by chance, and 1 of 500 of these as leaked.
        share: Of the calls that are anonymized by prompts alone, how many are sampled, above 0 and at most 1.
        keep: How many samples may wait; beyond that the oldest is dropped.
        seconds: How long to wait for the recogniser.

    Raises:
        InvalidInput: A number is out of range.

    Example:
        >>> class Brightness:
        ...     name = "brightness 1"
        ...     def __call__(self, pictures):
        ...         return [np.array([[p.mean(), 255 - p.mean()]]) for p in pictures]
        >>> LeakWatch(Brightness(), threshold=0.9, share=0.001)
        LeakWatch('brightness 1', threshold=0.9, share=0.001)
    """

    def __init__(
        self, recogniser: Recogniser, threshold: float, *, share: float = 0.001, keep: int = 32, seconds: float = 10.0
    ) -> None:
        if not 0 < share <= 1:
            raise InvalidInput(f"found {share}; expected a share above 0, at most 1", where="share")
        if keep < 1:
            raise InvalidInput(f"found {keep}; expected room for at least one sample", where="keep")
        self.threshold = check_threshold(threshold)
        self.share = share
        self.keep = keep
        self.recogniser = recogniser.name
        """Name of the recogniser."""
        self.faces = FaceReader(recogniser, seconds)

    def __repr__(self) -> str:
        return f"LeakWatch({self.recogniser!r}, threshold={self.threshold}, share={self.share})"


def compare(guarded: Embeddings, plain: Embeddings, another: Embeddings, threshold: float) -> tuple[Seen, float | None]:
    """Compare the faces of three pictures of one prompt.

    Args:
        guarded: Those of the guarded picture, shape (F, E), of unit length.
        plain: Those of one without the prefix, shape (G, E).
        another: Those of another without the prefix, shape (H, E).
        threshold: The cosine similarity from which two faces are one person's.

    Returns:
        What they show, and the greatest similarity of a guarded face to one of somebody whom the plain ones have in
        common; None where there is no such pair.

    Example:
        >>> she, he = np.eye(2, dtype=np.float32)[:, None]
        >>> compare(he, she, she, 0.9)
        (<Seen.HIDDEN: 'hidden'>, 0.0)
        >>> compare(she, she, he, 0.9)
        (<Seen.NOBODY: 'nobody'>, None)
    """
    if not len(plain) or not len(another):
        return Seen.NOBODY, None
    is_same = plain @ another.T >= threshold  # (G, H)
    known = np.concatenate([plain[is_same.any(1)], another[is_same.any(0)]])
    if not len(known):
        return Seen.NOBODY, None
    if not len(guarded):
        return Seen.FACELESS, None
    highest = float((guarded @ known.T).max())
    return (Seen.LEAKED if highest >= threshold else Seen.HIDDEN), highest
