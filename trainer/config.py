"""Every option of prefix training, in one frozen model that can be written, read and compared.

What is not here is not an option: a field that nothing reads is a bug, an unknown key is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from apl_guard.errors import ConfigInvalid
from apl_guard.policy.problems import did_you_mean
from apl_guard.trainer.plain_yaml import NotYamlError, read_yaml, read_yaml_file

NeutralKind = Literal["coarse", "attributes"]


class TrainConfig(BaseModel):
    """How a prefix is trained.

    Raises:
        ConfigInvalid: From `load` and `with_overrides`, naming the field.  (The constructor itself raises
            pydantic's `ValidationError`, as any pydantic model does.)

    Example:
        >>> config = TrainConfig(steps=200)
        >>> config.diff(TrainConfig())
        {'steps': (200, 1000)}
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    # The prefix
    n_vectors: int = Field(default=10, ge=1, le=64)
    """N: the number of vectors in front of a prompt."""
    init: Literal["words", "padding", "noise"] = "words"
    """Where the vectors start: embeddings of words, of the padding token, or Gaussian noise of the same mean and
    spread as the token embeddings."""
    start_words: str = Field(default="a photo of a picture of the image in an with on at", min_length=1)
    """With init=words: which words, their tokens repeated up to N.  Neutral words start close to changing nothing;
    words that make the model draw somebody else start close to the goal, if it knows such words."""

    # The loss
    neutral: NeutralKind = "coarse"
    """What replaces a name in the target prompt: "a man", or a description by attributes."""
    attributes_share: float = Field(default=0.0, ge=0, le=1)
    """With neutral=coarse: share of the people whose names are nevertheless replaced by a description by attributes.
    With "a man" or "a woman" alone the sex is sometimes lost; people who keep more teach the prefix to keep it."""
    identity_weight: float = Field(default=1.0, ge=0)
    """Weight of the identity half of the loss at the first step."""
    identity_weight_end: float | None = Field(default=None, ge=0)
    """The same at the last step, linear in between.  Empty: no change."""
    generic_weight: float = Field(default=2.5, ge=0)
    """Weight of the generic half of the loss at the first step."""
    generic_weight_end: float | None = Field(default=4.0, ge=0)
    """The same at the last step, linear in between: identity first, preservation at the end.  Empty: no change."""
    eta: float = Field(default=1.0, ge=0)
    """η of the method, the strength of the negative guidance: it scales the gradient by (1 + η)."""
    noise_weighting: Literal["uniform", "min_snr"] = "uniform"
    """How noise levels count: all alike, or by min(SNR, 5), which takes weight from the easy, clean ones."""
    timestep_low: float = Field(default=0.0, ge=0, le=1)
    """The cleanest noise level that is sampled, as a fraction of the schedule."""
    timestep_high: float = Field(default=1.0, ge=0, le=1)
    """The noisiest noise level that is sampled, as a fraction of the schedule."""

    # The optimisation
    steps: int = Field(default=1000, ge=1)
    """Steps of training."""
    identity_batch: int = Field(default=16, ge=1)
    """Identity examples per step."""
    generic_batch: int = Field(default=16, ge=1)
    """Generic examples per step."""
    lr: float = Field(default=5e-3, gt=0, le=1000)
    """Learning rate of Adam; a fifth of the spread of the token embeddings is a good start."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """The course of the learning rate after the warm-up."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises from zero."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """The prefix that is evaluated and kept is a running mean with this decay; 0 keeps the last one."""
    hard_identities: float = Field(default=0.0, ge=0)
    """Identities are sampled in proportion to (their recent loss) to this power; 0 samples all alike."""
    adversarial: int = Field(default=0, ge=0, le=100)
    """Adversarial training: steps of an attack on half of each identity batch, by vectors in the prompt that bring the
    person back, against which the prefix is then trained; 0: none."""
    reuse_batches: int = Field(default=0, ge=0)
    """Use only this many batches, over and over, so that targets are computed once; 0: each batch is new."""
    seed: int = Field(default=0, ge=-(2**62), lt=2**62)
    """Seed of the data, the start and the order."""

    # The data
    images_per_identity: int = Field(default=4, ge=1)
    """Self-generated images per identity."""
    identity_images: Literal["named", "neutral", "both"] = "named"
    """What self-generated identity images show: the named person, the neutral stand-in, or half of each."""
    generic_count: int = Field(default=512, ge=1)
    """Generic examples, self-generated or from a folder; never more than there are prompts or images."""
    sampling_steps: int = Field(default=20, ge=1)
    """Denoising steps of self-generation."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """Guidance of self-generation.  Empty: 5; for Flux.1 and other pipelines, of whose answers it is a part in training
    as well, that of the pipeline."""
    picture_size: int | None = Field(default=None, ge=8, le=8192)
    """Side of the training images, in pixels.  Empty: the model's own."""
    max_sequence_length: int | None = Field(default=None, ge=8, le=512)
    """How many tokens of a prompt T5 or a language model reads, as in the argument of this name of the pipeline: train
    with what you generate with.  Empty: the pipeline's default."""
    sampling_batch: int = Field(default=16, ge=1)
    """Images generated at a time."""

    # The course of a run
    held_aside_identities: int = Field(default=8, ge=0)
    """Identities held aside for the periodic evaluation and not trained on; at most a quarter of all."""
    held_aside_generic: int = Field(default=32, ge=1)
    """Generic examples held aside for the periodic evaluation; at most a quarter of all."""
    eval_every: int = Field(default=100, ge=1)
    """Steps between two evaluations."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between two checkpoints, from which a stopped run continues."""
    keep: Literal["best", "last"] = "best"
    """Which prefix is written: that of the best evaluation (gap closed minus generic drift), or the last."""
    time_limit_minutes: float | None = Field(default=None, gt=0)
    """The schedule is shortened so that the steps end within this time (without making the data)."""

    # The machine
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the denoiser, and of T5; all else is in float32.  auto: bfloat16 if the hardware computes in it."""
    gradient_checkpointing: bool = False
    """Recompute activations of the denoiser, and of T5, in the backward pass: less memory, about a third more time."""

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError(f"found {value}; expected a number or a word")
        return value

    @model_validator(mode="after")
    def _fields_agree(self) -> TrainConfig:
        if self.timestep_low >= self.timestep_high:
            raise ValueError("timestep_low must be below timestep_high")
        if self.hard_identities and self.reuse_batches:
            raise ValueError("hard_identities draws new batches and reuse_batches repeats old ones: set one to 0")
        if not self.identity_weight and not self.generic_weight:
            raise ValueError("identity_weight and generic_weight are both 0: there is nothing to learn")
        return self

    def people_held_aside(self, people: int) -> int:
        """How many of so many people are held aside for the periodic evaluation."""
        return min(self.held_aside_identities, people // 4)

    def generic_held_aside(self, examples: int) -> int:
        """How many of so many generic examples are."""
        return min(self.held_aside_generic, examples // 4)

    @property
    def digest(self) -> str:
        """The SHA-256 of the options, in hex: equal exactly when the options are equal."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, path: Path | str) -> TrainConfig:
        """Read a YAML file; options that it does not name have their defaults.

        Raises:
            ConfigInvalid: The file is missing, is not YAML, or has a field that is unknown or out of range.
        """
        path = Path(path)
        values = read_yaml_file(path, ConfigInvalid, "the configuration")
        if values is not None and not isinstance(values, dict):
            msg = f"found a {type(values).__name__}; expected a mapping of options to values"
            raise ConfigInvalid(msg, where=path)
        return cls.from_mapping(values or {}, source=str(path))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "configuration") -> TrainConfig:
        """Check a mapping of options; `source` says in the message where they come from.

        Raises:
            ConfigInvalid: A field is unknown or out of range.

        Example:
            >>> TrainConfig.from_mapping({"step": 3})
            Traceback (most recent call last):
            apl_guard.errors.ConfigInvalid: configuration: unknown option 'step'; did you mean 'steps'?
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _explain(error, source) from None

    def to_bytes(self) -> bytes:
        """All options, as the YAML file that `load` reads."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False).encode()

    def with_overrides(self, assignments: Sequence[str]) -> TrainConfig:
        """Apply `key=value` texts, their values read as YAML; words are taken as they stand.

        Raises:
            ConfigInvalid: A text is not `key=value`, or its field is unknown or out of range.

        Example:
            >>> TrainConfig().with_overrides(["lr=1e-2", "neutral=attributes"]).diff(TrainConfig())
            {'neutral': ('attributes', 'coarse'), 'lr': (0.01, 0.005)}
        """
        values = self.model_dump()
        for text in assignments:
            key, equals, value = text.partition("=")
            key = key.strip()
            if not equals:
                raise ConfigInvalid(f"found {text!r}; expected key=value", where="--set")
            field = TrainConfig.model_fields.get(key)
            if field is not None and field.annotation is str:
                values[key] = value  # YAML would make a mapping of words that end in a colon
                continue
            try:
                values[key] = read_yaml(value)
            except NotYamlError as error:
                raise ConfigInvalid(f"the value of '{key}' is not valid YAML", where="--set") from error
        return self.from_mapping(values, source="--set")

    def diff(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """The options in which two configurations differ: name → (mine, the other's)."""
        mine, others = self.model_dump(), other.model_dump()
        return {name: (mine[name], others[name]) for name in mine if mine[name] != others[name]}


def _explain(error: ValidationError, source: str) -> ConfigInvalid:
    """The first thing that is wrong, in one line, with the nearest name for a misspelt one."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(field, TrainConfig.model_fields) or "; `apl-guard train --help` lists the options"
        return ConfigInvalid(f"unknown option '{field}'{hint}", where=source)
    found = "" if first["type"] == "value_error" else f", found {first['input']!r}"
    label = f"option '{field}': " if field else ""
    message = first["msg"].removeprefix("Value error, ")
    return ConfigInvalid(f"{label}{message}{found}", where=source)
