"""The protocol of the paper's authors: as a command on a pipeline of true layout, and on the reference world."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import onnx_models
import pytest
import torch
import yaml
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from small_model import small_pipe, small_tokenizer
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModel,
)
from typer.testing import CliRunner

from apl_guard.cli import app
from apl_guard.errors import InvalidInput, ModelInvalid
from apl_guard.testing import FAMILIES, random_prefix, tiny_pipe
from apl_guard.trainer import minifaces
from apl_guard.trainer.evaluate.apl2026.clip import Clip
from apl_guard.trainer.evaluate.apl2026.protocol import Group, apl_2026, face_figures
from apl_guard.trainer.evaluate.apl2026.recognisers import open_faces
from apl_guard.trainer.evaluate.apl2026.references import References
from apl_guard.trainer.evaluate.apl2026.run import evaluate_apl_2026
from apl_guard.trainer.evaluate.run import evaluate
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.model.families import family_of

NAMES = ("Ada Lum", "Bo Tarn", "Cy Wend")


@pytest.fixture(name="clip", scope="module")
def _clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of random weights, in the folder format of transformers."""
    folder = tmp_path_factory.mktemp("models") / "small-clip"
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that sees a face in every picture, a recogniser, people, and two reference pictures of each."""
    folder = tmp_path_factory.mktemp("files")
    onnx_models.yunet(folder / "yunet.onnx", everywhere=True)
    onnx_models.recogniser(folder / "sface.onnx", 128, (1, 3, 112, 112))
    entries = [{"name": name, "neutral": {"coarse": "a person"}} for name in NAMES]
    (folder / "people.yaml").write_text(yaml.safe_dump({"identities": entries}))
    for k, name in enumerate(NAMES):
        (folder / "faces" / name).mkdir(parents=True)
        base = np.random.default_rng(k).integers(0, 230, size=(8, 8, 3), dtype=np.uint8)
        for j in range(2):
            image = np.full((128, 128, 3), 20 + 4 * j, np.uint8)
            image[32:96, 32:96] = base.repeat(8, 0).repeat(8, 1) + 4 * j
            Image.fromarray(image).save(folder / "faces" / name / f"{j}.png")
    (folder / "captions.txt").write_text("a red car\na house by the sea\na dog\n")
    return folder


@pytest.mark.parametrize(
    ("make", "scheduler"),
    [
        (small_pipe, "DDIMScheduler"),
        (partial(tiny_pipe, family="stable_diffusion_xl"), "DDIMScheduler"),
        (partial(tiny_pipe, family="stable_diffusion_3"), "FlowMatchEulerDiscreteScheduler"),
    ],
    ids=["SD", "SDXL", "SD3"],
)
def test_one_command_measures_a_model_of_true_layout(
    make: Callable[[], Any], scheduler: str, files: Path, clip: Path, tmp_path: Path
) -> None:
    """A pipeline of the layout of Stable Diffusion, recogniser and CLIP from files: every figure with its interval."""
    pipe = make()
    pipe.save_pretrained(tmp_path / "model")
    random_prefix(pipe, n=3).save(tmp_path / "prefix")
    arguments = [
        "eval", "--model", tmp_path / "model", "--prefix", tmp_path / "prefix", "--protocol", "apl-2026",
        "--identities", files / "people.yaml", "--references", files / "faces", "--references-per-person", 2,
        "--detector", files / "yunet.onnx", "--recogniser", files / "sface.onnx", "--clip", clip,
        "--captions", files / "captions.txt", "--people", 2, "--pictures", tmp_path / "pictures",
        "--report", tmp_path / "report.html", "--format", "json", "--quiet",
    ]  # fmt: skip

    answer = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)

    assert answer.exit_code == 0, answer.output
    result = json.loads(answer.stdout)
    assert list(result["suites"]) == ["people", "quality"]
    for arm in ("plain", "neutral", "guarded"):
        figures = result["suites"]["people"][arm]
        assert (figures["images"], figures["people"], figures["gallery"]) == (8, 2, 2)
        for name in ("cosine_mean", "cosine_max", "top1", "face_ratio", "clip_score"):
            low, high = figures[f"{name}_ci"]
            assert low <= figures[name] <= high
        assert "leak_far_1e-2" not in figures, "four pairs of strangers set no threshold"
    assert result["suites"]["quality"]["plain"]["frechet_space"].startswith("CLIP small-clip")
    assert {slot for slot in result["settings"] if slot.startswith("text_encoder")} == set(family_of(pipe).slots)
    assert result["settings"]["faces"] == "YuNet and SFace (OpenCV)"
    assert (result["settings"]["scheduler"], result["settings"]["guidance"]) == (scheduler, 7.0)
    assert "A close-up portrait of Ada Lum" in (tmp_path / "report.html").read_text()
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 3 * 8 + 3 * 3


@pytest.mark.parametrize(("is_guided", "guidance"), [(True, 3.5), (False, 0.0)], ids=["dev", "schnell"])
def test_flux_is_drawn_from_as_its_own_pipeline_draws(
    is_guided: bool, guidance: float, files: Path, tmp_path: Path
) -> None:
    """By its own scheduler and with the guidance that its pipeline takes: DDIM and guidance 7 are of other models."""
    pipe = tiny_pipe(family="flux")
    transformer = FluxTransformer2DModel.from_config(pipe.transformer.config, guidance_embeds=is_guided).eval()
    pipe.register_modules(transformer=transformer)
    pipe.default_sample_size = 8
    told: list[Any] = []
    hook = transformer.register_forward_pre_hook(lambda *a: told.append(a[2]["guidance"]), with_kwargs=True)

    result = evaluate_apl_2026(
        pipe, random_prefix(pipe, n=3), faces=open_faces(files / "yunet.onnx", files / "sface.onnx"),
        identities=[files / "people.yaml"], references=files / "faces", people_limit=2, folder=tmp_path, progress=False,
    )  # fmt: skip

    hook.remove()
    assert result.suites["people"].keys() == {"plain", "neutral", "guarded"}
    assert all(figures["images"] == 8 for figures in result.suites["people"].values())
    assert result.settings["guidance"] == guidance
    assert result.settings["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    assert {None if value is None else float(value[0]) for value in told} == {guidance if is_guided else None}


@pytest.mark.parametrize(("family", "guidance"), [("cogview_3_plus", 5.0), ("qwen_image", 0.0), ("dreamlite", 3.5)])
def test_other_pipelines_are_drawn_from_with_their_own_guidance(
    family: str, guidance: float, files: Path, tmp_path: Path
) -> None:
    """Those that are asked through their own code: by their own scheduler, with or without a strength that is given.
    The last takes one prompt and no list."""
    if not hasattr(diffusers, FAMILIES[family].pipeline):
        pytest.skip("this diffusers has none")
    pipe = tiny_pipe(family=family)
    pipe.default_sample_size = 8
    family_of(pipe).network.config["sample_size"] = 8

    result = evaluate_apl_2026(
        pipe, random_prefix(pipe, n=3), faces=open_faces(files / "yunet.onnx", files / "sface.onnx"),
        identities=[files / "people.yaml"], references=files / "faces", people_limit=2, folder=tmp_path, progress=False,
    )  # fmt: skip

    assert all(figures["images"] == 8 for figures in result.suites["people"].values())
    assert result.settings["guidance"] == guidance
    assert result.settings["scheduler"] == type(pipe.scheduler).__name__


def test_the_reference_world_is_measured_by_its_own_judges(tmp_path: Path) -> None:
    """Without people of the user's, those of the reference world: seen and unseen, at the thresholds of its judges."""
    pipe = small_pipe(shallow=True)
    scheduler = pipe.scheduler

    result = evaluate_apl_2026(pipe, random_prefix(pipe, n=3), people_limit=1, folder=tmp_path, progress=False)

    assert list(result.suites) == ["seen", "unseen"]
    for arms in result.suites.values():
        for figures in arms.values():
            assert (figures["images"], figures["gallery"]) == (4, 160)
            assert {"leak_far_1e-2", "leak_far_1e-3", "worst_leak_far_1e-3", "faceless"} <= figures.keys()
    assert pipe.scheduler is scheduler, "the pipe is left as it was"


def test_a_picture_without_a_face_is_nobody(files: Path) -> None:
    """It counts as an image, not as a face; nobody is recognised in it, however alike."""
    onnx_models.yunet(files / "bright.onnx")
    faces = open_faces(files / "bright.onnx", files / "sface.onnx")
    bright = np.full((1, 64, 64, 3), 250, np.uint8)
    pictures = np.concatenate([bright, np.full((2, 64, 64, 3), 20, np.uint8)])
    references = References(("Ada", "Bo"), torch.cat([faces.embed(bright)] * 2), {"far_1e-2": -1.0}, 2)

    figures = face_figures(faces, references, pictures, ["Ada", "Ada", "Bo"])

    assert (figures["images"], figures["faceless"], figures["people"]) == (3, 2, 1)
    assert figures["top1"] == figures["leak_far_1e-2"] == figures["face_ratio"] == pytest.approx(1 / 3)
    assert figures["cosine_mean"] == pytest.approx(1, abs=1e-5)


class AsTorchmetricsExpects(torch.nn.Module):
    """CLIP whose features come as tensors, as in transformers before version 5."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = CLIPModel.from_pretrained(folder)
        self.config = self.model.config

    def get_image_features(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(*inputs).pooler_output

    def get_text_features(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model.get_text_features(*inputs).pooler_output


def test_clip_scores_are_those_of_torchmetrics(clip: Path) -> None:
    """Picture by picture, against another implementation; the order of pictures does not matter."""
    from torchmetrics.functional.multimodal import clip_score

    pictures = np.random.default_rng(0).integers(0, 256, size=(18, 48, 48, 3), dtype=np.uint8)
    texts = [f"a photo of a {k}" for k in range(18)]

    scores, features = Clip(clip).look(pictures, texts)

    processor = CLIPProcessor(CLIPImageProcessor.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip))
    for k in (0, 17):
        image = torch.from_numpy(pictures[k]).permute(2, 0, 1)
        theirs = clip_score(image, texts[k], lambda: (AsTorchmetricsExpects(clip), processor))
        assert scores[k] == pytest.approx(max(0.0, theirs.item()), abs=1e-3)
    assert features.shape == (18, 16)


def test_a_folder_that_is_no_clip_is_refused(tmp_path: Path, clip: Path) -> None:
    """Missing, half-written or of another kind: the message names the folder."""
    with pytest.raises(ModelInvalid, match="empty"):
        Clip(tmp_path / "empty")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_bytes((clip / "config.json").read_bytes())
    with pytest.raises(ModelInvalid, match="half"):
        Clip(tmp_path / "half")


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.safetensors", r"can be opened \(SafetensorError\)"), ("tokenizer.json", "no tokenizer.json")],
)
def test_a_clip_folder_that_lacks_a_file_is_refused(tmp_path: Path, clip: Path, name: str, message: str) -> None:
    """Weights that are cut short, and a tokenizer that would know no word, are errors that name the folder."""
    folder = shutil.copytree(clip, tmp_path / "clip")
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if name.startswith("model"):
        (folder / name).write_bytes(content[: len(content) // 2])

    with pytest.raises(ModelInvalid, match=message) as caught:
        Clip(folder)

    assert caught.value.where == str(folder)


def test_weights_of_clip_are_never_read_from_a_pickle(tmp_path: Path, clip: Path) -> None:
    """Which would be a program."""
    folder = shutil.copytree(clip, tmp_path / "clip")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    with pytest.raises(ModelInvalid, match=r"expected a whole folder, with model\.safetensors"):
        Clip(folder)


@pytest.mark.parametrize("other", [CLIPTextModel, CLIPVisionModel])
def test_half_of_a_clip_model_is_refused(tmp_path: Path, clip: Path, other: Any) -> None:
    """Such as the text encoder of a pipeline: the half that lacks would be drawn at random, and every score with it."""
    folder = shutil.copytree(clip, tmp_path / "clip")
    config = CLIPConfig.from_pretrained(clip)
    other(config.text_config if other is CLIPTextModel else config.vision_config).save_pretrained(folder)

    with pytest.raises(ModelInvalid, match="weights are missing"):
        Clip(folder)


def test_answers_of_clip_that_are_not_numbers_are_no_figures(tmp_path: Path, clip: Path) -> None:
    """A damaged weight is an error and not a score, which JSON could not hold."""
    folder = shutil.copytree(clip, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] *= float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(ModelInvalid, match="not numbers"):
        Clip(folder).look(np.zeros((1, 32, 32, 3), np.uint8), ["a photo"])


def test_embeddings_that_are_not_numbers_are_no_figures(files: Path) -> None:
    """A recogniser that answers with NaN is an error; else everybody would count as hidden."""
    faces = open_faces(files / "yunet.onnx", files / "sface.onnx")
    picture = np.full((1, 64, 64, 3), 250, np.uint8)
    references = References(("Ada",), faces.embed(picture), {"far_1e-2": 0.5}, 1)
    broken = SimpleNamespace(name="broken", has_face=faces.has_face, embed=lambda x: faces.embed(x) * float("nan"))

    with pytest.raises(ModelInvalid, match=r"broken: .*not numbers"):
        face_figures(broken, references, picture, ["Ada"])


def test_people_references_and_recogniser_go_together(files: Path, tmp_path: Path) -> None:
    """Nothing that was handed over is silently left out."""
    pipe = tiny_pipe()
    options: dict[str, Any] = {"folder": tmp_path, "progress": False}
    prefix = random_prefix(pipe, n=2)

    with pytest.raises(InvalidInput, match="reference images and a recogniser missing"):
        evaluate_apl_2026(pipe, prefix, identities=[files / "people.yaml"], **options)
    with pytest.raises(InvalidInput, match="people and a recogniser missing"):
        evaluate_apl_2026(pipe, prefix, references=files / "faces", **options)


@pytest.mark.parametrize("name", ["quality", "attack victims"])
def test_a_group_is_not_called_like_what_the_result_keeps_for_itself(name: str) -> None:
    """A file of such a name is refused before anything is drawn: its figures could not be told from others."""
    pipe = tiny_pipe()
    setting = Setting.of(pipe, random_prefix(pipe, n=2), judges=None, folder=None, progress=False)
    group = Group({}, References((), torch.empty(0, 1), {}, 0))

    with pytest.raises(InvalidInput, match=f"the name '{name}' is taken"):
        apl_2026(setting, {name: group}, minifaces.judges())


@pytest.mark.parametrize(
    ("family", "found"),
    [("stable_diffusion", "draws images of 32 pixels"), ("stable_diffusion_3", "is a StableDiffusion3Pipeline")],
)
def test_another_model_needs_people_of_its_own(family: str, found: str, tmp_path: Path) -> None:
    """The judges of the reference world cannot look at its pictures; the message says what to do."""
    pipe = tiny_pipe(family=family)  # draws 32 pixels

    with pytest.raises(ModelInvalid, match=f"{found}.*--protocol apl-2026"):
        evaluate(pipe, random_prefix(pipe, n=2), progress=False)
    with pytest.raises(ModelInvalid, match=found):
        evaluate_apl_2026(pipe, random_prefix(pipe, n=2), folder=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        (["--clip", "x"], "--clip: belongs to a protocol"),
        (["--protocol", "apl-2026", "--steps", "3"], "--steps: is set by the protocol"),
        (["--protocol", "apl-2026", "--detector", "x"], "--detector and --recogniser: one without the other"),
        (["--protocol", "apl-2026", "--captions", "x"], "--clip: captions are for quality"),
        (["--protocol", "apl-2026", "--references-per-person", "3"], "--references-per-person: says how many"),
    ],
)
def test_options_that_nobody_reads_are_refused(options: list[str], where: str) -> None:
    """Options of suites beside a protocol, the other way round, and halves of pairs."""
    answer = CliRunner().invoke(app, ["eval", "--model", "minifaces", "--prefix", "minifaces", *options])

    assert isinstance(answer.exception, InvalidInput)
    assert where in str(answer.exception)
