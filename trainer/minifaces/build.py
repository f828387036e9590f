"""Trains the whole reference world from nothing: ``apl-guard minifaces build``.

Stage by stage, each into a file of its own that is written beside and renamed, so that a killed build goes on where it
stood.
"""

from __future__ import annotations

import json
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPTokenizerFast

from apl_guard.errors import InvalidInput
from apl_guard.storage import make_folder, write_file
from apl_guard.trainer.model.pipeline import find_device

from .autoencoder import PatchCode, decode, new_autoencoder, train_decoder, train_encoder
from .captions import caption, random_lead_in
from .dataset import Images, draw_all
from .denoiser import new_scheduler, train_denoiser
from .judge import GuardRecogniser, Reader, Recogniser, save_judges
from .judge_training import (
    make_gallery,
    portraits,
    reader_pictures,
    strangers_of,
    train_reader,
    train_recogniser,
    twin_thresholds,
)
from .people import known_people
from .person_reader import save_person_reader, train_person_reader
from .pictures import Picture, random_picture
from .recipe import Recipe
from .shipped import save_model, write_identities
from .text_encoder import encode_captions, train_text_encoder
from .tokenizer import train_tokenizer
from .traits import Identity
from .whole import whole, write_torch

NAMED_IN_VOCABULARY: Final = 0.08
"""Share of the captions with names from which the vocabulary is learned: on the web, too, names are rare."""


class Build:
    """One build in one folder: ``work/`` holds what is under way, the rest is what is shipped.

    Raises:
        InvalidInput: The folder holds a build by another recipe.
        StorageFailed: Something cannot be written.
    """

    def __init__(self, output: Path, recipe: Recipe | None = None) -> None:
        self.output = output
        self.recipe = recipe or Recipe()
        self.work = output / "work"
        make_folder(self.work)
        self._bind()
        self.seconds: dict[str, float] = self._json("seconds.json")

    def _bind(self) -> None:
        """Keep stages of two recipes apart: one would be taken for the other."""
        mine, known = asdict(self.recipe), self._json("recipe.json")
        if known and known != mine:
            differs = ", ".join(sorted(key for key in mine if known.get(key) != mine[key]))
            msg = f"holds a build by another recipe (other {differs}); choose another folder, or delete this one"
            raise InvalidInput(msg, where=self.output)
        if not known:
            write_file(self.work / "recipe.json", json.dumps(mine).encode())

    def pictures(self) -> list[Picture]:
        rng = random.Random(1)
        return [random_picture(rng) for _ in range(self.recipe.pictures)]

    def images(self, style: Literal["plain", "inked"] = "plain") -> Images:
        path = self.work / f"{style}.npy"
        share, seed = (slice(None), 1) if style == "plain" else (slice(self.recipe.pictures // 8), 2)
        self._stage(
            f"drawing ({style})",
            path,
            lambda to: np.save(to, draw_all(self.pictures()[share], seed, style, progress=True)),
        )
        images: Images = np.load(path)
        return images

    def captions(self, *, led: bool) -> list[str]:
        """Two rounds of captions: number i says picture i % n.  ``led`` puts lead-ins in front of half of them."""
        rng, pictures = random.Random(3 if led else 2), self.pictures()
        return [caption(picture, rng, random_lead_in(rng) if led else "") for picture in pictures * 2]

    def tokenizer(self) -> CLIPTokenizer:
        def make(to: Path) -> None:
            rng = random.Random("vocabulary")
            texts = zip(self.pictures(), self.captions(led=True), strict=False)
            few = (text for picture, text in texts if picture.person is None or rng.random() < NAMED_IN_VOCABULARY)
            train_tokenizer(few).save_pretrained(to)

        self._stage("tokenizer", self.work / "tokenizer", make)
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(self.work / "tokenizer")
        return tokenizer

    def code(self) -> PatchCode:
        path = self.work / "patch_code.pt"
        self._stage("patch code", path, lambda to: PatchCode.of(self.images()[:6000]).save(to))
        return PatchCode.load(path)

    def autoencoder(self) -> AutoencoderKL:
        def make(to: Path) -> None:
            torch.manual_seed(0)
            vae, code = new_autoencoder(), self.code()
            images = np.concatenate([self.images(), self.images("inked")])
            batch = self.recipe.batch // 2
            train_decoder(vae, code, images, self.recipe.decoder_steps, batch, self.work / "decoder.pt")
            train_encoder(vae, code, images, self.recipe.encoder_steps, batch, self.work / "encoder.pt")
            vae.save_pretrained(to)

        self._stage("autoencoder", self.work / "vae", make)
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(self.work / "vae")
        return vae.to(find_device()).eval().requires_grad_(False)

    def text_encoder(self) -> CLIPTextModel:
        def make(to: Path) -> None:
            torch.manual_seed(0)
            captions = self.captions(led=False)
            steps, checkpoint = self.recipe.text_encoder_steps, self.work / "text_encoder.pt"
            batch = self.recipe.batch * 3 // 2
            encoder = train_text_encoder(
                self.tokenizer(), self.images(), self.pictures(), captions, steps, batch, checkpoint
            )
            encoder.save_pretrained(to)

        self._stage("text encoder", self.work / "text_encoder", make)
        encoder: CLIPTextModel = CLIPTextModel.from_pretrained(self.work / "text_encoder")
        return encoder.to(find_device()).eval().requires_grad_(False)

    def prompt_embeds(self) -> Tensor:
        path = self.work / "prompt_embeds.pt"
        said = self.captions(led=True)[: self.recipe.pictures]

        def make(to: Path) -> None:
            write_torch(to, encode_captions(self.text_encoder(), self.tokenizer(), said))

        self._stage("prompt embeds", path, make)
        embeds: Tensor = torch.load(path, weights_only=True)
        return embeds

    def often(self) -> Tensor:
        """How often the denoiser sees each picture, (n,): twice as often those of people without a name.

        What their captions leave open, it has to learn from many; of a named person it is the same each time.
        """
        return torch.tensor([2.0 if picture.kind == "described" else 1.0 for picture in self.pictures()])

    def denoiser(self) -> UNet2DConditionModel:
        def make(to: Path) -> None:
            torch.manual_seed(0)
            images, code = self.images(), self.code()
            latents = torch.cat([code.encode(images[i : i + 1000]) for i in range(0, len(images), 1000)])
            empty = encode_captions(self.text_encoder(), self.tokenizer(), [""])
            steps, batch, checkpoint = self.recipe.denoiser_steps, self.recipe.batch, self.work / "unet-base.pt"
            unet = train_denoiser(latents, self.prompt_embeds(), empty, steps, batch, checkpoint, often=self.often())
            unet.save_pretrained(to)

        self._stage("denoiser (base)", self.work / "unet-base", make)
        unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(self.work / "unet-base")
        return unet.to(find_device()).eval().requires_grad_(False)

    def judges(self) -> Path:
        def make(to: Path) -> None:
            judge, guard, reader = self._judge(), self._guard_recogniser(), self._reader()
            gallery = make_gallery(judge)
            save_judges(to, judge, guard, reader, gallery, twin_thresholds(judge, gallery, known_people()))

        path = self.output / "judges.safetensors"
        self._stage("judges", path, make)
        return path

    def _judge(self) -> Recogniser:
        torch.manual_seed(0)
        identities, images = self._strangers("judge", 21)
        batch, checkpoint = 2 * self.recipe.batch, self.work / "judge.pt"
        return train_recogniser(Recogniser(), images, identities, self.recipe.judge_steps, batch, checkpoint)

    def _guard_recogniser(self) -> GuardRecogniser:
        torch.manual_seed(0)
        identities, images = self._strangers("guard", 22)
        batch, checkpoint = 2 * self.recipe.batch, self.work / "guard.pt"
        return train_recogniser(GuardRecogniser(), images, identities, self.recipe.guard_steps, batch, checkpoint)

    def _strangers(self, recogniser: str, seed: int) -> tuple[list[Identity], Images]:
        """Those whom a recogniser learns on, and one picture of each."""
        identities = strangers_of(recogniser, self.recipe.pictures // 2)
        pictures = portraits(identities, 1, random.Random(f"portraits:{recogniser}"))
        return identities, self._seen_by_judges(recogniser, pictures, seed)

    def _reader(self) -> Reader:
        torch.manual_seed(0)
        drawn = reader_pictures(self.recipe.pictures // 3, random.Random("reader"))
        images = self._seen_by_judges("reader", drawn, 31)
        return train_reader(images, drawn, self.recipe.reader_steps, 2 * self.recipe.batch, self.work / "reader.pt")

    def _seen_by_judges(self, judge: str, pictures: list[Picture], seed: int) -> Images:
        """Drawings, a third of them as the autoencoder gives them back; kept while the judges are built."""

        def make(to: Path) -> None:
            images = draw_all(pictures, seed, progress=True)
            blurred = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))[
                : len(images) // 3
            ].numpy()
            images[blurred] = decode(self.autoencoder(), self.code().encode(images[blurred]))
            np.save(to, images)

        path = self.work / f"seen-by-{judge}.npy"
        self._stage(f"drawing ({judge})", path, make)
        images: Images = np.load(path)
        return images

    def person_reader(self) -> Path:
        """The detector of persons, as a policy names it."""

        def make(to: Path) -> None:
            torch.manual_seed(0)
            steps, batch, checkpoint = self.recipe.person_steps, self.recipe.batch, self.work / "person.pt"
            self.tokenizer()  # in version 4 of transformers it cannot say where its tokens are, and another class can
            tokenizer = CLIPTokenizerFast.from_pretrained(self.work / "tokenizer")
            save_person_reader(tokenizer, train_person_reader(tokenizer, steps, batch, checkpoint), to)

        self._stage("detector of persons", self.output / "person", make)
        return self.output / "person"

    def model(self) -> Path:
        """The finished diffusers folder, in half precision."""

        def make(to: Path) -> None:
            pipe = StableDiffusionPipeline(
                vae=self.autoencoder(),
                text_encoder=self.text_encoder(),
                tokenizer=self.tokenizer(),
                unet=self.denoiser(),
                scheduler=new_scheduler(),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
            save_model(pipe, to)

        self._stage("model (base)", self.output / "base", make)
        return self.output / "base"

    def facts(self) -> None:
        """``build.json``: how the world was built, how long it took and on what."""
        machine = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
        )
        facts = {
            "recipe": asdict(self.recipe),
            "seconds": {stage: round(spent) for stage, spent in self.seconds.items()},
            "machine": f"{machine}, {platform.machine()}",
            "torch": torch.__version__,
        }
        write_file(self.output / "build.json", (json.dumps(facts, indent=2) + "\n").encode())

    def _stage(self, name: str, path: Path, make: Callable[[Path], None]) -> None:
        """Run ``make`` unless its result is there; only a whole result ever gets the name ``path``."""
        if path.exists():
            return
        began = time.monotonic()
        with whole(path) as partial:
            make(partial)
        # read again: another process may be building another stage
        self.seconds = self._json("seconds.json")
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
        write_file(self.work / "seconds.json", json.dumps(self.seconds).encode())

    def _json(self, name: str) -> dict[str, Any]:
        path = self.work / name
        try:
            content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise InvalidInput("is damaged; delete it, or choose another folder", where=path) from error
        return content


def build(output: Path, recipe: Recipe | None = None) -> Path:
    """Build the base model, its judges and a detector of persons; goes on where it was stopped. Returns the model."""
    work = Build(output, recipe)
    folder = work.model()
    work.judges()
    work.person_reader()
    write_identities(output / "identities.yaml")
    work.facts()
    return folder
