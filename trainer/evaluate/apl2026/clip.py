"""CLIP from a local folder: how well pictures fit texts, and a feature space for the Fréchet distance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from apl_guard.errors import ModelInvalid
from apl_guard.trainer.evaluate.apl2026.faces import files_digest
from apl_guard.trainer.evaluate.result import Pictures

_BATCH = 16


class Clip:
    """A CLIP model in the folder format of transformers. Nothing is fetched.

    Args:
        folder: With `config.json`, weights as safetensors, tokenizer and `preprocessor_config.json`.

    Raises:
        ModelInvalid: The folder is missing, half-written, or of another kind of model.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        if not (folder / "config.json").is_file():
            raise ModelInvalid("no config.json in it; expected the folder of a CLIP model", where=folder)
        has = {name: (folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "merges.txt")}
        if not has["tokenizer.json"] and not (has["vocab.json"] and has["merges.txt"]):
            # transformers would make a tokenizer that knows no word.
            raise ModelInvalid(
                "no tokenizer.json, nor vocab.json with merges.txt; expected a whole folder", where=folder
            )
        try:
            model, found = CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            self._processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            what = type(error).__name__
            msg = f"not a CLIP model that can be opened ({what}); expected a whole folder, with model.safetensors"
            raise ModelInvalid(msg, where=folder) from error
        if missing := found["missing_keys"]:
            # transformers would draw them at random, and the figures with them.
            msg = f"{len(missing)} weights are missing, such as {min(missing)}; expected both halves of a CLIP model"
            raise ModelInvalid(msg, where=folder)
        self._model = model.eval().requires_grad_(False)
        self._window = int(model.config.text_config.max_position_embeddings)
        self._folder = folder
        weights = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
        self.digest = files_digest(*weights)
        self.name = f"CLIP {folder.name} {self.digest[:12]}"

    @torch.no_grad()
    def look(self, pictures: Pictures, texts: Sequence[str]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """CLIPScore of each picture with its text, and image embeddings.

        Texts are cut at the end of CLIP's window. A score is 100 times the cosine, and not below zero.

        Args:
            pictures: Shape (n, H, W, 3), bytes.
            texts: n texts.

        Returns:
            Scores (n,) and embeddings (n, D).

        Raises:
            ModelInvalid: Its answers are not numbers.

        Source:
            Hessel et al., arXiv:2104.08718 (who scale by 2.5 where libraries scale by 100).
        """
        scores, embeddings = [], []
        for start in range(0, len(texts), _BATCH):
            part = slice(start, start + _BATCH)
            images = self._processor(images=list(pictures[part]), return_tensors="pt")
            tokens = self._tokenizer(
                list(texts[part]), padding=True, truncation=True, max_length=self._window, return_tensors="pt"
            )
            answer = self._model(**tokens, pixel_values=images["pixel_values"])
            cosine = torch.nn.functional.cosine_similarity(answer.image_embeds, answer.text_embeds, dim=-1)
            if not cosine.isfinite().all():
                raise ModelInvalid("its answers are not numbers; the weights are damaged", where=self._folder)
            scores.append(100 * cosine.clamp(min=0).double().numpy())
            embeddings.append(answer.image_embeds.double().numpy())
        return np.concatenate(scores), np.concatenate(embeddings)
