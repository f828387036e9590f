"""The people a prefix is trained on: a YAML file of names and of what stands in for each name.

identities:
  - name: Mara Voss
    neutral: {coarse: a woman, attributes: a woman with tan skin and long black hair}
    images: photos/mara_voss            # optional: own pictures instead of self-generated ones
templates:                              # optional
  - a photo of {name}
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from apl_guard.errors import IdentitiesInvalid
from apl_guard.storage import read_regular
from apl_guard.trainer.config import NeutralKind
from apl_guard.trainer.plain_yaml import MAX_YAML_BYTES, NotYamlError, read_yaml

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
            raise IdentitiesInvalid(
                f"entry {index + 1} has no neutral.{kind}; add it, or train with another --set neutral="
            )
        return str(text)


def load_identities(path: Path | str) -> Identities:
    """Read an identities file. Paths of pictures in it are relative to the file.

    Raises:
        IdentitiesInvalid: The file is missing, is not YAML, has unknown keys, a key twice, duplicate names, or nobody.
    """
    path = Path(path)
    try:
        values = read_yaml(read_regular(path, MAX_YAML_BYTES).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise IdentitiesInvalid(f"the identities cannot be read: {error}", where=path) from error
    except NotYamlError as error:
        raise IdentitiesInvalid(f"the identities are not valid YAML: {error}", where=path) from error
    if not isinstance(values, dict):
        msg = f"found a {type(values).__name__}; expected a mapping with the key 'identities'"
        raise IdentitiesInvalid(msg, where=path)
    try:
        people = Identities.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            msg = f"unknown key '{field}'; known: identities, templates, and in an entry name, neutral, images"
        else:
            msg = f"'{field}': {first['msg']}"
        raise IdentitiesInvalid(msg, where=path) from None
    placed = tuple(
        i.model_copy(update={"images": path.parent / i.images}) if i.images is not None else i
        for i in people.identities
    )
    return people.model_copy(update={"identities": placed})
