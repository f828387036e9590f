"""Spans: what they are called, how they nest, and that none of them tells what a prompt says."""

import pytest
import torch
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from apl_guard import ExtraMissing, Guard, InvalidInput, PolicyBlocked, PrefixNotFound
from apl_guard.tracing import Tracing

SECRET = "a photo of Mara Voss"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def traced(shared_pipe, prefix, provider):
    return Guard(shared_pipe, prefix=prefix, tracing=Tracing(provider))


def named(exporter):
    return {span.name: span for span in exporter.get_finished_spans()}


def whole(exporter):
    return named(exporter)["generate_content diffusers:StableDiffusionPipeline"]


def test_a_call_is_one_span_with_its_stages_in_it(traced, exporter):
    """In the order in which they ran, and all of one trace."""
    made = traced.generate(SECRET, num_inference_steps=1)
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [
        "apl_guard.read",
        "apl_guard.detect",
        "apl_guard.decide",
        "apl_guard.record_decision",
        "run_guardrail apl-guard",
        "apl_guard.find_prefix",
        "apl_guard.generate",
        "apl_guard.digest_images",
        "apl_guard.record_outcome",
        "generate_content diffusers:StableDiffusionPipeline",
    ]
    assert {span.parent.span_id for span in spans[:-1]} == {spans[-1].context.span_id}
    assert dict(spans[-1].attributes) == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.output.type": "image",
        "apl_guard.backend": "diffusers:StableDiffusionPipeline",
        "apl_guard.decision.id": made.decision.id,
        "apl_guard.result": "passed",
        "apl_guard.protection": "applied",
    }
    assert dict(named(exporter)["run_guardrail apl-guard"].attributes) == {
        "gen_ai.operation.name": "run_guardrail",
        "gen_ai.guardrail.component.name": "apl-guard",
        "gen_ai.guardrail.target.type": "input",
        "gen_ai.guardrail.verdict.type": "modify",
        "gen_ai.guardrail.action.type": "modify",
        "gen_ai.guardrail.security.policy.id": f"anonymize_faces@{made.decision.policy_version}",
        "gen_ai.guardrail.security.policy.rule.id": ("prefix-on-every-prompt",),
        "gen_ai.guardrail.security.content.modified": True,
        "apl_guard.policy.digest": made.decision.policy_digest,
        "apl_guard.decision.id": made.decision.id,
    }


def test_what_the_policy_blocks_is_no_error(traced, exporter):
    """A service that is working does not look broken."""
    with pytest.raises(PolicyBlocked):
        traced(SECRET, latents=torch.zeros(1))
    assert whole(exporter).attributes["apl_guard.result"] == "blocked"
    assert whole(exporter).status.status_code == StatusCode.UNSET
    assert named(exporter)["run_guardrail apl-guard"].attributes["gen_ai.guardrail.verdict.type"] == "deny"


@pytest.mark.parametrize("who", ["guard", "backend"])
def test_failures_of_guard_and_backend_are_told_apart(traced, exporter, monkeypatch, who):
    """Both are errors, with the type of what was raised, and so is the stage that failed, and no other."""
    if who == "guard":

        def fail(*_):
            raise PrefixNotFound(SECRET, fingerprint=None)

        monkeypatch.setattr(traced._parts.finder, "find", fail)
    with pytest.raises((PrefixNotFound, ValueError)):
        traced(SECRET, height=33, width=33)
    span = whole(exporter)
    assert span.status.status_code == StatusCode.ERROR
    told = (span.attributes["apl_guard.result"], span.attributes["error.type"])
    assert told == {"guard": ("failed", "PrefixNotFound"), "backend": ("backend_error", "ValueError")}[who]
    stages = [each for each in exporter.get_finished_spans() if each is not span and not each.status.is_unset]
    assert [(each.name, each.attributes["error.type"]) for each in stages] == [
        ({"guard": "apl_guard.find_prefix", "backend": "apl_guard.generate"}[who], told[1])
    ]


def test_a_mistake_of_the_caller_is_no_error(traced, exporter):
    """Neither of the call nor of the stage that found it."""
    with pytest.raises(InvalidInput):
        traced([SECRET, 3])
    assert whole(exporter).attributes["apl_guard.result"] == "invalid"
    assert all(span.status.is_unset for span in exporter.get_finished_spans())


class Broken(SpanProcessor):
    """A processor of the program, as one that changes spans which have ended."""

    def __init__(self, when):
        self.when = when
        self.raised = 0

    def _raise(self, when):
        if when == self.when:
            self.raised += 1
            raise RuntimeError(SECRET)

    def on_start(self, span, parent_context=None):
        self._raise("start")

    def on_end(self, span):
        self._raise("end")


@pytest.mark.parametrize("when", ["start", "end"])
def test_a_processor_that_raises_neither_stops_a_call_nor_changes_how_it_ends(shared_pipe, prefix, when, caplog):
    """What is passed, blocked or fails in the backend still is; an error in the log says so and quotes no prompt."""
    broken = Broken(when)
    provider = TracerProvider()
    provider.add_span_processor(broken)
    with Guard(shared_pipe, prefix=prefix, tracing=Tracing(provider, content=True)) as guard:
        assert guard.generate(SECRET, num_inference_steps=1).outcome.result == "passed"
        with pytest.raises(PolicyBlocked):
            guard(SECRET, latents=torch.zeros(1))
        with pytest.raises(ValueError, match="height"):
            guard(SECRET, height=33, width=33)
    told = [record.getMessage() for record in caplog.records if "spans" in record.getMessage()]
    assert told == ["spans are incomplete: RuntimeError"] * broken.raised
    assert broken.raised > 20


def test_no_span_tells_what_a_prompt_says(traced, exporter, monkeypatch):
    """Neither of passed, blocked nor failed calls, and no error's message, which may quote a prompt."""

    def fail(*_, **__):
        raise ValueError(SECRET)

    with traced.context(tenant="Mara Voss"):
        traced(SECRET, num_inference_steps=1)
        with pytest.raises(PolicyBlocked):
            traced(SECRET, latents=torch.zeros(1))
        monkeypatch.setattr(traced._parts.backend, "generate", fail)
        with pytest.raises(ValueError, match="Mara"):
            traced(SECRET)
    assert len(exporter.get_finished_spans()) > 20
    assert "Mara" not in "".join(span.to_json() for span in exporter.get_finished_spans())


def test_prompts_are_in_a_span_where_that_is_asked_for(shared_pipe, prefix, provider, exporter):
    """In the one of the decision; half a surrogate pair is replaced, for it would stop the whole batch."""
    guard = Guard(shared_pipe, prefix=prefix, tracing=Tracing(provider, content=True))
    with pytest.raises(PolicyBlocked):
        guard([SECRET, "\ud800"])
    span = named(exporter)["run_guardrail apl-guard"]
    assert span.attributes["gen_ai.guardrail.security.content.input.value"] == (SECRET, "?")


def test_spans_of_the_backend_are_part_of_the_call(traced, provider, exporter, shared_pipe):
    """What the pipe traces itself stands under the stage that called it."""
    tracer = provider.get_tracer("backend")

    def forward(*_):
        with tracer.start_as_current_span("denoise"):
            pass

    handle = shared_pipe.unet.register_forward_pre_hook(forward)
    try:
        traced("a cat", num_inference_steps=1)
    finally:
        handle.remove()
    spans = named(exporter)
    assert spans["denoise"].parent.span_id == spans["apl_guard.generate"].context.span_id


def test_without_the_api_the_extra_is_named(monkeypatch):
    """With the command that installs it."""
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry", None)
    with pytest.raises(ExtraMissing, match=r"apl-guard\[otel\]"):
        Tracing()
