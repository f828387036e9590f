"""The policy language, field by field: values that each make something else happen, and the calls that show it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from policy_documents import document

from apl_guard.encoder.fingerprint import Fingerprint
from apl_guard.policy import Action, Mode, OnError, Role, ShareKey, Verb, WithoutPrefix
from apl_guard.policy.acceptance import Match
from apl_guard.request import Channel

ABSENT = object()
"""In place of a value: the field is left out."""

NAMED, LONG = "a photo of Mara Voss", "a red car " * 900
OTHER = Fingerprint(weights="ab" * 32, tokenizer="cd" * 32)
SIGNER = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----"


def rule(action, *, id="second", channels=("prompt",), then=None, **when):
    return {"id": id, "when": {"channels": list(channels), **when}, "then": {"action": action, **(then or {})}}


ALLOW = rule("allow", id="first", channels=["prompt", "negative_prompt"])
STARS = {"id": "stars", "people": [{"name": "Mara Voss", "aliases": ["The Voss"], "neutral": "a woman"}]}
CITY = {"id": "city", "people": [{"name": "Ada Berg"}]}
WORD = {"id": "word", "regex": "photo"}
PERSON = {"model": "ner", "milliseconds": 60000}

PREFIXED = document(rule("anonymize", id="first"))
REWRITING = document(ALLOW, rule("rewrite", names=["stars"]), names=[STARS])
MATCHING = document(ALLOW, rule("rewrite", patterns=["word"]), patterns=[WORD])
SEEING = document(ALLOW, rule("rewrite", entities=["person"]), person=PERSON)
TOLD = {"name": "a test", "given": {"prompt": "a cat"}, "expect": {"action": "anonymize"}}


def with_test(given=None, expect=None, *rules):
    """A policy with one test, which holds unless another answer is expected."""
    case = {"name": "a test", "given": given or {"prompt": "a cat"}, "expect": expect or {"action": "anonymize"}}
    return document(*(rules or [rule("anonymize", id="first")]), tests=[case])


@dataclass
class Flip:
    """A field, and values of it that each make something else happen."""

    path: str
    """The place in the document; positions in lists too."""
    values: list[Any]
    document: dict[str, Any]
    calls: list[dict[str, Any]] = field(default_factory=lambda: [{"prompt": NAMED}])
    """Arguments of calls; `tenant` and `route` go into their context."""
    pipe: dict[str, Any] = field(default_factory=dict)


def members(kind: type[StrEnum]) -> list[str]:
    return [member.value for member in kind]


BOTH = [{"prompt": p, "tenant": t} for p in ("a cat", "a dog") for t in ("acme", "lab") for _ in range(2)]
DRAWN = document(ALLOW, rule("block", share={"percent": 50, "key": "request"}))
ROLLED = document(rule("block"), rollout={"percent": 50, "key": "request"})
SHARE_FLIPS = [
    Flip(f"{where}.{name}", values, base, BOTH)
    for where, base in (("spec.rollout", ROLLED), ("spec.rules.1.when.share", DRAWN))
    for name, values in (("percent", [0, 50, 100]), ("key", members(ShareKey)), ("salt", ["", "another"]))
]

FLIPS = [
    Flip("apiVersion", ["apl-guard/v1", "apl-guard/v2"], PREFIXED),
    Flip("kind", ["Policy", "Other"], PREFIXED),
    Flip("metadata.name", ["one", "another"], PREFIXED),
    Flip("metadata.version", [1, 2], PREFIXED),
    Flip("metadata.description", ["", "what it is for"], PREFIXED),
    Flip("metadata.owner", ["", "trust@example.org"], PREFIXED),
    Flip("spec.mode", members(Mode), PREFIXED),
    Flip("spec.rollout", [ABSENT, {"percent": 0}], PREFIXED),
    *SHARE_FLIPS,
    Flip(
        "spec.on_error",
        members(OnError),
        document(ALLOW, rule("rewrite", entities=["person"]), person=PERSON | {"milliseconds": 1}),
        [{"prompt": LONG}],
    ),
    Flip(
        "spec.without_prefix",
        members(WithoutPrefix),
        document(ALLOW, rule("anonymize", names=["stars"]), names=[STARS]),
        pipe={"carries_prefix": False},
    ),
    Flip("spec.output_check", ["optional", "required"], PREFIXED),
    Flip("spec.limits.characters", [5, 100], PREFIXED),
    Flip("spec.limits.texts", [1, 2], PREFIXED, [{"prompt": ["a", "b"]}]),
    Flip("spec.prefix.match", members(Match), PREFIXED, pipe={"encoders": {"text_encoder": OTHER}}),
    Flip(
        "spec.prefix.slots",
        [ABSENT, ["text_encoder"]],
        PREFIXED,
        pipe={"encoders": {"text_encoder": None, "text_encoder_2": OTHER}},
    ),
    Flip("spec.prefix.digests", [ABSENT, ["00" * 32]], PREFIXED),
    Flip("spec.prefix.signers", [ABSENT, [SIGNER]], PREFIXED),
    Flip("spec.names.0.id", ["stars", "others"], REWRITING),
    Flip(
        "spec.names.0.role",
        members(Role),
        document(ALLOW, rule("rewrite", entities=["person"]), names=[STARS], person=PERSON, without_prefix="rewrite"),
        [{"prompt": "Mara Voss"}],
    ),
    Flip(
        "spec.names.0.neutral",
        [ABSENT, "somebody"],
        document(*REWRITING["spec"]["rules"], names=[{"id": "stars", "people": [{"name": "Mara Voss"}]}]),
    ),
    Flip("spec.names.0.people", [[{"name": "Mara Voss"}], [{"name": "Ada Berg"}]], REWRITING),
    Flip("spec.names.0.people.0.name", ["Mara Voss", "Ada Berg"], REWRITING),
    Flip("spec.names.0.people.0.aliases", [ABSENT, ["The Voss"]], REWRITING, [{"prompt": "the voss"}]),
    Flip("spec.names.0.people.0.neutral", [ABSENT, "a woman"], REWRITING),
    Flip(
        "spec.names.0.file",
        ["one.csv", "two.csv", "none.csv"],
        document(*REWRITING["spec"]["rules"], names=[{"id": "stars", "file": "one.csv"}]),
    ),
    Flip(
        "spec.names.0.sha256",
        [ABSENT, "00" * 32],
        document(*REWRITING["spec"]["rules"], names=[{"id": "stars", "file": "one.csv"}]),
    ),
    Flip("spec.patterns.0.id", ["word", "other"], MATCHING),
    Flip("spec.patterns.0.regex", ["photo", "painting", "("], MATCHING),
    Flip("spec.patterns.0.neutral", [ABSENT, "something"], MATCHING),
    Flip("spec.person", [ABSENT, PERSON], SEEING),
    Flip("spec.person.model", ["ner", "other", "none"], SEEING),
    Flip("spec.person.sha256", [ABSENT, "00" * 32], SEEING),
    Flip(
        "spec.person.labels",
        [["PER"], ["LOC"], ["DOG"]],
        document(ALLOW, rule("rewrite", entities=["person"], min_score=0.1), person=PERSON),
    ),
    Flip("spec.person.milliseconds", [1, 60000], SEEING, [{"prompt": LONG}]),
    Flip("spec.person.neutral", [ABSENT, "somebody"], SEEING),
    Flip("spec.person.cache", [0, 10], SEEING, [{"prompt": NAMED}, {"prompt": NAMED}]),
    Flip("spec.rules.0.id", ["first", "other"], PREFIXED),
    Flip(
        "spec.rules.0.when.channels",
        [[channel.value] for channel in Channel],
        document(rule("block", id="first")),
        [{"prompt": "a", "channels": list(Channel)}],
    ),
    Flip("spec.rules.1.when.models", [["test:*"], ["other:*"]], document(ALLOW, rule("block", models=["x"]))),
    Flip(
        "spec.rules.1.when.tenants",
        [["lab"], ["lab*"], ["other"]],
        document(ALLOW, rule("block", tenants=["x"])),
        [{"prompt": "a", "tenant": "lab"}, {"prompt": "a", "tenant": "lab 2"}],
    ),
    Flip(
        "spec.rules.1.when.routes",
        [["edit"], ["other"]],
        document(ALLOW, rule("block", routes=["x"])),
        [{"prompt": "a", "route": "edit"}],
    ),
    Flip("spec.rules.1.when.share", [ABSENT, {"percent": 0}], document(ALLOW, rule("block"))),
    Flip(
        "spec.rules.1.when.names",
        [["stars"], ["city"], ["none"]],
        document(ALLOW, rule("block", names=["stars"]), names=[STARS, CITY], without_prefix="rewrite"),
    ),
    Flip(
        "spec.rules.1.when.patterns",
        [["word"], ["other"], ["none"]],
        document(
            ALLOW,
            rule("block", patterns=["word"]),
            patterns=[WORD, {"id": "other", "regex": "painting"}],
            without_prefix="rewrite",
        ),
    ),
    Flip(
        "spec.rules.1.when.entities",
        [ABSENT, ["person"]],
        document(ALLOW, rule("block", entities=["person"], min_score=0.99), person=PERSON, without_prefix="rewrite"),
    ),
    Flip("spec.rules.1.when.min_score", [ABSENT, 0.99], SEEING),
    Flip("spec.rules.1.then.action", members(Verb), REWRITING),
    Flip("spec.rules.0.then.prefix", [ABSENT, "special"], PREFIXED),
    Flip("spec.rules.0.then.strength", [ABSENT, 0.3], PREFIXED),
    Flip("spec.rules.0.then.category", [ABSENT, "likeness"], document(rule("block", id="first"))),
    Flip("tests", [ABSENT, [TOLD | {"expect": {"action": "block"}}]], PREFIXED),
    Flip("tests.0.name", ["one", "another"], with_test(expect={"action": "block"})),
    Flip(
        "tests.0.given.prompt",
        ["a cat", NAMED],
        document(*REWRITING["spec"]["rules"], names=[STARS], tests=[TOLD | {"expect": {"action": "allow"}}]),
    ),
    Flip("tests.0.given.negative_prompt", [ABSENT, "ugly"], with_test()),
    Flip("tests.0.given.channels", [ABSENT, ["latents"]], with_test()),
    Flip(
        "tests.0.given.tenant",
        [ABSENT, "lab"],
        with_test(None, None, rule("anonymize", id="first"), rule("block", tenants=["lab"])),
    ),
    Flip(
        "tests.0.given.route",
        [ABSENT, "edit"],
        with_test(None, None, rule("anonymize", id="first"), rule("block", routes=["edit"])),
    ),
    Flip("tests.0.given.model", [ABSENT, "other:Pipe"], with_test(None, None, rule("anonymize", models=["test:*"]))),
    Flip("tests.0.given.carries_prefix", [ABSENT, "false"], with_test()),
    Flip("tests.0.expect.action", members(Action), with_test()),
    Flip("tests.0.expect.rule", [ABSENT, "other"], with_test()),
    Flip("tests.0.expect.category", [ABSENT, "other"], with_test()),
    Flip(
        "tests.0.expect.prompt",
        ["a photo of a woman", "a photo of a man"],
        document(
            *REWRITING["spec"]["rules"],
            names=[STARS],
            tests=[{"name": "a test", "given": {"prompt": NAMED}, "expect": {"action": "rewrite"}}],
        ),
    ),
]
