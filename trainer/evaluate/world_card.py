"""The model card of the reference world, written from measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apl_guard.errors import InvalidInput
from apl_guard.storage import write_file
from apl_guard.trainer.evaluate.result import EvalResult, show_figure
from apl_guard.trainer.minifaces.captions import identity_templates
from apl_guard.trainer.minifaces.judge import READS, load_judges
from apl_guard.trainer.minifaces.measure import judge_accuracy, model_bytes, persons_found, words_in_front
from apl_guard.trainer.minifaces.people import SPLIT_SIZES, TWINS
from apl_guard.trainer.model.pipeline import open_pipe

_MODEL_ROWS = (
    ("closed-set top-1 (gallery: 160 people, 9 twins of each)", "top1"),
    ("verification at FAR 1e-2", "leak_far_1e-2"),
    ("verification at FAR 1e-3", "leak_far_1e-3"),
    ("face ratio", "face_ratio"),
    ("scene fidelity", "scene_fidelity"),
)


def read_evaluation(path: Path) -> EvalResult:
    """Read what `apl-guard eval --format json` printed, as far as a card needs it.

    Raises:
        InvalidInput: It is something else, or lacks a suite or its plain arm.
        OSError: The file cannot be read.
    """
    try:
        suites = json.loads(path.read_bytes())["suites"]
        for suite in ("seen", "unseen", "generic"):
            if not isinstance(suites[suite]["plain"]["images"], int):
                raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        message = (
            "is not an evaluation of seen, unseen and generic with plain arms; expected what apl-guard eval --format "
            "json printed"
        )
        raise InvalidInput(message, where=path) from error
    return EvalResult(suites)


def write_card(folder: Path, evaluation: EvalResult) -> Path:
    """``README.md`` in the folder of a built world: what is in it, how good it is, how it was made.

    Args:
        folder: Holds ``base``, ``judges.safetensors``, ``person`` and ``build.json``.
        evaluation: Of the base model, all suites; the card takes the plain arms.

    Raises:
        ModelInvalid: The folder holds no model.
        StorageFailed: The card cannot be written.
    """
    pipe = open_pipe(folder / "base")
    judges = load_judges(folder / "judges.safetensors")
    front = words_in_front(pipe)
    text = "\n".join(
        [
            *_head(folder, pipe),
            *_model(evaluation, front),
            *_judges(judge_accuracy(judges), judges.thresholds),
            *_detector(persons_found(folder / "person")),
            *_data(),
            *_build(json.loads((folder / "build.json").read_text())),
        ]
    )
    return write_file(folder / "README.md", f"{text}\n".encode())


def _head(folder: Path, pipe: Any) -> list[str]:
    parts = {"text encoder": pipe.text_encoder, "autoencoder": pipe.vae, "denoiser": pipe.unet}
    sizes = ", ".join(f"{name} {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M" for name, part in parts.items())
    size = (model_bytes(folder / "base") + model_bytes(folder / "person")) / 1e6
    size += (folder / "judges.safetensors").stat().st_size / 1e6
    return [
        "# minifaces",
        "",
        "A miniature of Stable Diffusion that draws cartoon people who do not exist, and the judges of its images.",
        "It is there to test and to show anonymization without a photograph of anybody.",
        "",
        f"Parameters: {sizes}. With the judges and the detector {size:.1f} MB, half precision.",
        "Images 64×64, latents 24×8×8, text window 77.",
        "",
    ]


def _model(evaluation: EvalResult, front: Mapping[str, float]) -> list[str]:
    lines = [
        "## The model",
        "",
        "Held-out templates and seeds; 95 % intervals in brackets.",
        "",
        "| | seen | unseen |",
        "|---|---|---|",
    ]
    suites = evaluation.suites
    for label, key in _MODEL_ROWS:
        cells = [show_figure(suites[suite]["plain"], key) for suite in ("seen", "unseen")]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    images = [suites[suite]["plain"]["images"] for suite in ("seen", "unseen")]
    lines += [f"| images | {images[0]} | {images[1]} |", ""]
    generic = suites["generic"]["plain"]
    lines += [
        f"Generic prompts: attribute fidelity {show_figure(generic, 'attribute_fidelity')}"
        f" ({generic['images']} images).",
        "",
        f"Ten words in front of a prompt change the denoiser's output by {100 * front['ratio']:.1f} % of what deleting"
        f" the prompt changes (mean squared difference {front['words_in_front']:.2e} against {front['deleted']:.2e}).",
        "",
        "    apl-guard eval --model minifaces --prefix minifaces"
        f" --images-per-person {images[0] // SPLIT_SIZES['seen']} --steps 20",
        "",
    ]
    return lines


def _judges(figures: Mapping[str, float], thresholds: Mapping[str, float]) -> list[str]:
    lines = [
        "## The judges",
        "",
        "On drawings that no judge was trained on, impostors being twins that no judge has seen. The recogniser"
        " measures faces: it was taught on strangers and their twins and has never seen the people whom it judges.",
        "",
        "| recogniser | |",
        "|---|---|",
        f"| closed-set top-1, 1600 in the gallery | {100 * figures['closed_set_top1']:.1f} % |",
    ]
    for name, threshold in thresholds.items():
        far = name.replace("far_", "FAR ")
        lines.append(
            f"| {far} (cosine {threshold:.3f}): verified / new twins taken for the person |"
            f" {100 * figures[f'verified_{name}']:.1f} % / {100 * figures[f'new_twins_taken_{name}']:.2f} % |"
        )
    lines += ["", "| reader | right |", "|---|---|"]
    lines += [f"| {key.replace('_', ' ')} | {100 * figures[f'reads_{key}']:.1f} % |" for key in READS]
    return [*lines, ""]


def _detector(found: Mapping[str, float]) -> list[str]:
    prompts = int(found["prompts"])
    return [
        "## The detector of persons",
        "",
        "For the policy `anonymize_persons`, which puts the prefix only where a prompt may name somebody. It is a small"
        " BERT, trained on captions with invented names, none of them a first or last name of anybody here. Of held-out"
        f" prompts it sees a person in {100 * found['named']:.1f} % of {prompts} that name one of the two hundred, and"
        f" in {100 * found['nameless']:.1f} % of {prompts} that name nobody. That is easier here than anywhere else:"
        " captions are made of few words, and it takes any other word for a name.",
        "",
    ]


def _data() -> list[str]:
    sizes = ", ".join(f"{size} {split.replace('_', ' ')}" for split, size in SPLIT_SIZES.items())
    held_out = "; ".join(f"“{template}”" for template in identity_templates(held_out=True))
    return [
        "## The data",
        "",
        f"Two hundred invented people ({sizes}), {TWINS} twins of each in the gallery: the same attributes, another"
        " geometry. The model has seen the first two groups, never the held-back one.",
        "",
        "Some captions change by their context who is shown: look-alikes, relatives, impersonators, strangers, said in"
        " the sentence or far in front of it. These name seen people only, never an unseen one. The words far in front"
        " stand before captions without names as well, where they change nothing. So the text encoder knows words that"
        " hide whoever is named after them, and leave all else: a prefix has an easier start here than it may have on a"
        " model of photographs.",
        "",
        f"Kept out of all training, for evaluation alone: {held_out}.",
        "",
    ]


def _build(facts: Mapping[str, Any]) -> list[str]:
    lines = ["## How it was made", "", "    apl-guard minifaces build --output world", ""]
    lines += ["| stage | minutes |", "|---|---|"]
    lines += [f"| {stage} | {seconds / 60:.0f} |" for stage, seconds in facts["seconds"].items()]
    recipe = ", ".join(f"{key} {value}" for key, value in facts["recipe"].items())
    lines += ["", f"On {facts['machine']}, torch {facts['torch']}. Recipe: {recipe}."]
    if "note" in facts:
        lines += ["", str(facts["note"])]
    return lines
