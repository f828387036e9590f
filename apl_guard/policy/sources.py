"""What looks at texts for the rules of a policy: lists of names, patterns, the detector of persons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, PrivateAttr, model_validator

from apl_guard.encoder.fingerprint import Sha256
from apl_guard.policy.words import Id, Part, Role

__all__ = ["Entry", "Listed", "Names", "Pattern", "Person"]


class Entry(Part):
    """Somebody on a list."""

    name: Annotated[str, Field(max_length=200)]
    aliases: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=100)] = ()
    """Other names of the same person."""
    neutral: Annotated[str, Field(max_length=500)] | None = None
    """What `rewrite` puts in place of the name; that of the list unless given."""


class Names(Part):
    """A list of names, in the policy or in a file beside it."""

    id: Id
    role: Role = Role.PROTECTED
    neutral: Annotated[str, Field(min_length=1, max_length=500)] = "a person"
    """What `rewrite` puts in place of a name."""
    people: Annotated[tuple[Entry, ...], Field(min_length=1)] | None = None
    file: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    """A CSV file with the columns `name` and, if wanted, `aliases` (separated by `;`) and `neutral`."""
    sha256: Sha256 | None = None
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


class Pattern(Part):
    """A regular expression in the syntax of RE2, which takes linear time on every text."""

    id: Id
    regex: Annotated[str, Field(min_length=1, max_length=1000)]
    neutral: Annotated[str, Field(min_length=1, max_length=500)] = "a person"
    """What `rewrite` puts in place of what matches."""


class Person(Part):
    """The detector of persons: a token-classification model of transformers, or a model of GLiNER."""

    model: Annotated[str, Field(min_length=1, max_length=1000)]
    """Its folder, as `save_pretrained` writes it, from the root or from the folder of the policy."""
    sha256: Sha256 | None = None
    """Digest of its `model.safetensors`. Given, no other weights are accepted."""
    labels: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(min_length=1)] | None = (
        None
    )
    """Labels of persons, without `B-` and `I-`: PER and PERSON unless given. For GLiNER, words: person unless given."""
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
