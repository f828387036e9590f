"""The policy language: what a policy file can say, as types.

Every type is frozen and refuses keys that it does not know. What switches protection off is spelt `unsafe_…`,
so that it stands out where it is written and can be found in every record.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from apl_guard.acceptance import Acceptance
from apl_guard.request import PROMPT_CHANNELS, TEXT_CHANNELS, Channel

__all__ = [
    "DEFAULT_SCORE",
    "NO_TEXT",
    "Action",
    "Limits",
    "Metadata",
    "Mode",
    "OnError",
    "Rule",
    "Share",
    "ShareKey",
    "Spec",
    "Then",
    "Verb",
    "When",
    "WithoutPrefix",
]

DEFAULT_SCORE = 0.5
"""How sure a detector must be, unless a rule says otherwise."""

NO_TEXT = "half of a surrogate pair is no text"
"""Why a text is refused that no encoder could take."""

Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
"""How policies, rules, lists and categories are named."""


def _a_glob(pattern: str) -> str:
    if not pattern or len(pattern) > 200:
        raise ValueError(f"found {len(pattern)} characters; expected 1 to 200")
    return pattern


Glob = Annotated[str, AfterValidator(_a_glob)]
"""A name, in which `*` stands for any characters."""


class Action(StrEnum):
    """What happens to a request, or to what comes through one channel of it; the strictest last."""

    ALLOW = "allow"
    ANONYMIZE = "anonymize"
    """Put the prefix in front."""
    REWRITE = "rewrite"
    """Replace each name by its neutral description."""
    BLOCK = "block"

    @property
    def strictness(self) -> int:
        """The place of this action in the order from lenient to strict."""
        return _STRICTNESS[self]


_STRICTNESS = {action: place for place, action in enumerate(Action)}


class Verb(StrEnum):
    """How a rule spells its action."""

    ALLOW = "allow"
    UNSAFE_ALLOW = "unsafe_allow"
    """Allow what no prefix protects. Logged on each use."""
    ANONYMIZE = "anonymize"
    REWRITE = "rewrite"
    BLOCK = "block"

    @property
    def action(self) -> Action:
        """What it does."""
        return Action.ALLOW if self == Verb.UNSAFE_ALLOW else Action(self.value)


class Mode(StrEnum):
    """Whether decisions are carried out."""

    ENFORCE = "enforce"
    SHADOW = "shadow"
    """Decide and record, but let every request pass unchanged."""
    OFF = "unsafe_off"
    """Allow everything. It is still recorded, and logged on each call."""


class OnError(StrEnum):
    """What happens where a detector fails, or the prefix cannot be found."""

    BLOCK = "block"
    """No image."""
    FALLBACK = "fallback"
    """A detector that fails: the prefix in front of every prompt, whatever it says. No prefix: no image."""
    PASSTHROUGH = "unsafe_passthrough"
    """Go on as if the detector had found nothing, and without a prefix. Logged on each use."""


class WithoutPrefix(StrEnum):
    """What becomes of `anonymize` where the backend takes text alone, so that no prefix can reach it."""

    BLOCK = "block"
    REWRITE = "rewrite"
    """Replace every name found, of all lists, detectors and patterns. A name that is not found stays."""


class ShareKey(StrEnum):
    """What is hashed to say whether a request belongs to a share."""

    REQUEST = "request"
    """Each request is drawn anew."""
    TENANT = "tenant"
    """All requests of a tenant go the same way."""
    PROMPT = "prompt"
    """Equal prompts go the same way."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Share(_Part):
    """A part of all requests. The same key goes the same way each time, and stays in when the part grows."""

    percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    key: ShareKey = ShareKey.REQUEST
    salt: Annotated[str, Field(max_length=200)] = ""
    """Another salt draws another part."""


class Role(StrEnum):
    """What it means to be on a list of names."""

    PROTECTED = "protected"
    """Rules ask whether somebody on the list is named."""
    CONSENTING = "consenting"
    """Whoever is on it may be drawn: a person that a detector sees and that is on it counts as not seen."""


class Entry(_Part):
    """Somebody on a list."""

    name: Annotated[str, Field(max_length=200)]
    aliases: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=100)] = ()
    """Other names of the same person."""
    neutral: Annotated[str, Field(max_length=500)] | None = None
    """What `rewrite` puts in place of the name; that of the list unless given."""


class Names(_Part):
    """A list of names, in the policy or in a file beside it."""

    id: Id
    role: Role = Role.PROTECTED
    neutral: Annotated[str, Field(min_length=1, max_length=500)] = "a person"
    """What `rewrite` puts in place of a name."""
    people: Annotated[tuple[Entry, ...], Field(min_length=1)] | None = None
    file: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    """A CSV file with the columns `name` and, if wanted, `aliases` (separated by `;`) and `neutral`."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Digest of the file. Given in the policy, no other content is accepted."""
    _read: tuple[Listed, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _people_or_file(self) -> Names:
        if (self.people is None) == (self.file is None):
            raise ValueError("expected either 'people' or 'file'")
        if self.sha256 is not None and self.file is None:
            raise ValueError("'sha256' belongs to 'file'")
        return self

    @property
    def listed(self) -> tuple[Listed, ...]:
        """Everybody on the list. A list in a file is empty until the policy is loaded."""
        if self.people is None:
            return self._read
        return tuple(Listed(p.name, p.aliases, p.neutral or self.neutral) for p in self.people)

    def holding(self, listed: tuple[Listed, ...], sha256: str) -> Names:
        """The same list with the content of its file."""
        copied = self.model_copy(update={"sha256": sha256})
        copied._read = listed
        return copied


class Listed(NamedTuple):
    """Somebody on a list, as it is read from a file: there may be a million of them."""

    name: str
    aliases: tuple[str, ...]
    neutral: str


class Pattern(_Part):
    """A regular expression in the syntax of RE2, which takes linear time on every text."""

    id: Id
    regex: Annotated[str, Field(min_length=1, max_length=1000)]
    neutral: Annotated[str, Field(min_length=1, max_length=500)] = "a person"
    """What `rewrite` puts in place of what matches."""


class Entity(StrEnum):
    """What a detector can see in a text."""

    PERSON = "person"


class Person(_Part):
    """The detector of persons: a token-classification model of transformers."""

    model: Annotated[str, Field(min_length=1, max_length=1000)]
    """Its folder, as `save_pretrained` writes it, from the root or from the folder of the policy."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Digest of its `model.safetensors`. Given, no other weights are accepted."""
    labels: Annotated[tuple[str, ...], Field(min_length=1)] = ("PER", "PERSON")
    """Labels of persons, without `B-` and `I-`."""
    milliseconds: Annotated[int, Field(ge=1, le=60_000)] = 500
    """How long a call waits for it. After that, the detector counts as failed."""
    neutral: Annotated[str, Field(min_length=1, max_length=500)] = "a person"
    """What `rewrite` puts in place of a person."""
    cache: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    """Of how many texts of a tenant the answer is remembered."""
    _folder: Path = PrivateAttr(default=Path())

    @property
    def path(self) -> Path:
        """Where the model is."""
        return self._folder / self.model

    def seen_from(self, folder: Path) -> Person:
        """The same, with its path from this folder."""
        copied = self.model_copy()
        copied._folder = folder
        return copied


class When(_Part):
    """Conditions, all of which must hold. Of several values of one condition, one is enough."""

    channels: Annotated[tuple[Channel, ...], Field(min_length=1)]
    """The request uses one of these; the rule is about those that it uses."""
    models: Annotated[tuple[Glob, ...], Field(min_length=1)] | None = None
    """The backend is one of these, such as `diffusers:StableDiffusion*`."""
    tenants: Annotated[tuple[Glob, ...], Field(min_length=1)] | None = None
    """The call is made for one of these; see `Guard.context`."""
    routes: Annotated[tuple[Glob, ...], Field(min_length=1)] | None = None
    """The call came in on one of these; see `Guard.context`."""
    share: Share | None = None
    """The request is in this part of all requests."""
    names: Annotated[tuple[Id, ...], Field(min_length=1)] | None = None
    """Somebody on one of these lists is named in the channel."""
    patterns: Annotated[tuple[Id, ...], Field(min_length=1)] | None = None
    """One of these patterns matches in the channel."""
    entities: Annotated[tuple[Entity, ...], Field(min_length=1)] | None = None
    """A detector sees one of these in the channel."""
    min_score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """How sure the detector must be, for `entities`; 0.5 unless given."""

    @cached_property
    def asks(self) -> tuple[tuple[tuple[str, ...], float], ...]:
        """For each condition on texts: the sources of which one must have found something, and the least score."""
        score = DEFAULT_SCORE if self.min_score is None else self.min_score
        asked = (("names", self.names, 0.0), ("pattern", self.patterns, 0.0), ("entity", self.entities, score))
        return tuple((tuple(f"{kind}.{id}" for id in ids), least) for kind, ids, least in asked if ids is not None)

    @model_validator(mode="after")
    def _texts_can_be_read(self) -> When:
        if self.min_score is not None and self.entities is None:
            raise ValueError("'min_score' belongs to 'entities'")
        if self.asks and (others := _names(set(self.channels).difference(TEXT_CHANNELS))):
            raise ValueError(f"{others} hold no text in which something could be found")
        return self


class Then(_Part):
    """What a rule does."""

    action: Verb
    prefix: Id | None = None
    """Name of a registered prefix, for `anonymize`. Without it, the one that fits the text encoder."""
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    """How much of the prefix, for `anonymize`: of N vectors the first ⌈strength · N⌉. 1 is what was trained."""
    category: Id | None = None
    """What the record and the error say about a `block`, such as `likeness`."""

    @model_validator(mode="after")
    def _fits_the_action(self) -> Then:
        for name, action in (("prefix", Verb.ANONYMIZE), ("strength", Verb.ANONYMIZE), ("category", Verb.BLOCK)):
            if getattr(self, name) is not None and self.action != action:
                raise ValueError(f"'{name}' belongs to action '{action.value}', found it with '{self.action.value}'")
        return self


class Rule(_Part):
    """One entry of a policy."""

    id: Id
    when: When
    then: Then

    @model_validator(mode="after")
    def _action_fits_channels(self) -> Rule:
        verb, channels = self.then.action, set(self.when.channels)
        if verb == Verb.ANONYMIZE and (others := _names(channels.difference(PROMPT_CHANNELS))):
            allowed = _names(set(PROMPT_CHANNELS))
            raise ValueError(f"a prefix protects {allowed} only; {others} can be allowed or blocked")
        if verb == Verb.REWRITE and (others := _names(channels.difference(TEXT_CHANNELS))):
            raise ValueError(f"{others} hold no text that could be rewritten; block them")
        if verb == Verb.REWRITE and not self.when.asks:
            raise ValueError("'rewrite' needs a condition that says what is rewritten, such as 'names'")
        if verb == Verb.ALLOW and (others := _names(channels.difference(TEXT_CHANNELS))):
            raise ValueError(f"no prefix protects {others}; if they shall be allowed, write 'unsafe_allow'")
        return self


class Limits(_Part):
    """What is too much. A request beyond it is blocked, whatever the rules say."""

    characters: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """Of one text."""
    texts: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Of one channel in one request."""

    def fault(self, texts: tuple[str, ...]) -> str | None:
        """What makes the texts of a channel unfit to be looked at."""
        if len(texts) > self.texts:
            return f"{len(texts)} texts, at most {self.texts} are allowed (limits.texts)"
        longest = max(map(len, texts), default=0)
        if longest > self.characters:
            return f"{longest} characters, at most {self.characters} are allowed (limits.characters)"
        if not all(map(_is_text, texts)):
            return NO_TEXT
        return None


class Metadata(_Part):
    """What a policy is called and whose it is."""

    name: Id
    version: Annotated[int, Field(ge=1)]
    """Counted up by the owner of the policy on each change."""
    description: Annotated[str, Field(max_length=1000)] = ""
    owner: Annotated[str, Field(max_length=200)] = ""


class Spec(_Part):
    """What a policy says."""

    mode: Mode = Mode.ENFORCE
    rollout: Share | None = None
    """Decisions are carried out for this part of all requests; for the others as in mode `shadow`."""
    on_error: OnError = OnError.BLOCK
    without_prefix: WithoutPrefix = WithoutPrefix.BLOCK
    output_check: Literal["optional", "required"] = "optional"
    """Whether a guard can be made with this policy that does not look at finished pictures."""
    limits: Limits = Limits()
    prefix: Acceptance = Acceptance()
    """Which prefixes may be put in front."""
    names: tuple[Names, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    person: Person | None = None
    """The detector for `entities: [person]`."""
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]

    @cached_property
    def sources(self) -> frozenset[str]:
        """Everything that looks at texts for a rule."""
        names = {f"names.{names.id}" for names in self.names if names.role == Role.PROTECTED}
        entities = {f"entity.{Entity.PERSON.value}"} if self.person is not None else set()
        return frozenset(names | entities | {f"pattern.{pattern.id}" for pattern in self.patterns})

    @field_validator("names", "patterns", "rules")
    @classmethod
    def _ids_differ(cls, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        ids = [part.id for part in parts]
        if len(set(ids)) != len(ids):
            raise ValueError("two have the same id")
        return parts

    @model_validator(mode="after")
    def _what_rules_ask_is_there(self) -> Spec:
        """And what is there is asked for, so that nothing stands in a policy without an effect."""
        asked = {source for rule in self.rules for sources, _ in rule.when.asks for source in sources}
        if missing := sorted(asked - self.sources):
            raise ValueError(
                f"rules ask for {', '.join(missing)}; the policy has {', '.join(sorted(self.sources)) or 'none'}"
            )
        if self.person is None and any(names.role == Role.CONSENTING for names in self.names):
            raise ValueError("a list of role 'consenting' takes findings of 'person' back; there is no 'person'")
        if self.without_prefix == WithoutPrefix.REWRITE:
            if not self.sources:
                raise ValueError(
                    "'without_prefix: rewrite' needs 'names', 'patterns' or 'person' to find what to rewrite"
                )
        elif unused := sorted(self.sources - asked):
            raise ValueError(f"no rule asks for {', '.join(unused)}")
        return self

    @model_validator(mode="after")
    def _prompts_are_protected(self) -> Spec:
        """Leaving prompts without any protection must be said in so many words."""
        about_prompts = [rule for rule in self.rules if set(PROMPT_CHANNELS) & set(rule.when.channels)]
        if about_prompts and all(rule.then.action == Verb.ALLOW for rule in about_prompts):
            raise ValueError("no rule protects prompts; if that is meant, write 'unsafe_allow'")
        return self


class Given(_Part):
    """The request of a test."""

    prompt: str | None = None
    negative_prompt: str | None = None
    channels: tuple[Channel, ...] = ()
    """Channels that it uses beside those of its texts."""
    tenant: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    route: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    model: Annotated[str, Field(max_length=200)] = "test:Pipe"
    """The backend, as `when: {models: …}` sees it."""
    carries_prefix: bool = True
    """Whether a prefix can reach the backend."""


class Expect(_Part):
    """What a test wants decided, whatever mode and rollout are."""

    action: Action
    rule: Id | None = None
    """One of the rules that decide about a channel."""
    category: Id | None = None
    prompt: str | None = None
    """The prompt that runs."""


class Case(_Part):
    """A test of a policy, which it must pass before it comes into force."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    given: Given
    expect: Expect


Api = Literal["apl-guard/v1"]
Kind = Literal["Policy"]


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(channels: set[Channel]) -> list[str]:
    return sorted(channel.value for channel in channels)
