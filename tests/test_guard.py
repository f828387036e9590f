"""The guard as a whole: what it decides, records and counts, and that every fault means no image."""

import json
import logging
import urllib.error
import urllib.request

import pytest
import structlog
import torch
from guard_log import counted, records, text_of
from structlog.testing import LogCapture

from apl_guard import (
    Guard,
    InvalidInput,
    Policy,
    PolicyBlocked,
    PolicyInvalid,
    PrefixNotFound,
    PrefixRegistry,
    RequestTooLarge,
)
from apl_guard.policy import Mode
from apl_guard.testing import random_prefix, tiny_pipe

SECRET = "a photo of Mara Voss"


@pytest.mark.smoke
def test_a_passed_call_is_recorded_and_counted(guard, prefix, tmp_path, metrics_registry):
    """Two records with one id, from the decision to what the text encoder received; counters moved."""
    made = guard.generate([SECRET, "a cat " * 80], num_inference_steps=1, num_images_per_prompt=2)

    decision, outcome = records(tmp_path / "audit")
    assert (decision["event"], outcome["event"]) == ("guard.decision", "guard.outcome")
    assert decision["decision_id"] == outcome["decision_id"] == made.decision.id
    assert decision["policy"]["name"] == "anonymize_faces"
    assert (decision["action"], decision["effective_action"]) == ("anonymize", "anonymize")
    assert [text["chars"] for text in decision["text"]["prompt"]] == [len(SECRET), 480]
    assert outcome["result"] == "passed"
    assert outcome["images"] == 4
    assert outcome["prefix_digest"] == prefix.digest
    assert outcome["prefix_rows"] == {"text_encoder": [10, 10]}
    assert outcome["tokens_cut"]["text_encoder"][0] == 0
    assert outcome["tokens_cut"]["text_encoder"][1] > 0
    assert counted(metrics_registry, "passed") == 1


def test_a_blocked_call_is_recorded_and_counted(guard, calls, tmp_path, metrics_registry):
    """The error carries the decision and names the line of the policy that would permit it."""
    with pytest.raises(PolicyBlocked, match=r"channels: \[latents\]") as caught:
        guard(SECRET, latents=torch.zeros(1, 4, 16, 16))

    decision, outcome = records(tmp_path / "audit")
    assert caught.value.decision.id == decision["decision_id"]
    assert decision["action"] == "block"
    assert outcome["result"] == "blocked"
    assert counted(metrics_registry, "blocked") == 1
    assert calls == []


def test_a_channel_that_no_argument_is_named_after_says_what_opened_it(guard):
    """Who asks for fewer steps with a low scale sees that it is the negative prompt that does not go with it."""
    with pytest.raises(PolicyBlocked, match="without a negative prompt, or with a guidance scale of at least 1"):
        guard("a man", negative_prompt="blur", guidance_scale=0.0)


def test_errors_of_the_pipe_pass_unchanged(guard, tmp_path, metrics_registry):
    """The same type and message as from the bare pipe; the record holds the type and no message."""
    with pytest.raises(ValueError, match="divisible by 8"):
        guard(SECRET, height=33, width=33)

    assert records(tmp_path / "audit")[1]["result"] == "backend_error"
    assert records(tmp_path / "audit")[1]["error"] == "ValueError"
    assert counted(metrics_registry, "backend_error") == 1


def test_no_text_of_a_prompt_is_written(guard, tmp_path):
    """Neither of passed, blocked nor failed calls; equal prompts have equal digests."""
    guard(SECRET, negative_prompt=SECRET, num_inference_steps=1)
    for wrong in ({"latents": torch.zeros(1)}, {"height": 33, "width": 33}):
        with pytest.raises((PolicyBlocked, ValueError)):
            guard([SECRET], **wrong)

    assert "Mara" not in text_of(tmp_path / "audit")
    digests = {t["hmac"] for r in records(tmp_path / "audit") for ts in r.get("text", {}).values() for t in ts}
    assert len(digests) == 1
    assert (tmp_path / "audit" / "keys" / "digest.key").stat().st_mode & 0o777 == 0o600


def test_ten_megabytes_are_refused_on_record(guard, calls, tmp_path):
    """No policy is asked about more text than a request may hold."""
    with pytest.raises(RequestTooLarge, match="10000000 characters"):
        guard("a" * 10_000_000)
    assert calls == []

    assert [r["event"] for r in records(tmp_path / "audit")] == ["guard.refusal"]


@pytest.mark.parametrize("text", ["\ud800", "a" * 900_000])
def test_odd_text_is_refused_on_record(guard, calls, tmp_path, text):
    """A lone surrogate is no text, and a megabyte is more than the policy permits."""
    with pytest.raises(PolicyBlocked, match=r"surrogate|characters"):
        guard(text)
    assert calls == []

    assert [r["event"] for r in records(tmp_path / "audit")] == ["guard.decision", "guard.outcome"]


def test_records_go_where_the_platform_sends_them_now(shared_pipe, prefix):
    """Also where structlog caches its loggers, and a guard wrote records before the platform set itself up."""
    before, after = LogCapture(), LogCapture()
    try:
        structlog.configure(processors=[before], cache_logger_on_first_use=True)
        guard = Guard(shared_pipe, prefix=prefix)
        structlog.configure(processors=[after], cache_logger_on_first_use=True)
        guard("a man", num_inference_steps=1)
    finally:
        structlog.reset_defaults()

    assert [entry["event"] for entry in before.entries] == ["policy.in_force"]
    assert [entry["event"] for entry in after.entries] == ["guard.decision", "guard.outcome"]


def test_records_go_to_the_structlog_configuration_of_the_platform(shared_pipe, prefix):
    """Where no folder is given."""
    captured = LogCapture()
    structlog.configure(processors=[captured])
    try:
        Guard(shared_pipe, prefix=prefix)(SECRET, num_inference_steps=1)
    finally:
        structlog.reset_defaults()

    events = [entry["event"] for entry in captured.entries]
    assert events == ["policy.in_force", "guard.decision", "guard.outcome"]


def test_records_go_to_standard_logging_otherwise(shared_pipe, prefix, caplog, capsys):
    """As JSON, and not to the standard output of a program that did not ask for it."""
    with caplog.at_level(logging.INFO, "apl_guard.audit"):
        Guard(shared_pipe, prefix=prefix)(SECRET, num_inference_steps=1)

    events = [json.loads(r.message)["event"] for r in caplog.records]
    assert events == ["policy.in_force", "guard.decision", "guard.outcome"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("level", ["INFO", "WARNING"])
@pytest.mark.parametrize("how", ["standard", "structlog over standard", "structlog"])
def test_a_guard_whose_records_are_dropped_says_so_once(shared_pipe, prefix, caplog, how, level):
    """And one whose records arrive does not: by Python's logging, by structlog in front of it, by structlog alone."""
    caplog.set_level(level, "apl_guard.audit")
    wrapper = structlog.stdlib.BoundLogger
    factory = structlog.stdlib.LoggerFactory()
    if how == "structlog":
        wrapper = structlog.make_filtering_bound_logger(getattr(logging, level))
        if not hasattr(wrapper, "is_enabled_for"):
            pytest.skip("loggers of this version of structlog cannot be asked")
        factory = structlog.ReturnLoggerFactory()
    if how != "standard":
        structlog.configure(wrapper_class=wrapper, logger_factory=factory)
    try:
        guard = Guard(shared_pipe, prefix=prefix)
        guard(SECRET, num_inference_steps=1)
        guard(SECRET, num_inference_steps=1)
    finally:
        structlog.reset_defaults()

    warnings = [r.message for r in caplog.records if r.name == "apl_guard" and "records are dropped" in r.message]
    assert len(warnings) == (level == "WARNING")


def test_a_logger_that_cannot_be_asked_is_believed(shared_pipe, prefix, caplog):
    """structlog's plain wrapper would take the question for something to log."""
    said = []
    structlog.configure(
        wrapper_class=structlog.BoundLogger,
        processors=[lambda _logger, name, event: said.append((name, event["event"])) or {}],
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    try:
        Guard(shared_pipe, prefix=prefix)(SECRET, num_inference_steps=1)
    finally:
        structlog.reset_defaults()

    assert said == [("info", "policy.in_force"), ("info", "guard.decision"), ("info", "guard.outcome")]
    assert not [r for r in caplog.records if "records are dropped" in r.message]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"prompt": 7}, InvalidInput), ({"prompt": "a cat", "no_such": 1}, PolicyBlocked), ({"prompt": []}, InvalidInput)],
)
def test_a_call_with_wrong_arguments_leaves_a_record(guard, tmp_path, metrics_registry, arguments, error):
    """It has a record and is counted, whether the guard or the policy refuses it."""
    with pytest.raises(error):
        guard(**arguments)

    last = records(tmp_path / "audit")[-1]
    assert last["result"] == ("blocked" if error is PolicyBlocked else "invalid")
    assert counted(metrics_registry, last["result"]) == 1


def test_a_call_that_does_not_fit_the_signature_leaves_a_record(guard, tmp_path, metrics_registry):
    """The error is Python's own."""
    with pytest.raises(TypeError):
        guard("a cat", prompt="a dog")

    (refusal,) = records(tmp_path / "audit")
    assert (refusal["event"], refusal["result"], refusal["error"]) == ("guard.refusal", "invalid", "TypeError")
    assert refusal["policy"]["name"] == "anonymize_faces"
    assert counted(metrics_registry, "invalid") == 1


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"policy": None}, PolicyInvalid),
        ({"policy": {"mode": "enforce"}}, PolicyInvalid),
        ({"prefix": {"text_encoder": torch.zeros(4, 32)}}, InvalidInput),
        ({"prefix": torch.zeros(4, 32)}, InvalidInput),
        ({"output_check": True}, InvalidInput),
    ],
)
def test_a_guard_made_with_something_else_is_refused_at_once(shared_pipe, prefix, given, error):
    """The message names what was expected; it would show in the first call only, or as a fault within the guard."""
    with pytest.raises(error, match="expected"):
        Guard(shared_pipe, **({"prefix": prefix} | given))


def test_the_prefix_is_found_in_the_registry(shared_pipe, prefix, tmp_path, draw):
    """Without naming it, and the picture is that of the prefix given by hand."""
    PrefixRegistry().register(prefix.save(tmp_path / "trained"))

    assert torch.equal(draw(Guard(shared_pipe), "a man"), draw(Guard(shared_pipe, prefix=prefix), "a man"))


def test_modes_shadow_and_off_record_and_change_nothing(shared_pipe, tmp_path, draw):
    """Shadow says what it would have done; neither needs a prefix."""
    policy = Policy.load("anonymize_faces")
    for mode, action in [(Mode.SHADOW, "anonymize"), (Mode.OFF, "allow")]:
        guard = Guard(shared_pipe, policy.in_mode(mode), audit=tmp_path / mode.value)

        assert torch.equal(draw(shared_pipe, "a man"), draw(guard, "a man"))
        decision, outcome = records(tmp_path / mode.value)
        assert (decision["action"], decision["effective_action"]) == (action, "allow")
        assert outcome["prefix"] is None


def test_unsafe_allow_all_is_the_bare_pipe(shared_pipe, draw):
    """Every channel is open, the picture is the pipe's own."""
    guard = Guard(shared_pipe, "unsafe_allow_all")
    embeds = shared_pipe.encode_prompt("a man", "cpu", 1, False)[0]

    assert torch.equal(draw(shared_pipe, "a man"), draw(guard, "a man"))
    assert torch.equal(draw(shared_pipe, None, prompt_embeds=embeds), draw(guard, None, prompt_embeds=embeds))


def test_check_decides_without_generating_or_recording(guard, calls, tmp_path):
    """For a look ahead."""
    assert guard.check(SECRET).action == "anonymize"
    assert guard.check(SECRET, latents=torch.zeros(1)).action == "block"
    assert calls == []
    assert records(tmp_path / "audit") == []


@pytest.mark.smoke
def test_metrics_are_scraped_over_http(guard, prefix):
    """The names and labels that dashboards rely on."""
    guard(SECRET, num_inference_steps=1)
    server = guard.serve_metrics(0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
            text = response.read().decode()
    finally:
        server.close()

    for line in (
        'apl_guard_outcomes_total{result="passed"} 1.0',
        'apl_guard_outcomes_total{result="blocked"} 0.0',
        f'apl_guard_prefix_info{{digest="{prefix.digest}",prefix="random",vectors="10"}} 1.0',
    ):
        assert line in text.splitlines()
    assert "Mara" not in text


def test_guards_share_a_registry_of_the_platform(shared_pipe, prefix, metrics_registry):
    """Two guards count on the same instruments."""
    for _ in range(2):
        Guard(shared_pipe, prefix=prefix, metrics_registry=metrics_registry)("a cat", num_inference_steps=1)

    assert counted(metrics_registry, "passed") == 2


def test_overhead_counts_only_the_guard(guard, metrics_registry):
    """The guard's own time is a small part of a call of many steps."""
    guard("a cat", num_inference_steps=1)
    made = guard.generate("a cat", num_inference_steps=10)

    assert made.outcome.overhead_ms < made.outcome.generation_ms


def test_a_prefix_for_another_encoder_is_refused(shared_pipe):
    """Given by hand it must fit too."""
    other = random_prefix(tiny_pipe(seed=2))

    with pytest.raises(PrefixNotFound, match=other.metadata.fingerprints["text_encoder"].key):
        Guard(shared_pipe, prefix=other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("prefix", "expected a prefix"),
        ("registry", "expected a folder, a URL"),
        ("audit", "expected a folder or an AuditLog"),
        ("metrics_registry", "expected a CollectorRegistry"),
        ("tracing", r"expected Tracing\(\)"),
        ("output_check", "expected OutputCheck"),
        ("leak_watch", "expected LeakWatch"),
    ],
)
def test_an_argument_of_another_type_is_refused_when_the_guard_is_made(pipe, prefix, name, expected):
    """Not at the first call, nor passed over because it is empty."""
    with pytest.raises(InvalidInput, match=f"{name}: found dict; {expected}"):
        Guard(pipe, **{"prefix": prefix, name: {}})


def test_one_tenant_is_not_taken_for_its_letters(pipe, prefix):
    """Each would be counted, and the tenant never."""
    with pytest.raises(InvalidInput, match="metrics_tenants: found one text"):
        Guard(pipe, prefix=prefix, metrics_tenants="acme")


def test_the_name_of_a_model_is_not_a_pipe():
    """The error says what is expected in its place."""
    with pytest.raises(
        InvalidInput, match=r"no adapter for builtins.str; expected a pipe itself, as .*from_pretrained"
    ):
        Guard("somebody/some-model")
