"""The people a prefix is trained on: a YAML file of names and of what stands in for each name.

identities:
  - name: Mara Voss
    neutral: {coarse: a woman, attributes: a woman with tan skin and long black hair}
    images: photos/mara_voss            # optional: own pictures instead of self-generated ones
templates:                              # optional
  - a photo of {name}
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from apl_guard.errors import IdentitiesInvalid
from apl_guard.policy.problems import did_you_mean
from apl_guard.printable import printable
from apl_guard.trainer.config import NeutralKind
from apl_guard.trainer.plain_yaml import read_yaml_file

DEFAULT_TEMPLATES = (
    "a photo of {name}",
    "a portrait of {name}",
    "a close-up portrait of {name}",
    "{name}",
    "{name} smiling",
    "{name} at work",
    "a picture of {name} in front of a window",
    "a photo of {name} in the street",
    "an oil painting of {name}",
    "a drawing of {name}",
    "a black and white photo of {name}",
    "{name} giving a speech",
    "a snapshot of {name} with friends",
    "{name} in a red jacket",
    "a photo of {name} at the beach",
    "the face of {name}",
)


class Neutral(BaseModel):
    """What may stand in for a name, by how much it tells."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    coarse: str | None = Field(default=None, min_length=1)
    attributes: str | None = Field(default=None, min_length=1)

    @field_validator("coarse", "attributes")
    @classmethod
    def _text_says_something(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("is blank; expected a text, such as a woman")
        return text


class Identity(BaseModel):
    """One person."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    neutral: Neutral
    images: Path | None = None

    @field_validator("name")
    @classmethod
    def _name_is_written_plainly(cls, name: str) -> str:
        # It is looked for in captions as it stands.
        if name != name.strip():
            raise ValueError("begins or ends with a blank")
        return name

    @field_validator("neutral")
    @classmethod
    def _neutral_text_is_without_the_name(cls, neutral: Neutral, info: ValidationInfo) -> Neutral:
        name = info.data.get("name")
        if name is None:  # another fault of this entry
            return neutral
        said = rf"(?<!\w){re.escape(name)}(?!\w)"
        if any(text is not None and re.search(said, text) for text in (neutral.coarse, neutral.attributes)):
            raise ValueError("holds the name that it stands in for, so it would hide nobody; say it without the name")
        return neutral


class Identities(BaseModel):
    """The whole file.

    Example:
        >>> people = Identities.model_validate(
        ...     {"identities": [{"name": "Mara Voss", "neutral": {"coarse": "a woman"}}]})
        >>> people.neutral(0, "coarse")
        'a woman'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    identities: tuple[Identity, ...] = Field(min_length=1)
    templates: tuple[str, ...] = Field(default=DEFAULT_TEMPLATES, min_length=1)

    @field_validator("identities")
    @classmethod
    def _names_differ(cls, identities: tuple[Identity, ...]) -> tuple[Identity, ...]:
        said = [" ".join(unicodedata.normalize("NFC", i.name).casefold().split()) for i in identities]
        twice = [name for name, n in Counter(said).items() if n > 1]
        if twice:
            numbers = [k + 1 for k, name in enumerate(said) if name == twice[0]]
            raise ValueError(f"entries {numbers} have the same name; every name may stand there once")
        return identities

    @field_validator("templates")
    @classmethod
    def _templates_hold_a_name(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for number, template in enumerate(templates, 1):
            if "{name}" not in template:
                raise ValueError(f"template {number} has no {{name}} in it")
        return templates

    def neutral(self, index: int, kind: NeutralKind) -> str:
        """What stands in for the name of one person.

        Raises:
            IdentitiesInvalid: The file does not say it.
        """
        text = getattr(self.identities[index].neutral, kind)
        if text is None:
            instead = "ask for attributes (--neutral attributes)"
            if kind == "attributes":
                instead = "do without attributes (--neutral coarse, in training with attributes_share=0)"
            raise IdentitiesInvalid(f"entry {index + 1} has no neutral.{kind}; add it, or {instead}")
        return str(text)


def load_identities(path: Path | str) -> Identities:
    """Read an identities file. Paths of pictures in it are relative to the file.

    Raises:
        IdentitiesInvalid: The file is missing, is not YAML, has unknown keys, a key twice, duplicate names, or nobody.
    """
    path = Path(path)
    values = read_yaml_file(path, IdentitiesInvalid, "the file of identities")
    if not isinstance(values, dict):
        msg = f"found {_kind(values)}; expected identities: [{{name: Mara Voss, neutral: {{coarse: a woman}}}}]"
        raise IdentitiesInvalid(msg, where=path)
    try:
        people = Identities.model_validate(values)
    except ValidationError as error:
        raise IdentitiesInvalid(_describe(error.errors()[0], values), where=path) from None
    placed = tuple(
        i.model_copy(update={"images": path.parent / i.images}) if i.images is not None else i
        for i in people.identities
    )
    return people.model_copy(update={"identities": placed})


_EXPECTED = {
    "entry": "{name: Mara Voss, neutral: {coarse: a woman}}",
    "identities": "a list of people, such as [{name: Mara Voss, neutral: {coarse: a woman}}]",
    "templates": "a list of texts, such as ['a photo of {name}']",
    "template": "a text, such as 'a photo of {name}'",
    "neutral": "{coarse: a woman}",
    "name": "a text",
    "coarse": "a text, such as a woman",
    "attributes": "a text, such as a woman with tan skin and long black hair",
    "images": "the path of a folder",
}
"""Field → what to write there."""


def _describe(fault: Any, values: Any) -> str:
    """What is wrong with a file of people, in the words of somebody who writes YAML."""
    place, field, found = fault["loc"], str(fault["loc"][-1]), values
    where, expected = "", _EXPECTED.get(field, "something else")
    if len(place) > 1 and isinstance(place[1], int):
        kind = "template" if place[0] == "templates" else "entry"
        where = f"{kind} {place[1] + 1}: "
        if len(place) == 2:  # the entry itself
            where, field, expected = "", f"{kind} {place[1] + 1}", _EXPECTED[kind]
    if fault["type"] == "extra_forbidden":
        models: dict[int, type[BaseModel]] = {1: Identities, 3: Identity, 4: Neutral}
        model = models[len(place)]
        meant = did_you_mean(field, model.model_fields) or f"; known: {', '.join(model.model_fields)}"
        return f"{where}unknown key '{printable(field)}'{meant}"
    if fault["type"] == "missing":
        return f"{where}'{field}' is missing; expected {expected}"
    if fault["type"] == "value_error":
        said = fault["msg"].removeprefix("Value error, ")
        return f"{where}'{field}' {said}" if where else str(said)
    for part in place:
        found = found[part]
    is_empty = found is None or found in ("", [], {})
    return f"{where}'{field}' is {'empty' if is_empty else _kind(found)}; expected {expected}"


def _kind(found: Any) -> str:
    if isinstance(found, bool):
        return "true or false, which YAML makes of words such as Yes and No; put it in quotes"
    return {str: "a text", list: "a list", dict: "a mapping", int: "a number", float: "a number"}.get(
        type(found), "nothing" if found is None else "something else"
    )
