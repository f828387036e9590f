"""Every field of the policy language has an effect: each is changed, and something else happens.

What happens is what a guard does with real calls: which error it raises, what it records, what the backend receives.
The fields are found in the models, so that one that is added without a line here fails.
"""

import copy
import json
from collections.abc import Iterator
from enum import StrEnum
from itertools import count
from typing import Any

import pytest
from detectors import save_detector
from policy_flips import ABSENT, FLIPS, members
from pydantic import BaseModel

from apl_guard import AplGuardError, Guard, Policy, backend
from apl_guard.audit import AuditLog
from apl_guard.backend import Generation, Receipt
from apl_guard.encoder.traits import Likeness, Tier
from apl_guard.request import TEXT_CHANNELS, Channel, GenerationRequest, texts


class Pipe:
    """Keeps what it is asked to draw. What its adapter says about it can be chosen."""

    def __init__(self, carries_prefix=True, encoders=None):
        self.carries_prefix = carries_prefix
        self.encoders = encoders
        self.drawn = []


class Adapter:
    """Takes texts by the names of their channels, and other channels by name."""

    name = "test:Pipe"

    def __init__(self, pipe):
        self._pipe = pipe
        self.carries_prefix = pipe.carries_prefix
        self._ids = count()

    def read(self, args, kwargs):
        text = {Channel(name): texts(said, where=name) for name, said in kwargs.items() if name in TEXT_CHANNELS}
        used = frozenset({*text, *kwargs.get("channels", ())})
        id = f"call {next(self._ids)}"
        return GenerationRequest(self.name, text, used, carries_prefix=self.carries_prefix, id=id)

    def fingerprints(self):
        return self._pipe.encoders

    def likeness(self, prefix):
        return {"text_encoder": Likeness(Tier.COMPATIBLE, "fine-tuned a little")}

    def check_prefix(self, prefix):
        pass

    def generate(self, request, prefix):
        self._pipe.drawn.append({channel.value: said for channel, said in request.text.items()})
        rows = {} if prefix is None else {slot: (prefix.n,) * request.batch for slot in prefix.metadata.widths}
        return Generation("an image", 1, Receipt(prefix_rows=rows))


def fields(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of the language: its path, without positions in lists, and what it may hold."""
    for name, described in model.model_fields.items():
        yield place + name, described.annotation
        for inner in inside(described.annotation):
            if issubclass(inner, BaseModel):
                yield from fields(inner, f"{place}{name}.")


def inside(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from inside(inner)


def bare(path: str) -> str:
    return ".".join(part for part in path.split(".") if not part.isdigit())


def test_no_field_is_missing_here():
    """A path below a field shows that the field itself counts. Of a choice, every value is tried."""
    language = dict(fields(Policy))
    shown = {bare(flip.path) for flip in FLIPS}

    assert len(language) > 70
    assert {path for path in language if not any(f"{s}.".startswith(f"{path}.") for s in shown)} == set()
    assert shown - language.keys() == set()
    for flip in FLIPS:
        choices = [set(members(kind)) for kind in inside(language[bare(flip.path)]) if issubclass(kind, StrEnum)]
        if choices and bare(flip.path) not in ("tests.given.channels", "spec.rules.when.share"):
            given = [value for value in flip.values if value is not ABSENT]
            tried = {each for value in given for each in (value if isinstance(value, list) else [value])}
            assert [tried] == choices, flip.path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where policies are, with lists and detectors beside them."""
    folder = tmp_path_factory.mktemp("policies")
    (folder / "one.csv").write_text("name\nMara Voss\n")
    (folder / "two.csv").write_text("name\nAda Berg\n")
    for name, surely in (("ner", 2.0), ("other", 3.0)):
        save_detector(folder / name, surely)
    return folder


class Platform:
    """A platform's logger."""

    def __init__(self):
        self.records = []

    def info(self, event, **fields):
        self.records.append({"event": event, **fields})


VARIABLE = {"digest", "prefix_digest", "guard", "key_id", "hmac", "norm_hmac", "overhead_ms", "generation_ms"}
"""What differs between two runs of one policy, or stands for the text of the policy itself."""


def without_variable(value):
    if isinstance(value, dict):
        return {name: without_variable(part) for name, part in value.items() if name not in VARIABLE}
    return [without_variable(part) for part in value] if isinstance(value, list | tuple) else value


def observe(policy, flip, folder, prefix):
    """What a guard does under a policy."""
    pipe, platform, seen = Pipe(**flip.pipe), Platform(), []
    if pipe.encoders:
        own = prefix.metadata.fingerprints["text_encoder"]
        pipe.encoders = {slot: print_ or own for slot, print_ in pipe.encoders.items()}
    (folder / "policy.yaml").write_text(json.dumps(policy))
    try:
        guard = Guard(pipe, folder / "policy.yaml", prefix=prefix, audit=AuditLog(logger=platform))
        detector = guard._parts.policy.in_force._detectors._person
        if detector is not None:
            detector._reader.model.register_forward_hook(lambda *_: seen.append("the model ran"))
        for call in flip.calls:
            arguments = {name: value for name, value in call.items() if name not in ("tenant", "route")}
            with guard.context(tenant=call.get("tenant"), route=call.get("route")):
                try:
                    guard(**arguments)
                except AplGuardError as error:
                    seen.append(type(error).__name__)
    except AplGuardError as error:
        seen.append(str(error))
    return json.dumps([seen, pipe.drawn, without_variable(platform.records)], sort_keys=True)


@pytest.mark.parametrize("flip", FLIPS, ids=lambda flip: flip.path)
def test_a_changed_field_changes_what_happens(flip, folder, prefix, monkeypatch):
    """Each value leads to something else than every other."""
    monkeypatch.setitem(backend._BUILT_IN, __name__, f"{__name__}:Adapter")
    happened = {}
    for value in flip.values:
        policy = copy.deepcopy(flip.document)
        *place, last = [int(part) if part.isdigit() else part for part in flip.path.split(".")]
        node = policy
        for part in place:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
        if value is ABSENT:
            node.pop(last, None)
        else:
            node[last] = value
        happened.setdefault(observe(policy, flip, folder, prefix), []).append(value)

    assert len(happened) == len(flip.values), [values for values in happened.values() if len(values) > 1]
    assert observe(policy, flip, folder, prefix) == list(happened)[-1]  # and not by chance
