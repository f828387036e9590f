"""Sampled calls that wait until their leaks are measured, and the measuring."""

from __future__ import annotations

import logging
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

from apl_guard.audit import AuditLog
from apl_guard.backend import Backend, DrawsPlain
from apl_guard.decision import Decision, Protection
from apl_guard.detect.leaks import LeakWatch, Seen, compare
from apl_guard.detect.pictures import Picture, read_pictures
from apl_guard.errors import GuardUnavailable, InvalidInput, OutputCheckFailed
from apl_guard.metrics import Metrics
from apl_guard.request import TEXT_CHANNELS, GenerationRequest

__all__ = ["LeakSample", "LeakSamples"]

_log = logging.getLogger("apl_guard")


@dataclass(frozen=True)
class LeakSample:
    """What was seen in the pictures of one sampled call."""

    decision_id: str
    """The call."""
    seen: tuple[Seen, ...]
    """For each of its pictures."""
    highest: float | None
    """The greatest similarity of a guarded face to that of somebody whom the model knows by the prompt."""


@dataclass(frozen=True)
class _Waiting:
    decision_id: str
    request: GenerationRequest
    pictures: list[Picture]
    drawn_by: object
    """The fingerprints of the text encoders."""


class LeakSamples:
    """The samples of one guard.

    Args:
        watch: Which calls are sampled, and how they are judged.
        backend: What draws again.
        audit: Where it is recorded.
        metrics: Where it is counted.

    Raises:
        InvalidInput: The backend cannot draw again without the prefix.
    """

    def __init__(self, watch: LeakWatch, backend: Backend, audit: AuditLog, metrics: Metrics) -> None:
        if not isinstance(backend, DrawsPlain):
            raise InvalidInput(
                f"leaks are measured by drawing again without the prefix, which the adapter for {backend.name} cannot",
                where="leak_watch",
            )
        self._watch = watch
        self._backend: DrawsPlain = backend
        self._fingerprints = backend.fingerprints
        self._audit = audit
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque(maxlen=watch.keep)
        self._dice = random.Random()  # the caller's is not touched

    def offer(self, decision: Decision, request: GenerationRequest, output: Any, protection: Protection) -> None:
        """Keep a call that was answered, if it falls into the share.

        Only calls that nothing but text decides are taken, for nothing else can be drawn again.
        """
        if protection != Protection.APPLIED or not request.used <= set(TEXT_CHANNELS):
            return
        if self._dice.random() >= self._watch.share:
            return
        try:
            pictures = [picture.copy() for picture in read_pictures(output)]  # the caller may draw into their own
            drawn_by = self._fingerprints()
        except OutputCheckFailed:
            return  # such as latents
        except Exception as error:  # such as no memory: the call has ended well and stays so
            _log.warning("a sample of leaks was not kept (%s, decision %s)", type(error).__name__, decision.id)
            return
        self._waiting.append(_Waiting(decision.id, request, pictures, drawn_by))

    def measure(self, most: int | None = None) -> tuple[LeakSample, ...]:
        """Draw, look, record and count what waits; see `Guard.measure_leaks`."""
        measured: list[LeakSample] = []
        while self._waiting and (most is None or len(measured) < most):
            try:
                waiting = self._waiting.popleft()
            except IndexError:  # another thread measures, too
                break
            sample = self._measure(waiting)
            self._audit.leak_sample(
                sample.decision_id, sample.seen, sample.highest, self._watch.recogniser, self._watch.threshold
            )
            self._metrics.leak_sampled(sample.seen)
            measured.append(sample)
        return tuple(measured)

    def _measure(self, waiting: _Waiting) -> LeakSample:
        if self._fingerprints() != waiting.drawn_by:
            raise GuardUnavailable("the backend has other text encoders than drew the sample, so nothing is measured")
        n = len(waiting.pictures)
        self._audit.leak_drawing(waiting.decision_id, 2 * n)  # on record whatever becomes of it
        plain, another = (read_pictures(self._backend.draw_plain(waiting.request).output) for _ in range(2))
        if not len(plain) == len(another) == n:
            raise GuardUnavailable(
                f"the backend drew {len(plain)} and {len(another)} images again; expected {n}, so nothing is measured"
            )
        faces = self._watch.faces.read([*waiting.pictures, *plain, *another])
        found = [compare(faces[k], faces[n + k], faces[2 * n + k], self._watch.threshold) for k in range(n)]
        highest = max((similarity for _, similarity in found if similarity is not None), default=None)
        return LeakSample(waiting.decision_id, tuple(seen for seen, _ in found), highest)
