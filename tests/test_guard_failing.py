"""Whatever breaks, no image comes out and the error is one of the guard's own."""

import math
import os

import numpy as np
import pytest
import structlog
from guard_log import counted, records

from apl_guard import (
    AuditUnavailable,
    Gallery,
    Guard,
    GuardUnavailable,
    InvalidInput,
    OutputCheck,
    PrefixInvalid,
    PrefixNotApplied,
    PrefixNotFound,
    PrefixRegistry,
)
from apl_guard.adapters.diffusers.adapter import DiffusersAdapter
from apl_guard.backend import BackendFailed, Generation, Receipt
from apl_guard.in_force import PolicyInForce
from apl_guard.registry.finder import PrefixFinder

SECRET = "a photo of Mara Voss"


def fails_from(first):
    """A sync that works until the disk is full."""
    synced = []

    def sync(handle):
        synced.append(handle)
        if len(synced) >= first:
            raise OSError(28, "No space left on device")
        os.fsync(handle)

    return sync


def test_without_a_prefix_for_this_encoder_no_guard_is_made(shared_pipe):
    """Shown as soon as the guard is made."""
    with pytest.raises(PrefixNotFound, match="apl-guard train"):
        Guard(shared_pipe)


def test_a_prefix_removed_while_the_guard_runs_means_no_image(shared_pipe, prefix, calls, tmp_path, metrics_registry):
    """Looked up on each call, and the failure is recorded."""
    entry = PrefixRegistry().register(prefix.save(tmp_path / "trained"))
    guard = Guard(shared_pipe, audit=tmp_path / "audit", metrics_registry=metrics_registry)
    (entry.path / "prefix.safetensors").unlink()

    with pytest.raises(PrefixNotFound):
        guard(SECRET)
    assert calls == []
    assert records(tmp_path / "audit")[1]["result"] == "failed"
    assert counted(metrics_registry, "failed") == 1


def test_a_damaged_prefix_makes_no_guard(shared_pipe, prefix, tmp_path):
    """The file is named."""
    folder = prefix.save(tmp_path / "trained")
    (folder / "prefix.safetensors").write_bytes(b"x")

    with pytest.raises(PrefixInvalid, match="trained"):
        Guard(shared_pipe, prefix=folder)


def test_a_file_in_place_of_the_audit_folder_makes_no_guard(shared_pipe, prefix, tmp_path):
    """Shown as soon as the guard is made."""
    (tmp_path / "file").write_text("")

    with pytest.raises(AuditUnavailable, match="file"):
        Guard(shared_pipe, prefix=prefix, audit=tmp_path / "file")


@pytest.mark.parametrize("name", ["digest.key", "seal.key"])
def test_a_key_that_others_can_read_makes_no_guard(shared_pipe, prefix, tmp_path, name):
    """Digests and signatures are worth no more than the secrecy of their keys."""
    Guard(shared_pipe, prefix=prefix, audit=tmp_path / "audit")
    (tmp_path / "audit" / "keys" / name).chmod(0o644)

    with pytest.raises(AuditUnavailable, match="chmod 600"):
        Guard(shared_pipe, prefix=prefix, audit=tmp_path / "audit")


def test_a_disk_full_before_generation_means_that_nothing_is_generated(guard, calls, monkeypatch, metrics_registry):
    """The decision cannot be written, so nothing is generated."""
    monkeypatch.setattr("apl_guard.audit.disk.sync", fails_from(1))

    with pytest.raises(AuditUnavailable, match="No space left"):
        guard(SECRET)
    assert calls == []
    assert counted(metrics_registry, "failed") == 1


def test_a_disk_full_before_release_means_no_image(guard, calls, monkeypatch, metrics_registry):
    """The decision is written, the image made, the outcome cannot be written: no image."""
    monkeypatch.setattr("apl_guard.audit.disk.sync", fails_from(2))

    with pytest.raises(AuditUnavailable, match="No space left"):
        guard(SECRET, num_inference_steps=1)
    assert calls == [1]
    assert counted(metrics_registry, "failed") == 1
    assert counted(metrics_registry, "passed") == 0


def test_logging_of_the_platform_that_fails_means_no_image(shared_pipe, prefix, calls):
    """A processor of the platform that raises counts as an unwritten record."""

    def broken(*_):
        raise RuntimeError("sink is down")

    structlog.configure(processors=[broken])
    try:
        with pytest.raises(AuditUnavailable):
            Guard(shared_pipe, prefix=prefix)(SECRET)
    finally:
        structlog.reset_defaults()
    assert calls == []


RIGHT = {"text_encoder": (10, 10)}
WRONG = {
    "nothing": Receipt(),
    "no rows": Receipt({"text_encoder": ()}),
    "another text encoder": Receipt({"text_encoder_2": (10, 10)}),
    "a prompt is missing": Receipt({"text_encoder": (10,)}),
    "one and a half times as many": Receipt({"text_encoder": (10, 10, 10)}),
    "one vector less": Receipt({"text_encoder": (10, 9)}),
    "one vector more": Receipt({"text_encoder": (11, 10)}),
    "none in front of the second prompt": Receipt({"text_encoder": (10, 0)}),
    "no change of this text encoder": Receipt(RIGHT, change={}),
    "a change is missing": Receipt(RIGHT, change={"text_encoder": (0.1,)}),
    "nothing changed": Receipt(RIGHT, change={"text_encoder": (0.1, 0.0)}),
    "a change below nothing": Receipt(RIGHT, change={"text_encoder": (0.1, -0.1)}),
    "a change without end": Receipt(RIGHT, change={"text_encoder": (0.1, math.inf)}),
    "a change that is no number": Receipt(RIGHT, change={"text_encoder": (math.nan, 0.1)}),
}


def ask_for_two(guard, monkeypatch, receipt):
    """Two prompts, drawn by an adapter that gives this receipt."""
    answer = Generation("two pictures", 2, receipt)
    monkeypatch.setattr(guard._parts.backend, "generate", lambda request, prefix: answer)
    return guard([SECRET, "a cat"])


@pytest.mark.parametrize("receipt", WRONG.values(), ids=WRONG)
def test_a_receipt_that_does_not_show_the_prefix_in_front_of_every_prompt_means_no_image(
    guard, monkeypatch, tmp_path, metrics_registry, receipt
):
    """Whatever adapter gives it: the guard believes in no prefix that no text encoder is known to have received."""
    with pytest.raises(PrefixNotApplied):
        ask_for_two(guard, monkeypatch, receipt)

    outcome = records(tmp_path / "audit")[1]
    assert (outcome["result"], outcome["images"], outcome["error"]) == ("failed", 0, "PrefixNotApplied")
    assert counted(metrics_registry, "failed") == 1


@pytest.mark.parametrize(
    "receipt",
    [
        Receipt(RIGHT),
        Receipt({"text_encoder": (10,) * 4}),
        Receipt(RIGHT, change={"text_encoder": (0.1, 7.0)}),
    ],
    ids=["change unknown", "each prompt encoded twice", "with a change"],
)
def test_a_receipt_that_shows_it_lets_the_pictures_out(guard, monkeypatch, receipt):
    """So that the receipts above are refused for what they lack, and not for how they were made."""
    assert ask_for_two(guard, monkeypatch, receipt) == "two pictures"


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (GuardUnavailable("the server does not say what it has loaded"), "failed"),
        (BackendFailed("the server is down"), "backend_error"),
        (InvalidInput("no text"), "invalid"),
        (TypeError("no such argument"), "invalid"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_call_that_cannot_be_read_is_on_record_as_what_was_at_fault(
    guard, monkeypatch, calls, tmp_path, metrics_registry, error, result
):
    """The guard, the backend or the caller: an adapter may have to ask its backend something to read a call."""

    def read(args, kwargs):
        raise error

    monkeypatch.setattr(guard._parts.backend, "read", read)
    with pytest.raises(type(error)):
        guard(SECRET)

    (refusal,) = records(tmp_path / "audit")
    assert (refusal["event"], refusal["result"], refusal["error"]) == ("guard.refusal", result, type(error).__name__)
    assert counted(metrics_registry, result) == 1
    assert calls == []


def test_a_call_that_cannot_be_read_nor_recorded_has_failed(guard, calls, monkeypatch, metrics_registry):
    """The caller is told of the record, which the platform must mend, and not of the argument."""
    monkeypatch.setattr("apl_guard.audit.disk.sync", fails_from(1))

    with pytest.raises(AuditUnavailable, match="No space left"):
        guard(7)
    assert calls == []
    assert counted(metrics_registry, "failed") == 1
    assert counted(metrics_registry, "invalid") in (0, None)


def raising(error):
    def call(*_):
        raise error

    return call


PARTS = [(PolicyInForce, "look"), (PolicyInForce, "decide"), (PrefixFinder, "find")]


@pytest.mark.parametrize(("cls", "name"), PARTS, ids=[name for _, name in PARTS])
def test_a_fault_in_any_part_of_the_guard_is_one_of_its_own_errors_and_means_no_image(
    guard, monkeypatch, calls, tmp_path, metrics_registry, cls, name
):
    """Whatever it raises. Its message may quote the prompt, so it is neither in the error nor on record."""
    monkeypatch.setattr(cls, name, raising(RuntimeError(SECRET)))

    with pytest.raises(GuardUnavailable, match=r"the guard failed \(RuntimeError\), so there is no image") as caught:
        guard(SECRET)

    assert SECRET not in str(caught.value)
    assert calls == []
    assert counted(metrics_registry, "failed") == 1
    outcomes = [r for r in records(tmp_path / "audit") if r["event"] == "guard.outcome"]
    # Before the decision is on record nothing is, and after it an outcome always is.
    assert [(r["result"], r["error"]) for r in outcomes] == [("failed", "RuntimeError")] * (name == "find")


class Pixels:
    """A recogniser for which each picture is one face."""

    name = "pixels"

    def __call__(self, pictures):
        return [picture.reshape(1, -1)[:, :8].astype("float32") + 1 for picture in pictures]


@pytest.mark.parametrize(
    ("cls", "name", "result"),
    [
        (PrefixFinder, "find", "failed"),
        (DiffusersAdapter, "generate", "backend_error"),
        (OutputCheck, "look_at", "failed"),
    ],
    ids=["while the prefix is found", "while the backend draws", "while pictures are looked at"],
)
def test_an_interruption_passes_through_and_leaves_an_outcome_without_images(
    shared_pipe, prefix, monkeypatch, tmp_path, metrics_registry, cls, name, result
):
    """Ctrl-C is no fault of the guard; wherever it comes behind the decision, the log says that nothing came out."""
    gallery = Gallery.enroll(Pixels(), {"somebody": [np.zeros((8, 8, 3), np.uint8)]})
    guard = Guard(
        shared_pipe,
        prefix=prefix,
        audit=tmp_path / "audit",
        metrics_registry=metrics_registry,
        output_check=OutputCheck(Pixels(), gallery, threshold=0.5),
    )
    monkeypatch.setattr(cls, name, raising(KeyboardInterrupt()))

    with pytest.raises(KeyboardInterrupt):
        guard(SECRET, num_inference_steps=1)

    decision, outcome = records(tmp_path / "audit")
    assert (outcome["decision_id"], outcome["result"]) == (decision["decision_id"], result)
    assert (outcome["images"], outcome["protection"], outcome["error"]) == (0, None, "KeyboardInterrupt")
    assert counted(metrics_registry, result) == 1
