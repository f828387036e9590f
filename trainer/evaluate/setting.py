"""How an evaluation is done, and the drawing of its pictures, which are kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from tqdm import tqdm

from apl_guard.adapters.diffusers.view import encoders_of
from apl_guard.detect.person_reader import read_weights
from apl_guard.errors import ExtraMissing, InvalidInput
from apl_guard.guard import Guard
from apl_guard.policy import Policy
from apl_guard.prefix import Prefix
from apl_guard.prefix.layout import cache_root
from apl_guard.storage import make_folder, write_file
from apl_guard.trainer.config import NeutralKind
from apl_guard.trainer.evaluate.result import Album, Asked, Figures, Pictures
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.number_format import computing_in
from apl_guard.trainer.model.pipeline import check_steps, model_digest
from apl_guard.trainer.report.pictures import png


def pictures_folder() -> Path:
    """Where pictures are kept: beside the latents of training. It may be deleted at any time."""
    return cache_root() / "pictures"


@dataclass(frozen=True)
class Setting:
    """What every suite of an evaluation needs to know, and the one way in which all of them draw.

    Example:
        >>> from apl_guard.testing import random_prefix, tiny_pipe
        >>> pipe = tiny_pipe()
        >>> setting = Setting.of(pipe, random_prefix(pipe, n=4), judges=None, steps=1, folder=None, progress=False)
        >>> setting.draw(setting.guard, ["a photo of a man", "a red car"], "example").shape
        (2, 32, 32, 3)
    """

    pipe: Any
    """The model."""
    prefix: Prefix
    guard: Guard
    """The guard around `pipe` that puts `prefix` in front."""
    judges: Any
    """Who looks at the pictures: the judges of the reference world, or on other models another `FaceJudge`."""
    policy: Policy | None = None
    """Under which every guard of this evaluation acts; None: the strictest built-in one that permits what is asked."""
    seed: int = 0
    """Of prompts and pictures; both are disjoint from those of training."""
    steps: int = 25
    """Denoising steps."""
    guidance: float = 3.0
    """Classifier-free guidance."""
    images_per_person: int = 4
    """Pictures of each person in each arm."""
    people_limit: int | None = None
    """At most so many people in a suite, evenly picked, and generic prompts in proportion."""
    neutral: NeutralKind = "coarse"
    """What the neutral prompt keeps of a person."""
    templates: tuple[str, ...] | None = None
    """Texts with `{name}` in place of the held-out prompts; they ask for no scene."""
    precision: torch.dtype = torch.float32
    """What the UNet computes in; bfloat16 is for research and not for figures to report."""
    batch: int = 32
    """How many pictures to draw at once, if the model can."""
    folder: Path | None = field(default_factory=pictures_folder)
    """Where pictures are kept, so that a stopped run goes on and no picture is drawn twice; None keeps none."""
    progress: bool = True
    """Whether to draw progress bars."""
    album: Album | None = field(default=None, repr=False)
    """Where suites lay the pictures that a report may show."""

    @classmethod
    def of(
        cls, pipe: Any, prefix: Prefix, judges: Any, policy: Policy | str | Path | None = None, **options: Any
    ) -> Setting:
        """A setting whose guard has the default policy, or another.

        Raises:
            InvalidInput: The model cannot draw in so many steps.
            PolicyInvalid: The policy cannot be used, or its own tests fail.
            PrefixNotFound: The prefix belongs to another text encoder.
            ExtraMissing: scipy is not installed, which every figure's interval needs.
        """
        ExtraMissing.check("eval", "scipy")
        check_steps(pipe, options.get("steps", cls.steps))
        chosen = Policy.load(policy) if isinstance(policy, (str, Path)) else policy
        if chosen is not None:
            chosen = _with_its_detector(chosen)
            if any(rule.then.prefix is not None for rule in chosen.rules):
                options["folder"] = None  # another prefix may be registered under that name tomorrow
        guard = Guard(pipe, policy=chosen or _policy_for(pipe), prefix=prefix)
        return cls(pipe, prefix, guard, judges, chosen, **options)

    def on(self, pipe: Any, prefix: Prefix | None = None, guard: Guard | None = None) -> Setting:
        """The same setting on another model, or with another prefix or guard.

        Args:
            pipe: The model; its pictures are kept apart by its weights.
            prefix: Default: the same.
            guard: Default: one around `pipe` with the same policy.

        Raises:
            PrefixNotFound: The prefix belongs to another text encoder.
        """
        prefix = prefix or self.prefix
        guard = guard or Guard(pipe, policy=self.guard.policy, prefix=prefix)
        return replace(self, pipe=pipe, prefix=prefix, guard=guard)

    def show(self, suite: str, asked: Sequence[Asked], arms: Mapping[str, Pictures]) -> None:
        """Lay pictures where the report finds them; arms that were drawn from the same seeds."""
        if self.album is not None:
            self.album.images[suite] = dict(arms)
            self.album.asked[suite] = list(asked)

    def draw_people(self, name: str, asked: Sequence[Asked], stream: str) -> dict[str, Pictures]:
        """Draw what is asked from the same seeds: unguarded, unguarded with the neutral prompts, and guarded.

        Args:
            name: What the report calls it.
            asked: What is asked.
            stream: Seeds are made of it.
        """
        neutral = [replace(one, text=one.neutral_text) for one in asked]
        arms = {
            "plain": self.draw_asked(self.pipe, asked, stream),
            "neutral": self.draw_asked(self.pipe, neutral, stream, arm="neutral"),
            "guarded": self.draw_asked(self.guard, asked, stream),
        }
        self.show(name, asked, arms)
        return arms

    def draw_asked(
        self, call: Callable[..., Any], asked: Sequence[Asked], stream: str, *, decides: str = "", arm: str = ""
    ) -> Pictures:
        """Draw what is asked, each from the seed of its label; the rest as for `draw`."""
        texts, labels = [one.text for one in asked], [one.label for one in asked]
        return self.draw(call, texts, stream, labels=labels, decides=decides, arm=arm)

    def draw(
        self,
        call: Callable[..., Any],
        texts: Sequence[str],
        stream: str,
        *,
        labels: Sequence[str] | None = None,
        decides: str = "",
        arm: str = "",
    ) -> Pictures:
        """Draw each text from a seed of its own; arms of one stream differ by the prompt or the call alone.

        A picture that was drawn before, by whichever run, is read from disk. What decides it: all weights, the
        prefix and the policy where the call is the guard, the text, the seed, steps, guidance and number format.

        Args:
            call: `pipe` or `guard` of this setting, or anything that is called as they are.
            texts: n prompts.
            stream: Seeds are made of it, the setting's seed, and the label of each picture.
            labels: n labels; default their numbers.
            decides: What decides the pictures of another call, such as "negative prompt v1" or a digest. Without
                it nothing of such a call is kept.
            arm: What the progress bar calls these pictures; by default what the call is.

        Returns:
            Shape (n, H, W, 3), bytes.

        Raises:
            InvalidInput: There are no texts, or not as many labels.
            StorageFailed: A picture cannot be kept.
        """
        labels = [str(k) for k in range(len(texts))] if labels is None else labels
        if not texts or len(labels) != len(texts):
            raise InvalidInput(f"found {len(texts)} texts and {len(labels)} labels; expected as many, and some")
        seeds = [_seed(self.seed, stream, label) for label in labels]
        who = self._who(call, decides)
        paths: list[Path | None] = [None] * len(texts)
        if self.folder is not None and who is not None:
            folder = self.folder / who[:16]
            make_folder(folder)
            paths = [folder / f"{_digest(who, text, seed)[:40]}.png" for text, seed in zip(texts, seeds, strict=True)]
        pictures = [None if path is None else _read(path) for path in paths]
        missing = [k for k, picture in enumerate(pictures) if picture is None]
        arm = arm or ("plain" if call is self.pipe else "guarded" if call is self.guard else decides[:20])
        bar = tqdm(
            total=len(texts), initial=len(texts) - len(missing), desc=f"{stream} {arm}".strip(), unit="img",
            disable=not self.progress,
        )  # fmt: skip
        with bar:
            batch = self._batch(call)
            for start in range(0, len(missing), batch):
                part = missing[start : start + batch]
                drawn = self._draw(call, [texts[k] for k in part], [seeds[k] for k in part])
                for k, picture in zip(part, drawn, strict=True):
                    pictures[k] = picture
                    if (path := paths[k]) is not None:
                        write_file(path, png(picture, compress_level=1))  # quick rather than small
                bar.update(len(part))
        return np.stack([picture for picture in pictures if picture is not None])

    def prefixed(self, asked: Sequence[Asked]) -> Figures:
        """How many of the prompts get the prefix under the policy of the guard."""
        return {"prefixed": sum(self.guard.check(prompt=[one.text]).prefixed for one in asked)}

    def _batch(self, call: Callable[..., Any]) -> int:
        """How many pictures to draw in one call.

        A guard decides about a call as a whole. Where its policy may decide otherwise about one prompt than about
        another, each is a call of its own, as it is in a service.
        """
        apart = self.policy is not None and call is not self.pipe
        return 1 if apart or family_of(self.pipe).draws_singly else self.batch

    def _draw(self, call: Callable[..., Any], texts: list[str], seeds: list[int]) -> Pictures:
        family = family_of(self.pipe)
        plain = self.precision == torch.float32
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        options = {"num_inference_steps": self.steps, **family.guided(self.guidance), "output_type": "np"}
        with silent(self.pipe), family.mixed() if plain else computing_in(self.precision, family.device):
            if family.draws_singly:
                output = call(prompt=texts[0], generator=generators[0], **options)
            else:
                output = call(texts, generator=generators, **options)
        found = output.images if hasattr(output, "images") else output[0]
        pixels: Pictures = (np.asarray(found)[..., :3] * 255).round().clip(0, 255).astype(np.uint8)
        return pixels

    def _who(self, call: Callable[..., Any], decides: str) -> str | None:
        """What decides a picture besides text and seed, as a digest; None where it is not known."""
        if call is self.guard:
            arm = f"guard {self.guard.policy.digest} {_vectors_digest(self.prefix)}"
        elif call is self.pipe:
            arm = "pipe"
        elif decides:
            arm = f"other {decides} {_vectors_digest(self.prefix)}"
        else:
            return None
        family = family_of(self.pipe)
        names = {*family.part_names, *family.slots}
        parts = {name: _config(part) for name in names if hasattr(part := getattr(self.pipe, name), "config")}
        checker = type(getattr(self.pipe, "safety_checker", None)).__name__
        drawn_by = [type(self.pipe).__name__, checker, diffusers.__version__, torch.__version__.split("+")[0]]
        computed = [family.device.type, str(family.network.dtype), str(self.precision), self.steps, self.guidance]
        return _digest(model_digest(self.pipe), arm, parts, drawn_by, computed)


def _policy_for(pipe: Any) -> Policy:
    """The default policy, which asks for no prefix in text encoders that read no prompt."""
    policy, slots = Policy.load("anonymize_faces"), family_of(pipe).slots
    if set(slots) == {e.slot for e in encoders_of(pipe)}:
        return policy
    spec = policy.spec.model_copy(update={"prefix": policy.spec.prefix.model_copy(update={"slots": slots})})
    return policy.model_copy(update={"spec": spec})


def _with_its_detector(policy: Policy) -> Policy:
    """The policy with the digest of its detector's weights, so that its own digest says all that decides a picture."""
    person = policy.spec.person
    if person is None:
        return policy
    try:
        _, sha256 = read_weights(person.path, person.sha256)
    except OSError:
        return policy  # of which the guard says what is wrong
    pinned = person.model_copy(update={"sha256": sha256})
    return policy.model_copy(update={"spec": policy.spec.model_copy(update={"person": pinned})})


@contextmanager
def silent(pipe: Any) -> Iterator[None]:
    """Let a pipe draw without progress bars, and give it back its own settings for them."""
    own = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**own | {"disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**own)


@contextmanager
def drawn_by(pipe: Any, scheduler: Any) -> Iterator[None]:
    """Let a pipe draw with a scheduler of another class and its own settings, and put its own back.

    Args:
        pipe: The pipe.
        scheduler: The class; None leaves it its own.
    """
    own = pipe.scheduler
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(own.config)
    try:
        yield
    finally:
        pipe.scheduler = own


def _config(part: Any) -> dict[str, str]:
    """What decides the outputs of a network besides its weights."""
    config = part.config if isinstance(part.config, Mapping) else part.config.to_dict()
    return {key: str(value) for key, value in sorted(config.items()) if key[0] != "_"}


def _vectors_digest(prefix: Prefix) -> str:
    """Of what a prefix does to a picture: not when it was made, nor what it is called."""
    digest = hashlib.sha256()
    for slot, vectors in sorted(prefix.vectors.items()):
        digest.update(f"{slot}{tuple(vectors.shape)}".encode() + vectors.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _seed(seed: int, stream: str, label: str) -> int:
    """A seed that training cannot have used: its seeds come from other texts."""
    return int.from_bytes(hashlib.sha256(f"evaluate:{seed}:{stream}:{label}".encode()).digest()[:7], "big")


def _read(path: Path) -> Pictures | None:
    """A kept picture, shape (H, W, 3); None where there is none, or none that is whole."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):  # a damaged PNG raises any of these
        return None
