"""One call on its way through the guard: decided, recorded, carried out, checked, recorded again."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from apl_guard.audit import Outcome
from apl_guard.audit.images import image_digests
from apl_guard.backend import Generation, Receipt
from apl_guard.decision import Decision, Protection, protection_of
from apl_guard.detect.output import Looked, OutputCheck
from apl_guard.errors import (
    AplGuardError,
    DetectorFailed,
    GuardUnavailable,
    OutputWithheld,
    PolicyBlocked,
    PrefixNotApplied,
)
from apl_guard.guard.explain import explain, explain_failure
from apl_guard.guard.parts import Parts
from apl_guard.guard.refusal import refuse, unavailable
from apl_guard.in_force import PolicyInForce
from apl_guard.metrics import Stage, Watch
from apl_guard.policy import Action, Mode, OnError
from apl_guard.prefix import Prefix
from apl_guard.registry.fit import Fit
from apl_guard.request import GenerationRequest
from apl_guard.request.context import Context, current_context

__all__ = ["Call", "Guarded"]

_log = logging.getLogger("apl_guard")


@dataclass(frozen=True)
class Guarded:
    """The result of `guard.generate`: the output, the decision and the outcome."""

    output: Any
    """What the pipe returned, in the pipe's own type."""
    decision: Decision
    outcome: Outcome


class Call:
    """One call on its way through the guard.

    Args:
        request: What was asked, as the adapter read it.
        parts: Those of the guard.
        in_force: What decides about it. The guard may have another policy by the time that the call ends.
        watch: What times and counts the call.
    """

    def __init__(self, request: GenerationRequest, parts: Parts, in_force: PolicyInForce, watch: Watch) -> None:
        self._request = request
        self._parts = parts
        self._in_force = in_force
        self._policy = in_force.policy
        self._watch = watch
        self._fit: Fit | None = None
        self._prefix: Prefix | None = None
        self._in_front: Prefix | None = None
        """As much of the prefix as the policy asks for."""
        self._generation: Generation | None = None
        self._unprotected: Exception | None = None
        """Why there is no prefix, where the policy lets requests pass without."""
        self._looked: Looked | None = None
        self._unlooked: Exception | None = None
        """Why nobody looked at the pictures, where the policy lets them pass."""
        self._digests: tuple[str, ...] | None = None

    def run(self) -> Guarded:
        """Decide, act, record.

        Raises:
            PolicyBlocked: The policy decided against the request, or the output check against a picture.
            GuardUnavailable: The guard could not do its work.
            Exception: Whatever the pipe raises, unchanged.
        """
        try:
            context = current_context()
            with self._watch.stage(Stage.DETECT):
                findings = self._in_force.look(self._request, context)
            with self._watch.stage(Stage.DECIDE):
                self._decision = self._in_force.decide(self._request, context, findings)
        except Exception as error:
            refuse(error, self._parts, self._policy, self._watch, result="failed")
            raise unavailable(error) from error
        try:
            self._record(Stage.RECORD_DECISION, lambda: self._parts.audit.decision(self._decision, self._request))
        except Exception as error:
            self._watch.ended("failed", self._policy, error)
            raise unavailable(error) from error
        # From here on there is a decision on record, and whatever happens, an outcome.
        try:
            self._watch.decided(self._decision, self._policy, self._request)
            for what in self._decision.unsafe:
                self._warn(what)
            if self._decision.prefixed:
                self._take_prefix()
            self._request = self._request.saying(self._decision.texts)
            if self._decision.texts and self._decision.would_stay:
                self._look_again(context)
        except BaseException as error:
            self._end("failed", error)
            if not isinstance(error, Exception):  # such as Ctrl-C
                raise
            raise unavailable(error) from error
        if self._decision.is_blind:
            blind = DetectorFailed(explain_failure(self._decision))
            self._end("failed", blind)
            raise blind
        if self._decision.effective == Action.BLOCK:
            self._end("blocked")
            raise PolicyBlocked(explain(self._decision), decision=self._decision)
        self._generation = generation = self._generate()
        if self._prefix is not None and self._in_front is not None:
            self._check_receipt(self._in_front, generation)
            self._watch.used(self._prefix)
        if self._parts.output_check is not None and self._decision.mode != Mode.OFF:
            self._look_at(generation, self._parts.output_check)
        self._digest(generation)
        outcome = self._end("passed")
        self._watch.released(self._decision, generation.images, self._protection)
        if self._parts.leak_samples is not None:
            self._parts.leak_samples.offer(self._decision, self._request, generation.output, self._protection)
        return Guarded(generation.output, self._decision, outcome)

    def _look_again(self, context: Context) -> None:
        """Make sure that no name came into being where one was replaced, as `Mara Mara Voss Voss` may leave one."""
        found = Counter(finding.source for finding in self._in_force.look(self._request, context).found)
        more = [
            source
            for source, stay in self._decision.would_stay.items()
            if source.startswith("names.") and found[source] > stay
        ]
        if more:
            raise GuardUnavailable(
                f"rewriting leaves somebody of {', '.join(more)} in the prompt: what is put in place of a name makes "
                "one of the words around it; give these lists another 'neutral'"
            )

    @property
    def _slots_without_prefix(self) -> tuple[str, ...]:
        """The text encoders that got the prompts without the prefix of this call."""
        prefix = self._prefix
        return () if prefix is None else tuple(s for s in self._request.slots if s not in prefix.metadata.widths)

    @property
    def _protection(self) -> Protection:
        """What can be said of the images, once the receipt was checked."""
        is_match_released = self._looked is not None and bool(self._looked.sightings)
        failed = self._unprotected is not None or self._unlooked is not None or is_match_released
        proven = self._prefix is not None and not self._slots_without_prefix
        return protection_of(self._decision, proven=proven, failed=failed)

    def _take_prefix(self) -> None:
        """Find the prefix, or go on without where the policy says so in so many words."""
        try:
            with self._watch.stage(Stage.FIND_PREFIX):
                self._fit = self._parts.finder.find(self._decision.prefix, self._policy.spec.prefix)
                self._prefix = self._fit.prefix
                self._in_front = self._prefix.first(self._decision.rows(self._prefix.n))
        except Exception as error:
            if self._policy.spec.on_error != OnError.PASSTHROUGH:
                raise
            self._unprotected = error
            self._watch.went_on(Stage.FIND_PREFIX, error)
            self._warn(f"on_error: {OnError.PASSTHROUGH.value} ({type(error).__name__})")

    def _warn(self, what: str) -> None:
        """Say each time that protection was switched off."""
        decision = self._decision
        _log.warning("policy '%s' switches protection off: %s (decision %s)", decision.policy, what, decision.id)

    def _generate(self) -> Generation:
        try:
            with self._watch.generating():
                generation = self._parts.backend.generate(self._request, self._in_front)
        except BaseException as error:
            self._end("failed" if isinstance(error, AplGuardError) else "backend_error", error)
            raise
        self._watch.generated(generation)
        return generation

    def _check_receipt(self, prefix: Prefix, generation: Generation) -> None:
        """Believe that the prefix was in front of every prompt only where every text encoder saw it."""
        problem = _find_problem(generation.receipt, prefix.metadata.widths, prefix.n, self._request.batch)
        if problem is not None:
            error = PrefixNotApplied(f"{problem}; something replaced the text encoder or its tokenizer during the call")
            self._end("failed", error)
            raise error

    def _look_at(self, generation: Generation, check: OutputCheck) -> None:
        """Release no picture of anybody in the gallery, and none that nobody could look at."""
        is_enforced = self._decision.mode == Mode.ENFORCE and self._decision.in_rollout
        try:
            with self._watch.stage(Stage.CHECK_OUTPUT):
                looked = check.look_at(generation.output, generation.images)
        except Exception as error:
            self._unlooked = error
            if is_enforced and self._policy.spec.on_error != OnError.PASSTHROUGH:
                self._end("failed", error)
                raise unavailable(error) from error
            self._watch.went_on(Stage.CHECK_OUTPUT, error, "passed_through" if is_enforced else "audit")
            _log.warning("images pass unchecked: %s (decision %s)", type(error).__name__, self._decision.id)
            return
        except BaseException as error:  # such as Ctrl-C
            self._end("failed", error)
            raise
        self._looked = looked
        self._watch.looked(looked)
        if looked.sightings and is_enforced:
            self._end("withheld")
            matches = f"{len(looked.sightings)} of {len(looked.faces)} images"
            raise OutputWithheld(
                f"{matches} show somebody of the gallery, so none is released",
                decision=self._decision,
                sightings=looked.sightings,
            )

    def _digest(self, generation: Generation) -> None:
        try:
            with self._watch.stage(Stage.DIGEST_IMAGES):
                self._digests = image_digests(generation.output, generation.images)
        except BaseException as error:  # such as Ctrl-C
            self._end("failed", error)
            raise

    def _end(self, result: str, error: BaseException | None = None) -> Outcome:
        """Record how the call ended. Nothing is released if that fails."""
        generation, prefix, check = self._generation, self._prefix, self._parts.output_check
        receipt = Receipt() if generation is None else generation.receipt
        outcome = Outcome(
            id=self._decision.id,
            result=result,
            effective=(Action.ALLOW if self._unprotected is not None else self._decision.effective).value,
            images=generation.images if generation is not None and result == "passed" else 0,
            image_sha256=self._digests if result == "passed" else None,
            protection=self._protection if result == "passed" else None,
            prefix=prefix.metadata.name if prefix is not None else None,
            prefix_digest=prefix.digest if prefix is not None else None,
            prefix_match=self._fit.tier.value if self._fit is not None else None,
            prefix_rows=dict(receipt.prefix_rows),
            tokens_cut=dict(receipt.tokens_cut),
            change=dict(receipt.change or {}),
            slots_without_prefix=self._slots_without_prefix,
            output_check=None if check is None else check.record(self._looked, self._unlooked),
            error=type(why).__name__ if (why := error or self._unprotected or self._unlooked) else None,
            overhead_ms=round(1000 * self._watch.overhead_seconds, 3),
            generation_ms=_milliseconds(self._watch.generation_seconds),
        )
        try:
            self._record(Stage.RECORD_OUTCOME, lambda: self._parts.audit.outcome(outcome))
        except Exception as unwritten:
            self._watch.ended("failed", self._policy, unwritten)
            raise unavailable(unwritten) from (error or unwritten)
        self._watch.ended(result, self._policy, error)
        return outcome

    def _record(self, stage: Stage, write: Callable[[], None]) -> None:
        with self._watch.stage(stage), self._watch.recording(self._parts.audit.sink):
            write()


def _find_problem(receipt: Receipt, slots: Iterable[str], n: int, batch: int) -> str | None:
    """What a receipt lacks, or None.

    Args:
        receipt: What the text encoders really received.
        slots: Those that should have received the prefix.
        n: Number of its vectors.
        batch: Number of prompts. A pipeline may encode them more than once.
    """
    for slot in slots:
        rows = receipt.prefix_rows.get(slot, ())
        if not batch or set(rows) != {n} or len(rows) % batch:
            return f"{slot} received {list(rows)} prefix vectors, expected {n} in front of each of {batch} prompts"
        change = None if receipt.change is None else receipt.change.get(slot, ())
        if change is not None and (len(change) != len(rows) or not all(0 < c < math.inf for c in change)):
            return f"the prefix changed what {slot} gave by {list(change)}, expected a change for each prompt"
    return None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
