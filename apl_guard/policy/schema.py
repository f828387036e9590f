"""What a policy file can say about requests, as types: its rules, and what holds beside them.

Every type is frozen and refuses keys that it does not know.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from apl_guard.policy.acceptance import Acceptance
from apl_guard.policy.sources import Names, Pattern, Person
from apl_guard.policy.words import (
    DEFAULT_SCORE,
    NO_TEXT,
    Entity,
    Glob,
    Id,
    Mode,
    OnError,
    Part,
    Role,
    ShareKey,
    Verb,
    WithoutPrefix,
)
from apl_guard.request import MAX_CHARACTERS, MAX_TEXTS, PROMPT_CHANNELS, TEXT_CHANNELS, Channel

__all__ = ["Api", "Kind", "Limits", "Metadata", "Rule", "Share", "Spec", "Then", "When"]


class Share(Part):
    """A part of all requests. The same key goes the same way each time, and stays in when the part grows."""

    percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    key: ShareKey = ShareKey.REQUEST
    salt: Annotated[str, Field(max_length=200)] = ""
    """Another salt draws another part."""


class When(Part):
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


class Then(Part):
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


class Rule(Part):
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


class Limits(Part):
    """What is too much. A request beyond it is blocked, whatever the rules say."""

    characters: Annotated[int, Field(ge=1, le=MAX_CHARACTERS)] = 10_000
    """Of one text."""
    texts: Annotated[int, Field(ge=1, le=MAX_TEXTS)] = 64
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


class Metadata(Part):
    """What a policy is called and whose it is."""

    name: Id
    version: Annotated[int, Field(ge=1)]
    """Counted up by the owner of the policy on each change."""
    description: Annotated[str, Field(max_length=1000)] = ""
    owner: Annotated[str, Field(max_length=200)] = ""


class Spec(Part):
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
            raise ValueError(
                "a list of role 'consenting' takes back what the detector of persons found, and there is none; add "
                "'spec.person', or leave the list out"
            )
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
