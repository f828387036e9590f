"""What is known about a prefix, kept inside its file."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from apl_guard.encoder.fingerprint import Fingerprint
from apl_guard.encoder.traits import Traits
from apl_guard.prefix.layout import NAME_PATTERN
from apl_guard.prefix.tensorfile import MAX_VECTORS, MAX_WIDTH

__all__ = ["PrefixMetadata"]

_MAX_METADATA_BYTES = 24 << 10  # each quote in it takes two bytes in the header

# A pipe inside a pipe puts words in front, such as `prior_text_encoder`.
Slot = Annotated[str, Field(pattern=r"^([a-z]{1,16}_){0,3}text_encoder(_[2-9])?$")]


class PrefixMetadata(BaseModel):
    """What is known about a prefix, kept inside its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["apl-guard/1"] = "apl-guard/1"
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """What people call it; the name in the registry unless another is given there."""
    n: Annotated[int, Field(ge=1, le=MAX_VECTORS)]
    """Number of vectors, the same in every slot."""
    widths: dict[Slot, Annotated[int, Field(ge=1, le=MAX_WIDTH)]]
    """Slot → width of its vectors."""
    fingerprints: dict[Slot, Fingerprint]
    """Slot → the text encoder and tokenizer that the vectors were trained with."""
    traits: dict[Slot, Traits] = Field(default_factory=dict)
    """Slot → what else that text encoder is known by. Empty where the trainer did not take them."""
    config_digest: str = ""
    """Digest of the training configuration."""
    evaluation: dict[str, JsonValue] = Field(default_factory=dict)
    """What the trainer measured."""
    created: datetime

    @model_validator(mode="after")
    def _slots_agree(self) -> PrefixMetadata:
        if not self.widths:
            raise ValueError("widths: expected at least one text encoder, found none")
        if self.widths.keys() != self.fingerprints.keys():
            raise ValueError(f"widths are for {sorted(self.widths)}, fingerprints for {sorted(self.fingerprints)}")
        if self.traits and self.traits.keys() != self.widths.keys():
            raise ValueError(f"widths are for {sorted(self.widths)}, traits for {sorted(self.traits)}")
        # So that nothing is ever written that could not be read again. The rest of a header is small.
        try:
            size = len(self.canonical_json())
        except (ValueError, RecursionError) as error:
            raise ValueError("evaluation: expected finite numbers and little nesting") from error
        if size > _MAX_METADATA_BYTES:
            raise ValueError(f"evaluation: makes the metadata {size} bytes long, expected ≤ {_MAX_METADATA_BYTES}")
        return self

    def canonical_json(self) -> str:
        """The one text that stands for these values in the file and in the digest."""
        # Without what a prefix need not have, so that a file from before there was such a thing keeps its digest.
        absent = set() if self.traits else {"traits"}
        fields = self.model_dump(mode="json", exclude=absent)
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
