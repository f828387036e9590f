"""OpenTelemetry spans: one for each call, one in it for the guard's decision, one for each stage.

Only the API is used; where spans go, the program decides. Names follow the draft conventions for guardrails of
generative AI and may change with them, so they all stand in this module. Unless it is asked for, no span holds the
text of a prompt. None ever holds an error's message, which may quote one, or a tenant.

What goes wrong with a span, such as in a processor of the program, neither stops a call nor changes how it ends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from apl_guard._version import __version__
from apl_guard.errors import ExtraMissing, InvalidInput, PolicyBlocked

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from opentelemetry.trace import Span, Tracer, TracerProvider

    from apl_guard.decision import Decision
    from apl_guard.request import GenerationRequest

__all__ = ["CallSpans", "Tracing"]

CALL_SPAN = "generate_content {backend}"
DECISION_SPAN = "run_guardrail apl-guard"
STAGE_SPAN = "apl_guard.{stage}"

OPERATION = "gen_ai.operation.name"
OUTPUT_TYPE = "gen_ai.output.type"
ERROR_TYPE = "error.type"
_GUARDRAIL = "gen_ai.guardrail"
COMPONENT = f"{_GUARDRAIL}.component.name"
TARGET = f"{_GUARDRAIL}.target.type"
VERDICT = f"{_GUARDRAIL}.verdict.type"
ACTION = f"{_GUARDRAIL}.action.type"
POLICY = f"{_GUARDRAIL}.security.policy.id"
RULES = f"{_GUARDRAIL}.security.policy.rule.id"
CATEGORY = f"{_GUARDRAIL}.security.risk.category"
IS_MODIFIED = f"{_GUARDRAIL}.security.content.modified"
CONTENT = f"{_GUARDRAIL}.security.content.input.value"
FINDING_EVENT = f"{_GUARDRAIL}.security.finding"
BACKEND = "apl_guard.backend"
DECISION_ID = "apl_guard.decision.id"
POLICY_DIGEST = "apl_guard.policy.digest"
RESULT = "apl_guard.result"
PROTECTION = "apl_guard.protection"
FINDING_SOURCE = "apl_guard.finding.source"
FINDING_CHANNEL = "apl_guard.finding.channel"

_log = logging.getLogger("apl_guard")

_Attributes: TypeAlias = "dict[str, str | bool | list[str]]"


class Tracing:
    """Where spans of calls go.

    Args:
        provider: An OpenTelemetry tracer provider. None stands for the one that the program has set.
        content: Whether spans hold the texts of prompts.

    Raises:
        ExtraMissing: opentelemetry-api is not installed.

    Example:
        >>> from apl_guard import Guard
        >>> from apl_guard.testing import random_prefix, tiny_pipe
        >>> pipe = tiny_pipe()
        >>> guard = Guard(pipe, prefix=random_prefix(pipe), tracing=Tracing())
    """

    def __init__(self, provider: TracerProvider | None = None, *, content: bool = False) -> None:
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise ExtraMissing("otel", needs="opentelemetry-api") from error
        self._tracer = trace.get_tracer("apl_guard", __version__, tracer_provider=provider)
        self._content = content

    def call(self, backend: str) -> CallSpans:
        """The spans of one call."""
        return CallSpans(self._tracer, backend, content=self._content)


class CallSpans:
    """The spans of one call: enter it when the call begins."""

    def __init__(self, tracer: Tracer, backend: str, *, content: bool) -> None:
        self._tracer = tracer
        self._content = content
        attributes: _Attributes = {OPERATION: "generate_content", OUTPUT_TYPE: "image", BACKEND: backend}
        self._whole = _Part(tracer, CALL_SPAN.format(backend=backend), attributes)

    def __enter__(self) -> CallSpans:
        self._whole.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._whole.__exit__(kind, error, trace)

    def stage(self, stage: str) -> _Stage:
        """The span of a stage. What the backend traces itself becomes part of it."""
        return _Stage(self._tracer, STAGE_SPAN.format(stage=stage), {})

    def decided(self, decision: Decision, request: GenerationRequest, verdict: str, action: str) -> None:
        """The span of the decision, with what was found.

        Args:
            decision: What was decided.
            request: About what.
            verdict: What the rules say, in the words of the conventions.
            action: What is done, in the same words.
        """
        attributes: _Attributes = {
            OPERATION: "run_guardrail",
            COMPONENT: "apl-guard",
            TARGET: "input",
            VERDICT: verdict,
            ACTION: action,
            POLICY: f"{decision.policy}@{decision.policy_version}",
            POLICY_DIGEST: decision.policy_digest,
            RULES: list(decision.rules),
            DECISION_ID: decision.id,
            IS_MODIFIED: action == "modify",
        }
        if decision.category is not None:
            attributes[CATEGORY] = decision.category
        if self._content:
            texts = [text for _, found in sorted(request.text.items()) for text in found]
            # Half a surrogate pair would stop the whole batch of spans.
            attributes[CONTENT] = [text.encode("utf-8", "replace").decode() for text in texts]
        with _Part(self._tracer, DECISION_SPAN, attributes) as part:
            for finding in decision.findings:
                part.add_event(FINDING_EVENT, {FINDING_SOURCE: finding.source, FINDING_CHANNEL: finding.channel.value})
        self._whole.set_attribute(DECISION_ID, decision.id)

    def released(self, protection: str) -> None:
        """Say whether what the policy asks for was done for the images that are handed out.

        Args:
            protection: One of the values of `apl_guard.decision.Protection`.
        """
        self._whole.set_attribute(PROTECTION, protection)

    def ended(self, result: str, error: BaseException | None) -> None:
        """Say how the call ended. What the policy blocks is no error."""
        self._whole.set_attribute(RESULT, result)
        if result in ("failed", "backend_error"):
            self._whole.failed(error)


class _Part:
    """A span around a part of a call."""

    def __init__(self, tracer: Tracer, name: str, attributes: _Attributes) -> None:
        self._tracer = tracer
        self._name = name
        self._attributes = attributes
        self._running: AbstractContextManager[Span] | None = None
        self._span: Span | None = None

    def __enter__(self) -> _Part:
        with _beside():
            # An exception that is recorded brings its message along.
            running = self._tracer.start_as_current_span(
                self._name, attributes=self._attributes, record_exception=False, set_status_on_exception=False
            )
            self._span = running.__enter__()
            self._running = running
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None:
            with _beside():
                self._running.__exit__(kind, error, trace)

    def set_attribute(self, name: str, value: str) -> None:
        if self._span is not None:
            with _beside():
                self._span.set_attribute(name, value)

    def add_event(self, name: str, attributes: dict[str, str]) -> None:
        if self._span is not None:
            with _beside():
                self._span.add_event(name, attributes)

    def failed(self, error: BaseException | None) -> None:
        """Give it the status of a failure, with the type of the error."""
        if self._span is None:
            return
        with _beside():
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)
            if error is not None:
                self._span.set_attribute(ERROR_TYPE, type(error).__name__)


class _Stage(_Part):
    """The span of a stage, which shows where a call failed."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, PolicyBlocked | InvalidInput):
            self.failed(error)
        super().__exit__(kind, error, trace)


@contextmanager
def _beside() -> Iterator[None]:
    """Let what spans raise neither stop a call nor change how it ends."""
    try:
        yield
    except Exception as error:
        _log.error("spans are incomplete: %s", type(error).__name__)
