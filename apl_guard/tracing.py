"""OpenTelemetry spans: one for each call, one in it for the guard's decision, one for each stage.

Only the API is used; where spans go, the program decides. Names follow the draft conventions for guardrails of
generative AI and may change with them, so they all stand in this module. Unless it is asked for, no span holds the
text of a prompt. None ever holds an error's message, which may quote one, or a tenant.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from apl_guard._version import __version__
from apl_guard.errors import ExtraMissing

if TYPE_CHECKING:
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
        attributes = {OPERATION: "generate_content", OUTPUT_TYPE: "image", BACKEND: backend}
        self._whole = _start(tracer, CALL_SPAN.format(backend=backend), attributes)
        self._span: Span | None = None

    def __enter__(self) -> CallSpans:
        self._span = self._whole.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._whole.__exit__(kind, error, trace)

    def stage(self, stage: str) -> AbstractContextManager[Span]:
        """The span of a stage. What the backend traces itself becomes part of it."""
        return _start(self._tracer, STAGE_SPAN.format(stage=stage), {})

    def decided(self, decision: Decision, request: GenerationRequest, verdict: str, action: str) -> None:
        """The span of the decision, with what was found.

        Args:
            decision: What was decided.
            request: About what.
            verdict: What the rules say, in the words of the conventions.
            action: What is done, in the same words.
        """
        attributes: dict[str, str | bool | list[str]] = {
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
        with _start(self._tracer, DECISION_SPAN, attributes) as span:
            for finding in decision.findings:
                about = {FINDING_SOURCE: finding.source, FINDING_CHANNEL: finding.channel.value}
                span.add_event(FINDING_EVENT, about)
        if self._span is not None:
            self._span.set_attribute(DECISION_ID, decision.id)

    def released(self, protection: str) -> None:
        """Say whether what the policy asks for was done for the images that are handed out.

        Args:
            protection: One of the values of `apl_guard.decision.Protection`.
        """
        if self._span is not None:
            self._span.set_attribute(PROTECTION, protection)

    def ended(self, result: str, error: BaseException | None) -> None:
        """Say how the call ended. What the policy blocks is no error."""
        from opentelemetry.trace import StatusCode

        if self._span is None:
            return
        self._span.set_attribute(RESULT, result)
        if result in ("failed", "backend_error"):
            self._span.set_status(StatusCode.ERROR)
            if error is not None:
                self._span.set_attribute(ERROR_TYPE, type(error).__name__)


def _start(
    tracer: Tracer, name: str, attributes: dict[str, str | bool | list[str]] | dict[str, str]
) -> AbstractContextManager[Span]:
    # An exception that is recorded brings its message along.
    return tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    )
