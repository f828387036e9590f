"""Where records go: a log in a folder that proves itself, or the platform's logging, or both."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from apl_guard.audit.checkpoint import Identity
from apl_guard.audit.disk import unavailable
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.platform import as_structlog, platform_logger, warn_if_dropped
from apl_guard.audit.record_fields import (
    Outcome,
    decision_record,
    leak_drawing_record,
    leak_record,
    outcome_record,
    refusal_record,
)
from apl_guard.audit.subjects import SubjectKeys
from apl_guard.decision import Decision
from apl_guard.errors import InvalidInput
from apl_guard.policy import Policy
from apl_guard.request import GenerationRequest
from apl_guard.request.context import current_context

__all__ = ["AuditLog"]

_KEY_BYTES = 32


class AuditLog:
    """Writes decision and outcome records.

    Args:
        folder: Each record is on disk here before the call goes on, as one JSON object on a line, chained to
            the one before and sealed by signed checkpoints. None sends records to the platform: to its
            structlog configuration, or where structlog is not configured, to the standard logger
            `apl_guard.audit`; at level info. Where that drops them, one warning says so.
        witness: Folders, best on another machine, that receive the checkpoints. The log is held against them.
        keys: Folder of the log's keys. None stands for `keys` in its folder.
        logger: A logger of structlog, or of Python's logging, that receives each record too: a decision after it is
            on disk, all others before, for what it does not take counts as not written.
        capture: `digests` keeps keyed digests of prompts. `encrypted` also keeps their text, encrypted for the
            subject that `guard.context(subject=…)` names, until `apl-guard audit erase` destroys its key.
        options: How often the log is sealed.

    Raises:
        AuditUnavailable: The folder, a witness or a key cannot be used.
        InvalidInput: The arguments do not fit together.

    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with AuditLog(folder + "/log", witness=folder + "/witness"):
        ...         sorted(os.listdir(folder + "/log"))
        ['.lock', 'checkpoints.jsonl', 'keys', 'keys-000000.pub', 'log.json', 'segments']
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        witness: str | Path | Iterable[str | Path] = (),
        keys: str | Path | None = None,
        logger: Any = None,
        capture: Literal["digests", "encrypted"] = "digests",
        options: LogOptions | None = None,
    ) -> None:
        witnesses = [Path(witness)] if isinstance(witness, str | Path) else [Path(each) for each in witness]
        if capture not in ("digests", "encrypted"):
            raise InvalidInput(f"found {capture!r:.40}; expected 'digests' or 'encrypted'", where="capture")
        if folder is None and (witnesses or keys is not None or capture != "digests"):
            raise InvalidInput(
                "a witness, keys and text belong to a log in a folder; name the folder too", where="audit"
            )
        self._durable: DurableLog | None = None
        self._logger = None if logger is None else as_structlog(logger)
        self._captures = capture == "encrypted"
        if folder is not None:
            self._durable = DurableLog(Path(folder), witnesses, Path(keys) if keys is not None else None, options)
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._has_warned = False

    @property
    def sink(self) -> str:
        """Where a record has to arrive before a call goes on: `log`, or `platform`."""
        return "platform" if self._durable is None else "log"

    def decision(self, decision: Decision, request: GenerationRequest) -> None:
        """Write what was decided.

        Raises:
            AuditUnavailable: The record is not durable.
        """
        try:
            key = self._digest_key  # taken once, for another may be put in use at any moment
            fields = decision_record(decision, request, key)
            fields |= self._about_subject(decision, request, key)
        except Exception:
            if self._durable is not None:
                self._durable.refuse("guard.decision", decision.id)
            raise
        self._write("guard.decision", fields, decision=decision.id, opens=True)

    def outcome(self, outcome: Outcome) -> None:
        """Write what was done.

        Raises:
            AuditUnavailable: The record is not durable.
        """
        self._write("guard.outcome", outcome_record(outcome), decision=outcome.id, closes=True)

    def refusal(self, decision_id: str, backend: str, policy: Policy, result: str, error: str) -> None:
        """Write that the arguments of a call could not be read.

        Args:
            decision_id: An id of its own, since there is no decision.
            backend: The adapter that refused.
            policy: The policy in force.
            result: How the call ended, one of `apl_guard.metrics.RESULTS`.
            error: Type of the error.

        Raises:
            AuditUnavailable: The record is not durable.
        """
        fields = refusal_record(decision_id, backend, policy, result, error, current_context())
        self._write("guard.refusal", fields, decision=decision_id)

    def leak_drawing(self, decision_id: str, pictures: int) -> None:
        """Write that a call's prompt is drawn again without protection, before that happens.

        Args:
            decision_id: The call.
            pictures: How many are drawn.

        Raises:
            AuditUnavailable: The record is not durable.
        """
        self._write("leak.drawing", leak_drawing_record(decision_id, pictures), decision=decision_id)

    def leak_sample(
        self, decision_id: str, seen: Iterable[str], highest: float | None, recogniser: str, threshold: float
    ) -> None:
        """Write what was seen when a call's prompt was drawn again without protection.

        Args:
            decision_id: The call.
            seen: For each of its pictures, one of `apl_guard.detect.leaks.Seen`.
            highest: The greatest similarity of a guarded face to that of somebody whom the model knows.
            recogniser: Name of what told the faces.
            threshold: The similarity from which two were one person's.

        Raises:
            AuditUnavailable: The record is not durable.
        """
        fields = leak_record(decision_id, seen, highest, recogniser, threshold)
        self._write("leak.sample", fields, decision=decision_id)

    def in_force(self, event: Literal["in_force", "reloaded", "rejected"], fields: Mapping[str, Any]) -> None:
        """Write which policy is in force from now on, or that another was not put in force.

        Args:
            event: A guard has started; another policy has taken the place of its policy; or one was found wrong.
            fields: What `policy_record` makes of it.

        Raises:
            AuditUnavailable: The record is not durable.
        """
        self._write(f"policy.{event}", fields, decision=None)

    @property
    def identity(self) -> Identity | None:
        """The id and the public key of the log in a folder."""
        return None if self._durable is None else self._durable.identity

    def seal(self) -> None:
        """Make a checkpoint now, rather than within a second.

        Raises:
            AuditUnavailable: It cannot be made, or not be exported.
        """
        if self._durable is not None:
            self._durable.seal()

    def close(self) -> None:
        """Write the last checkpoint. It happens by itself when the program ends, or soon after the log is let go."""
        if self._durable is not None:
            self._durable.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _digest_key(self) -> bytes:
        return self._key if self._durable is None else self._durable.digest_key

    def _about_subject(self, decision: Decision, request: GenerationRequest, key: bytes) -> dict[str, Any]:
        subject = current_context().subject
        if self._durable is None or not (subject or self._captures):
            return {}
        keys = SubjectKeys(self._durable.keys, key)
        if not self._captures:
            return {"subject": keys.name_of(str(subject))}
        try:
            texts = {channel.value: found for channel, found in request.text.items()}
            return keys.encrypt(subject, decision.id, texts)
        except OSError as error:
            raise unavailable(error, self._durable.keys) from error

    def _write(
        self,
        event: str,
        fields: Mapping[str, Any],
        *,
        decision: str | None,
        opens: bool = False,
        closes: bool = False,
    ) -> None:
        # The logger may raise, and then there is no image. What is on disk by then must not say that there was one.
        if not opens:
            self._tell(event, fields, unless=(event, decision, closes))
        if self._durable is not None:
            self._durable.append(event, fields, decision=decision, opens=opens, closes=closes)
        if opens:
            self._tell(event, fields, unless=("guard.outcome", decision, True))  # the call ends here

    def _tell(self, event: str, fields: Mapping[str, Any], unless: tuple[str, str | None, bool]) -> None:
        """Send a record to the platform. Where that fails, the log says what is not written."""
        if self._durable is not None and self._logger is None:
            return
        try:
            logger = platform_logger() if self._logger is None else self._logger
            logger.info(event, **fields)
            if self._durable is None and not self._has_warned:
                self._has_warned = warn_if_dropped(logger)
        except Exception as error:
            if self._durable is not None:
                missing, decision, closes = unless
                self._durable.refuse(missing, decision, closes=closes)
            raise unavailable(error, "audit") from error
