"""Which pipelines of diffusers the guard stands in front of, and why not in front of the others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from apl_guard.errors import InvalidInput

from .arguments import is_known
from .modular import is_modular, reason_against_blocks, reason_against_model

__all__ = ["check_supported", "reason_against"]

# Sub-packages of `diffusers.pipelines`. Every pipeline of theirs that is not refused below is drawn through a guard in
# a test, with random weights, and compared with a sequence made by hand.
_SUPPORTED = frozenset(
    {
        "aura_flow",
        "chroma",
        "cogview3",
        "cogview4",
        "controlnet",
        "controlnet_hunyuandit",
        "controlnet_sd3",
        "cosmos",
        "flux",
        "flux2",
        "hidream_image",
        "hunyuandit",
        "ideogram4",
        "kandinsky2_2",
        "kandinsky3",
        "kandinsky5",
        "kolors",
        "latent_consistency_models",
        "longcat_image",
        "lumina",
        "lumina2",
        "nucleusmoe_image",
        "pag",
        "pixart_alpha",
        "qwenimage",
        "qwenimage21",
        "sana",
        "stable_cascade",
        "stable_diffusion",
        "stable_diffusion_3",
        "stable_diffusion_xl",
        "t2i_adapter",
        "bria",
        "bria_fibo",
        "deepfloyd_if",
        "dreamlite",
        "ernie_image",
        "hunyuan_image",
        "kandinsky",
        "krea2",
        "ovis_image",
        "prx",
        "z_image",
    }
)

_VIDEO = "makes videos, not images"
_SOUND = "makes sound, not images"
_TEXT = "makes text, not images"
_OLD = "diffusers does not maintain it any more"
_UNTESTED = "this version of apl-guard has not been tested with it"
_NO_ENCODER = "it has no text encoder: the model that draws reads the prompt itself"

_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "allegro",
            "animatediff",
            "anyflow",
            "chronoedit",
            "cogvideo",
            "consisid",
            "easyanimate",
            "helios",
            "hunyuan_video",
            "hunyuan_video1_5",
            "kandinsky6",
            "latte",
            "ltx",
            "ltx2",
            "lucy",
            "mochi",
            "motif_video",
            "sana_video",
            "sana_wm",
            "skyreels_v2",
            "stable_video_diffusion",
            "wan",
            "AnimateDiffPAGPipeline",
            "Cosmos2VideoToWorldPipeline",
            "Cosmos2_5_PredictBasePipeline",
            "Cosmos2_5_TransferPipeline",
            "CosmosTextToWorldPipeline",
            "CosmosVideoToWorldPipeline",
            "Kandinsky5I2VPipeline",
            "Kandinsky5T2VPipeline",
        ),
        _VIDEO,
    ),
    **dict.fromkeys(("ace_step", "audioldm2", "longcat_audio_dit", "stable_audio", "stable_audio_3"), _SOUND),
    **dict.fromkeys(("diffusion_gemma", "llada2"), _TEXT),
    **dict.fromkeys(
        ("bria_fibo2", "BriaFiboEditPipeline"), "it reads the prompt as JSON, so nothing can stand in front of it"
    ),
    **dict.fromkeys(("Cosmos3OmniPipeline", "glm_image", "omnigen"), _NO_ENCODER),
    "BlipDiffusionControlNetPipeline": "it takes its content from an image of the subject",
    "FluxPriorReduxPipeline": "it takes its content from an image, and gives embeds",
    "StableUnCLIPImg2ImgPipeline": "it takes its content from an image",
    "StableCascadeCombinedPipeline": (
        "its decoder takes over the embeds of its prior, so one of its text encoders never reads the prompt; "
        "guard the prior and give its output to the decoder"
    ),
    **dict.fromkeys(
        (
            "OnnxStableDiffusionImg2ImgPipeline",
            "OnnxStableDiffusionInpaintPipeline",
            "OnnxStableDiffusionPipeline",
            "OnnxStableDiffusionUpscalePipeline",
            "StableDiffusionOnnxPipeline",
        ),
        "its models do not run in torch, so no prefix can be put into their text encoder",
    ),
    **dict.fromkeys(
        (
            "Kandinsky5I2IPipeline",
            "LongCatImageEditPipeline",
            "QwenImageEditInpaintPipeline",
            "QwenImageEditPipeline",
            "QwenImageEditPlusPipeline",
            "joyimage",
        ),
        "its text encoder reads the prompt together with an image",
    ),
    "deprecated": _OLD,
    "latent_diffusion": "its text encoder is in a place of its own, where the guard puts no prefix",
    "shap_e": "makes shapes, not images",
}
"""Sub-package or class → why the guard cannot stand in front of it."""


def check_supported(pipe: Any) -> None:
    """Refuse a pipe that the guard cannot stand in front of.

    Raises:
        InvalidInput: It cannot. The message names its class and says why.
    """
    cls = type(pipe)
    reason = reason_against(cls) or (reason_against_blocks(pipe) if is_modular(cls) else None)
    if reason is not None:
        raise InvalidInput(f"{cls.__name__} is not covered: {reason}", where="pipe")


def reason_against(cls: type[Any]) -> str | None:
    """Why the guard cannot stand in front of a pipeline class, or None where it can.

    Args:
        cls: The class of a pipe. One outside of diffusers counts as the class of diffusers that it is made of,
            but its own arguments are looked at.

    Example:
        >>> from diffusers import FluxPipeline
        >>> reason_against(FluxPipeline) is None
        True
    """
    if is_modular(cls):
        return reason_against_model(cls)
    family, name = _family_of(cls)
    for key in (name, family):
        if key in _REFUSED:
            return _REFUSED[key]
    parameters = inspect.signature(cls.__call__).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)][1:]
    if "prompt" not in named:
        if "__call__" in vars(cls) and any(p.kind is p.VAR_KEYWORD for p in parameters):
            return (
                "its __call__ takes whatever it is given, so nobody can tell what an argument means; write "
                "@functools.wraps(BASE.__call__) above it, BASE being the pipeline that it hands its arguments to"
            )
        return "it takes no prompt"
    if family not in _SUPPORTED:
        return _UNTESTED
    unknown = [name for name in named if not is_known(name)]
    if unknown:
        return f"it takes {', '.join(unknown)}, which this version of apl-guard does not know"
    return None


def _family_of(cls: type[Any]) -> tuple[str, str]:
    """The sub-package of `diffusers.pipelines`, and the class there, that a class is made of."""
    for base in cls.__mro__:
        parts = base.__module__.split(".")
        if parts[:2] == ["diffusers", "pipelines"] and len(parts) > 3:
            return parts[2], base.__name__
    return "", cls.__name__
